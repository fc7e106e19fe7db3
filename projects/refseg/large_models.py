"""Training of models that do not fit: parameters shared among processes (FSDP), and blocks that are recomputed.

`fsdp=True` in a config shards parameters, gradients, and the optimizer's state over all processes. Checkpoints are
those of an ordinary training, so either kind of training continues the other's, with any number of processes.
`gradient_checkpointing=True` recomputes all blocks in the backward pass instead of keeping their activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from refseg.errors import ConfigError, UsageError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model: members of module lists with parts and parameters, the innermost ones."""

    def is_block(module: nn.Module) -> bool:
        has_parts = next(module.children(), None) is not None
        return (
            has_parts
            and not isinstance(module, nn.ModuleList | nn.ModuleDict)
            and any(True for _ in module.parameters())
        )

    members = [
        part for parts in model.modules() if isinstance(parts, nn.ModuleList) for part in parts if is_block(part)
    ]
    chosen = set(members)
    return [part for part in dict.fromkeys(members) if not chosen & set(list(part.modules())[1:])]


# Gradient checkpointing -----------------------------------------------------------------------------------------------


def recompute(model: nn.Module, names: bool | str | Sequence[str]) -> list[nn.Module]:
    """Recompute parts of a model in the backward pass, which saves memory and costs time. Return the parts.

    Args:
        names: Names of modules. True: all blocks, except in encoders that recompute theirs (`checkpointing`).
    """
    if isinstance(names, bool):
        encoders = [part for part in model.modules() if getattr(part, "checkpointing", False)]
        covered = {inner for encoder in encoders for inner in encoder.modules()}
        parts = [part for part in blocks_of(model) if part not in covered]
    else:
        parts = []
        for name in [names] if isinstance(names, str) else names:
            try:
                parts.append(model.get_submodule(name))
            except AttributeError:
                raise ConfigError(
                    f"gradient_checkpointing: {type(model).__name__} has no module {name!r}. Use True for all blocks"
                ) from None
    for part in parts:
        part.forward = _recomputed(part)
    return parts


def _recomputed(part: nn.Module) -> Callable[..., Any]:
    """Return a part's forward with recomputation. It belongs to this part: do not copy the model afterwards."""
    forward = part.forward

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _without_statistics(part)  # of the first pass, and of its repetition

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _without_statistics(part: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are: the first forward pass has updated them."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


# FSDP -----------------------------------------------------------------------------------------------------------------


def shard(model: nn.Module) -> None:
    """Initialize a model, and distribute its parameters over all processes, block by block."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise UsageError("fsdp=True needs torch 2.6 or newer") from None
    from torch.distributed.device_mesh import init_device_mesh

    if hasattr(model, "init_weights"):
        model.init_weights()
    for tensor in model.state_dict().values():
        broadcast(tensor)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}  # which FSDP cannot shard
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(model, mesh=mesh, ignored_params=scalars)


def _average_gradient(parameter: Tensor) -> None:
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad /= torch.distributed.get_world_size()


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(value: Any) -> Any:
    """Return the whole tensor of a sharded one. All processes have to call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Any, target: Tensor) -> Any:
    """Return this process's part of a whole tensor, if the target is sharded and has its shape."""
    if hasattr(target, "full_tensor") and isinstance(value, Tensor) and value.shape == target.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of a sharded model down to a norm, and return the norm that they had.

    torch's own function refuses sharded and whole gradients together.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if hasattr(gradient, "to_local")]
    others = [gradient for gradient in gradients if not hasattr(gradient, "to_local")]
    square = torch.stack([gradient.square().sum() for gradient in sharded]).sum()
    torch.distributed.all_reduce(square)
    norm = torch.stack([square, *(gradient.square().sum() for gradient in others)]).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*sharded, *others):
        gradient.mul_(factor)
    return norm


class GatherHook(Hook):
    """Puts whole tensors into checkpoints of a sharded model."""

    def gather(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Collect weights and the optimizer's state from all processes, on the CPU of the first."""
        keep = torch.distributed.get_rank() == 0
        self.weights: dict[str, Tensor] = {}
        self.state: dict[int, dict[str, Any]] = {}
        for name, value in model.state_dict().items():
            tensor = whole(value)
            if keep:
                self.weights[name] = tensor.cpu()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            entries = {key: whole(value) for key, value in optimizer.state.get(parameter, {}).items()}
            if keep and entries:
                self.state[number] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in entries.items()}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        checkpoint["state_dict"] = self.weights
        if "optimizer" in checkpoint:
            checkpoint["optimizer"]["state"] = self.state


def scatter_optimizer_state(content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Replace the whole tensors of a checkpoint's optimizer state by this process's parts, in place."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in content["optimizer"]["state"].items():
        if number < len(parameters):
            content["optimizer"]["state"][number] = {key: like(v, parameters[number]) for key, v in entries.items()}
