"""Muon (Jordan et al. 2024), for training from random weights.

The gradient of a random linear map or convolution is much larger along a few directions, which are therefore learned
first. Muon steps along all directions alike: its step is the matrix nearest to the momentum whose singular values are
all 1.

torch.optim.Muon needs PyTorch 2.9, takes matrices only, one after another, and computes in bf16. Here, convolutions
count as matrices, and matrices of one shape are computed together, in fp32. All other parameters take AdamW's step in
the same optimizer, so one schedule and one checkpoint cover everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from refseg.engine.param_groups import EncoderRatesConstructor
from refseg.lora import lora_parameters
from refseg.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of a quintic; singular values become 0.7 to 1.2
ORTHOGONAL = (nn.Linear, nn.Conv2d)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (n, rows, columns) with the same singular vectors, and with singular values of about 1.

    The polynomials are multiplied with each other first, and their product with the matrix. All but the first and the
    last product are thus square, of the smaller of the two sizes.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    gram, total = x @ x.transpose(1, 2), None
    for step in range(steps):
        quintic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        quintic.diagonal(dim1=1, dim2=2).add_(a)
        total = quintic if total is None else quintic @ total
        if step < steps - 1:
            gram = quintic @ gram @ quintic
    x = x if total is None else total @ x
    return x.transpose(1, 2) if tall else x


@OPTIMIZERS.register_module(name="MuonAdamW")
class MuonAdamW(torch.optim.Optimizer):
    """Muon with Nesterov momentum for parameter groups with `orthogonal`, and AdamW for the others.

    Args:
        lr: Learning rate of both. A step of Muon has the size of an AdamW step with `muon_lr_ratio` times this rate.
        muon_lr_ratio: Size of Muon's steps relative to AdamW's; 5 was better than 12 (docs/results/instalign.md).
        momentum: Momentum of Muon.
        betas: Decay rates of AdamW.
        eps: Constant of AdamW that avoids division by zero.
        weight_decay: Weight decay of both.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        muon_lr_ratio: float = 5.0,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                muon_lr_ratio=muon_lr_ratio,
                momentum=momentum,
                betas=tuple(betas),
                eps=eps,
                weight_decay=weight_decay,
                orthogonal=False,
            ),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        alike: dict[tuple, list[tuple[dict, nn.Parameter]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["orthogonal"]:
                    alike[(parameter.shape, parameter.device, parameter.dtype)].append((group, parameter))
                else:
                    self._adamw(group, parameter)
        for members in alike.values():
            self._muon(members)
        return loss

    def _muon(self, members: list[tuple[dict, nn.Parameter]]) -> None:
        """Update parameters of one shape together."""
        momenta = []
        for group, parameter in members:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            momenta.append(parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
        steps = orthogonalized(torch.stack(momenta).float())
        size = 0.2 * max(steps.shape[1:]) ** 0.5  # the root mean square of AdamW's steps is about 0.2
        for (group, parameter), step in zip(members, steps, strict=True):
            lr = group["lr"] * group["muon_lr_ratio"]
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(step.view_as(parameter).to(parameter.dtype), alpha=-lr * size)

    def _adamw(self, group: dict, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta1)
        state["square"].lerp_(parameter.grad.square(), 1 - beta2)
        scale = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1 ** state["step"]))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MuonConstructor(EncoderRatesConstructor):
    """`EncoderRatesConstructor` for `MuonAdamW`. Weights of linear maps and convolutions are `orthogonal`; learnable
    queries, embeddings, biases, and norms are not. Neither are the two factors of what LoRA adds to a weight: Muon
    evens out the step of a weight, and steps that are even for two factors are not for their product."""

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # mmengine makes parameter groups only if there is a setting; this one changes nothing
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(bias_lr_mult=1.0))

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # called once per module, the outermost last; only that one has no prefix
            return
        weights = {id(part.weight) for part in module.modules() if isinstance(part, ORTHOGONAL)}
        weights -= lora_parameters(module)
        for group in params:
            group["orthogonal"] = all(id(parameter) in weights for parameter in group["params"])
