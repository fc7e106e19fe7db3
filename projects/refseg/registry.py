"""Child registries of mmengine's registries, with the scope `refseg`.

A config with `default_scope = 'refseg'` finds components of refseg and mmengine by name, and those of other packages by
prefix: `type='mmdet.FPN'`, `type='mmseg.ResNetV1c'`. Every root registry has a child, because mmengine warns about each
missing one.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmengine import registry as _root
from mmengine.registry import Registry, build_from_cfg, build_model_from_cfg

from refseg.models import MODULES

SCOPE = "refseg"


def _in_own_scope(build: Callable) -> Callable:
    """Build a component of another package in that package's scope, so that it finds the parts that it names without a
    prefix: `mmseg.FCNHead` needs a `CrossEntropyLoss`."""

    def build_in_own_scope(cfg: dict, registry: Registry, *args: Any, **kwargs: Any) -> Any:
        name = cfg.get("type") if isinstance(cfg, dict) else None
        scope = name.split(".")[0] if isinstance(name, str) and "." in name else SCOPE
        if scope != SCOPE and "_scope_" not in cfg:
            cfg = {"_scope_": scope, **cfg}
        return build(cfg, registry, *args, **kwargs)

    return build_in_own_scope


def _child(parent: Registry, *locations: str, build: Callable | None = None) -> Registry:
    places = [f"refseg.{name}" for name in locations]
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=places, build_func=build)


class _ModelRegistry(Registry):
    """A registry that imports only the module of the model that is asked for."""

    def get(self, key: str) -> Any:
        name = key.removeprefix(f"{SCOPE}.")
        if name in MODULES:
            import_module(f"refseg.models.{MODULES[name]}")
        return super().get(key)


DATASETS = _child(_root.DATASETS, "datasets.dataset")
DATA_SAMPLERS = _child(_root.DATA_SAMPLERS, "datasets.samplers")
FUNCTIONS = _child(_root.FUNCTIONS, "datasets.collate")
TRANSFORMS = _child(_root.TRANSFORMS, "datasets.transforms")

MODELS = _ModelRegistry(
    "model",
    parent=_root.MODELS,
    scope=SCOPE,
    locations=["refseg.models"],
    build_func=_in_own_scope(build_model_from_cfg),
)
MODEL_WRAPPERS = _child(_root.MODEL_WRAPPERS, "models")
TASK_UTILS = _child(_root.TASK_UTILS, "models", build=_in_own_scope(build_from_cfg))
WEIGHT_INITIALIZERS = _child(_root.WEIGHT_INITIALIZERS, "models")

EVALUATOR = _child(_root.EVALUATOR, "evaluation.metrics")
METRICS = _child(_root.METRICS, "evaluation.metrics")

HOOKS = _child(_root.HOOKS, "engine")
LOG_PROCESSORS = _child(_root.LOG_PROCESSORS, "engine")
LOOPS = _child(_root.LOOPS, "engine")
OPTIMIZERS = _child(_root.OPTIMIZERS, "engine")
OPTIM_WRAPPERS = _child(_root.OPTIM_WRAPPERS, "engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child(_root.OPTIM_WRAPPER_CONSTRUCTORS, "engine")
PARAM_SCHEDULERS = _child(_root.PARAM_SCHEDULERS, "engine")
RUNNERS = _child(_root.RUNNERS, "engine")
RUNNER_CONSTRUCTORS = _child(_root.RUNNER_CONSTRUCTORS, "engine")
STRATEGIES = _child(_root.STRATEGIES, "engine")
VISBACKENDS = _child(_root.VISBACKENDS, "engine")
VISUALIZERS = _child(_root.VISUALIZERS, "engine")

INFERENCERS = _child(_root.INFERENCERS, "inference")
