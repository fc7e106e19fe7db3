"""Parameter groups: a learning rate for pretrained weights and another one for the rest."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from refseg.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NewPartsConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one more key, `paramwise_cfg.new_parts_lr_mult` (default 1).

    It multiplies the learning rate of all parameters outside `encoder`, which start without pretrained weights.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # called once per module, the outermost last; only that one has no prefix
            return
        encoder = {id(parameter) for name, parameter in module.named_parameters() if name.startswith("encoder.")}
        for group in params:
            if encoder.isdisjoint(map(id, group["params"])):
                group["lr"] = group.get("lr", self.base_lr) * self.paramwise_cfg.get("new_parts_lr_mult", 1.0)
