"""Parameter groups by role: learning rates of pretrained encoders, by layer, and of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from refseg.errors import ConfigError
from refseg.lora import lora_parameters
from refseg.registry import OPTIM_WRAPPER_CONSTRUCTORS

ROLES = ("vision", "text")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EncoderRatesConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with three more keys of `paramwise_cfg`, for any encoder.

    - `encoder_lr_mult` (default 1) multiplies the learning rate of the image and text encoder, not of fusions.
    - `new_parts_lr_mult` (default 1) multiplies the learning rate of all parameters outside `encoder`, which start
      without pretrained weights.
    - `layer_decay`, such as `dict(vision=0.8, text=0.9)`: the layer that is k layers below the last one of that encoder
      gets the rate times the factor to the power of k. The last layer keeps the rate.

    Two parts of an encoder are new and have the rate of new parts: what LoRA adds, and the pyramid of a plain ViT.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # called once per module, the outermost last; only that one has no prefix
            return
        factors = {}
        new_parts, decays = self.paramwise_cfg.get("new_parts_lr_mult", 1.0), self.paramwise_cfg.get("layer_decay", {})
        encoder = getattr(module, "encoder", None)
        inside = set(map(id, encoder.parameters())) if encoder is not None else set()
        for parameter in module.parameters():
            factors[id(parameter)] = 1.0 if id(parameter) in inside else new_parts
        encoder_mult = self.paramwise_cfg.get("encoder_lr_mult", 1.0)
        parts = [part for role in ROLES if (part := getattr(encoder, role, None)) is not None]
        if encoder_mult != 1 and not parts:
            raise ConfigError(
                f"paramwise_cfg.encoder_lr_mult: {type(module).__name__} has neither encoder.vision nor encoder.text. "
                "Use custom_keys, or new_parts_lr_mult."
            )
        for part in parts:
            factors.update(dict.fromkeys(map(id, part.parameters()), encoder_mult))
        for role, decay in decays.items():
            part = getattr(encoder, role, None)
            if role not in ROLES or part is None:
                raise ConfigError(
                    f"paramwise_cfg.layer_decay.{role}: {type(module).__name__} has no encoder.{role}. Known roles: "
                    f"{', '.join(ROLES)}."
                )
            depths = layer_depths(getattr(part, "backbone", part))
            last = max(depths.values(), default=0)
            for parameter, depth in depths.items():
                factors[parameter] *= decay ** (last - depth)
        pyramids = [part.pyramid for part in module.modules() if hasattr(part, "pyramid")]
        new = lora_parameters(module) | {id(parameter) for part in pyramids for parameter in part.parameters()}
        factors.update(dict.fromkeys(new, new_parts))
        for group in params:
            (factor,) = {factors[id(parameter)] for parameter in group["params"]}
            if factor != 1:
                group["lr"] = group.get("lr", self.base_lr) * factor


def layer_depths(encoder: nn.Module) -> Mapping[int, int]:
    """Return for each parameter, by its id, the number of layers up to its own; 0 before the first layer.

    A layer is an item of a ModuleList or Sequential that has a norm and a linear map or convolution of its own, and no
    such layer inside: a block of any transformer or convolutional network, whatever its names are.
    """
    containers = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
    layers: dict[str, nn.Module] = {}
    for name, part in encoder.named_modules():
        if not isinstance(part, containers):
            continue
        for key, child in part.named_children():
            kinds = [type(inner).__name__.lower() for inner in child.modules()]
            if any("norm" in kind for kind in kinds) and any("linear" in kind or "conv" in kind for kind in kinds):
                layers[f"{name}.{key}" if name else key] = child
    inner = [name for name in layers if not any(other.startswith(f"{name}.") for other in layers)]
    owner = {id(parameter): name for name in inner for parameter in layers[name].parameters()}
    numbers: dict[str, int] = {}  # in the order of parameters
    depths, number = {}, 0
    for parameter in encoder.parameters():
        if name := owner.get(id(parameter)):
            number = numbers.setdefault(name, len(numbers) + 1)
        depths[id(parameter)] = number
    return depths
