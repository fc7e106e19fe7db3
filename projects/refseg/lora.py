"""LoRA (Hu et al. 2021): a pretrained encoder stays as it is, and each of its linear layers gets a trained addition.

The addition to a weight W is (alpha / rank) B A, with A of `rank` rows and B of `rank` columns. B starts at zero.

The state dict of an encoder with LoRA is that of the same encoder without it: the additions are merged into the
weights. So its checkpoints are ordinary ones, which need neither peft nor the key `lora`. To continue a training
exactly, a checkpoint also has what `adapters_of` the model returns: the weights and their additions one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refseg.errors import CheckpointError, ConfigError

ADAPTER = "default"  # peft's name
A, B = f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight"


@dataclass(frozen=True, slots=True)
class Lora:
    """Settings of LoRA.

    Args:
        rank: Rank of what is added to a weight.
        alpha: Scale of the addition, relative to the rank.
    """

    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"lora: rank must be at least 1, and alpha above 0, not {self.rank} and {self.alpha}")


def add_lora(module: nn.Module, settings: Mapping[str, Any], *, owner: str, frozen: bool) -> None:
    """Freeze a module, and add LoRA to its linear layers, in place.

    Layers that are no larger than the rank, such as gates and position biases, get none.

    Args:
        module: A pretrained network.
        settings: Fields of `Lora`.
        owner: The encoder and the network, for error messages.
        frozen: The encoder's `frozen`, which must be False.
    """
    lora = Lora(**settings)
    if frozen:
        raise ConfigError(f"{owner}: frozen=True and lora exclude each other. LoRA keeps the weights: remove frozen.")
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    names = [name for name, linear in linears.items() if min(linear.weight.shape) > lora.rank]
    if not names:
        raise ConfigError(
            f"{owner} has no linear layers of more than {lora.rank} channels, which LoRA is for. Remove lora from this "
            "encoder (refseg finetune --lora text), or take a transformer such as vit_small_patch14_dinov2."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(f"{owner}: lora needs peft. Install it with `pip install refseg[lora]`.") from None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    inject_adapter_in_model(config, module, ADAPTER)
    for layer in lora_layers(module).values():
        layer.register_state_dict_post_hook(merge_addition)
        layer.register_load_state_dict_pre_hook(load_into_base)


def keep_statistics(module: nn.Module) -> None:
    """Put batch norms in evaluation mode. Their running statistics belong to the weights, which stay."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.eval()


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """Return the layers with LoRA by name."""
    return {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}


def lora_parameters(module: nn.Module) -> set[int]:
    """Return the ids of the parameters that LoRA added."""
    parts = [part for layer in lora_layers(module).values() for part in (layer.lora_A, layer.lora_B)]
    return {id(parameter) for part in parts for parameter in part.parameters()}


@torch.no_grad()
def merge_addition(layer: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Give the state dict of a layer the names and values of the same layer without LoRA, in place."""
    del state[f"{prefix}{A}"], state[f"{prefix}{B}"]
    for name in ("weight", "bias"):
        if f"{prefix}base_layer.{name}" in state:
            state[f"{prefix}{name}"] = state.pop(f"{prefix}base_layer.{name}")
    state[f"{prefix}weight"] = state[f"{prefix}weight"] + layer.get_delta_weight(ADAPTER)


def load_into_base(layer: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Load a state dict without LoRA into the weights of a layer. The addition is in them, so it becomes zero."""
    if f"{prefix}weight" not in state:
        return
    for name in ("weight", "bias"):
        if f"{prefix}{name}" in state:
            state[f"{prefix}base_layer.{name}"] = state.pop(f"{prefix}{name}")
    state[f"{prefix}{A}"] = layer.lora_A[ADAPTER].weight.detach()
    state[f"{prefix}{B}"] = torch.zeros_like(layer.lora_B[ADAPTER].weight)


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of all layers with LoRA, not merged. They share memory with the model's."""
    layers = lora_layers(model).items()
    return {f"{name}.{key}": value.detach() for name, layer in layers for key, value in layer.named_parameters()}


def restore_adapters(model: nn.Module, saved: Mapping[str, Tensor], file: str) -> None:
    """Load what `adapters_of` returned into a model of the same kind."""
    current = adapters_of(model)
    if current.keys() != saved.keys():
        raise CheckpointError(
            f"--resume: {file} was trained with other keys `lora` than this config has. Use the config of the run that "
            "wrote it"
        )
    for name, value in current.items():
        value.copy_(saved[name])
