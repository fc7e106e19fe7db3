"""Checks that something reads every key of a config, and that its values have the right types. mmengine accepts typos.

`unknown_keys(cfg)` compares each dict with the signature of the class that it builds. Names that start with `_` are
helper variables of a config file. Groups without a `type` are compared with the `config_groups` of a class (models), or
are checked by the functions that they configure (text model, tokenizer).
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NoReturn

import mmengine.registry as root
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from refseg import registry
from refseg.datasets.tokenizers import VOCABULARIES
from refseg.errors import ConfigError

_TOP_LEVEL = {  # keys of a config besides the arguments of mmengine's Runner
    *("compile", "efficient_conv_bn_eval", "find_unused_parameters", "fsdp", "gradient_checkpointing"),
    *("model_wrapper_cfg", "sync_bn", "wandb", "load_from_partial", "custom_imports", "inputs"),
}
_LOADER = {"dataset", "collate_fn", "worker_init_fn", "num_batch_per_epoch", "disable_subprocess_warning"}
_PLAIN_GROUPS = {
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "env_cfg.mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "env_cfg.dist_cfg": {"backend", "timeout", "init_backend", "init_method", "device_id"},
    "randomness": {"seed", "deterministic", "diff_rank_seed"},
    "auto_scale_lr": {"enable", "base_batch_size"},
    "custom_imports": {"imports", "allow_failed_imports"},
}
_PARAMWISE = {
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult"),
    *("bypass_duplicate", "dcn_offset_lr_mult"),
}
_WORDS = {  # in the order in which a message lists them
    int: "a whole number", float: "a number", bool: "True or False", str: "a string", tuple: "several values",
    dict: "a dict, such as dict(type=...)", Mapping: "a dict",
}  # fmt: skip


def find_class(type_name: Any) -> Any:
    """Return the class or function of a `type` from any registry; None if no registry has it."""
    if not isinstance(type_name, str):
        return type_name
    names = [name for name in dir(root) if name.isupper() and isinstance(getattr(root, name), Registry)]
    names.sort(key=lambda name: name != "MODELS")  # a model's parts import no other registry's modules
    candidates = (getattr(registry, name, getattr(root, name)).get(type_name) for name in names)
    return next((found for found in candidates if found is not None), None)


def accepted_names(target: Any) -> set[str] | None:
    """Return the keywords of a class or function, including its parents' if it has `**kwargs`; None for any keyword."""
    if not inspect.isclass(target):
        parameters = inspect.signature(target).parameters.values()
        return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}
    names: set[str] = set()
    for cls in target.__mro__[:-1]:  # without object
        if "__init__" in cls.__dict__:
            parameters = inspect.signature(cls.__init__).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names - {"self"}


def expected(target: Any, key: str, value: Any) -> str:
    """Describe the type that a constructor expects if the value clearly has another one, such as "fast" for a number.

    Return "" for values other than strings, numbers, and dicts, and for annotations that allow the value.
    """
    # Find the annotation of the argument, in the class or a parent.
    functions = [vars(cls).get("__init__") for cls in target.__mro__] if inspect.isclass(target) else [target]
    function = next((f for f in functions if key in getattr(f, "__annotations__", {})), None)
    try:
        hint = typing.get_type_hints(function)[key] if function else Any
    except Exception:  # a name that is imported for type checkers only
        return ""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)

    # A Literal lists the valid values.
    choices = [member for member in members if typing.get_origin(member) is Literal]
    literals = [option for member in choices for option in typing.get_args(member)]
    if literals and value not in (None, *literals) and isinstance(value, str | int | float):
        others = set(members) - set(choices) - {type(None)}
        return "" if others else f"one of {', '.join(map(repr, literals))}"

    # Other annotations are compared with the kind of value.
    kinds = {typing.get_origin(member) or member for member in members} - {type(None)}
    impossible: set[Any] = set()
    if isinstance(value, str):
        impossible = {int, float, bool, dict, Mapping, tuple, torch.Tensor}
    elif isinstance(value, float):
        impossible = {int, bool, dict, Mapping}
    elif isinstance(value, int) and not isinstance(value, bool):
        impossible = {dict, Mapping}
    elif isinstance(value, dict):
        impossible = {int, float, bool, str}
    return " or ".join(words for kind, words in _WORDS.items() if kind in kinds) if kinds <= impossible else ""


def _unknown(cfg: Iterable[str], path: str, known: set[str], reader: str) -> Iterator[str]:
    """Yield a complaint about every key that is not known."""
    for key in cfg:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            names = ", ".join(sorted(name for name in known if not name.startswith("_")))
            hint = f"did you mean {close[0]!r}?" if close else f"known: {names}"
            if path and "type" in cfg:
                hint += f" (a key that is left of another type goes with {path}._delete_=True)"
            yield f"{path + '.' if path else ''}{key}: {reader} does not read this key; {hint}"


def _typed(cfg: Any, path: str, extra: Iterable[str] = ()) -> Iterator[str]:
    """Yield complaints about a dict with `type`, and about everything below it."""
    if isinstance(cfg, list | tuple):
        for number, item in enumerate(cfg):
            yield from _typed(item, f"{path}[{number}]", extra)
        return
    if not isinstance(cfg, dict):
        return
    if "type" in cfg:
        target = find_class(cfg["type"])
        if target is None:
            yield (
                f"{path}.type: nothing is registered as {cfg['type']!r}. To import a module of your own, set "
                "custom_imports=dict(imports=['my_module'])"
            )
            return
        # The dict itself, and its groups without a type.
        groups = {key: group for key, group in getattr(target, "config_groups", {}).items() if key in cfg}
        parts = [(cfg, path, target, {"type", "_scope_", *extra})]
        parts += [(cfg[key], f"{path}.{key}", group, set()) for key, group in groups.items()]
        for part, place, reader, more in parts:
            if isinstance(part, dict):
                name, known = getattr(reader, "__name__", str(reader)), accepted_names(reader)
                yield from _unknown(part, place, known | more if known is not None else set(part), name)
                for key, value in part.items():
                    if key not in ("type", "_scope_") and (wanted := expected(reader, key, value)):
                        yield f"{place}.{key}: {name} expects {wanted}, not {value!r}"
    for key, value in cfg.items():
        if key != "paramwise_cfg":
            yield from _typed(value, f"{path}.{key}")


def _loader(cfg: dict, path: str) -> Iterator[str]:
    known = set(inspect.signature(DataLoader).parameters) | _LOADER
    yield from _unknown(cfg, path, known, "the data loader")
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        value = cfg.get(key, least)
        if not isinstance(value, int) or value < least:
            yield f"{path}.{key} must be a whole number of at least {least}, not {value!r}"
    if cfg.get("persistent_workers") and cfg.get("num_workers", 0) == 0:
        yield f"{path}.persistent_workers=True needs num_workers of at least 1; set it to False for num_workers=0"
    for key, value in cfg.items():
        yield from _typed(value, f"{path}.{key}")


def _optim_wrapper(cfg: dict) -> Iterator[str]:
    path = "optim_wrapper"
    yield from _typed({"type": "GuardedOptimWrapper", **cfg}, path, {"constructor", "paramwise_cfg"})
    known = {
        None: _PARAMWISE,
        "EncoderRatesConstructor": _PARAMWISE | {"encoder_lr_mult", "new_parts_lr_mult", "layer_decay"},
        "MuonConstructor": _PARAMWISE | {"encoder_lr_mult", "new_parts_lr_mult", "layer_decay"},
    }
    if (constructor := cfg.get("constructor")) in known:
        path, paramwise = f"{path}.paramwise_cfg", cfg.get("paramwise_cfg") or {}
        yield from _unknown(paramwise, path, known[constructor], "the optimizer constructor")
        for name, group in paramwise.get("custom_keys", {}).items():
            yield from _unknown(group, f"{path}.custom_keys[{name!r}]", {"lr_mult", "decay_mult"}, "a parameter group")


def unknown_keys(cfg: Any) -> list[str]:
    """Return a sentence for every unknown key, with the closest known name, and for every unsuitable value."""
    top = set(inspect.signature(Runner).parameters) - {"cfg"} | _TOP_LEVEL
    complaints: list[str] = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", registry.SCOPE)):
        for key, value in cfg.items():
            if key.startswith("_"):
                continue
            complaints += _unknown([key], "", top, "the runner")
            if key not in top or value is None:
                continue
            if key.endswith("_dataloader"):
                complaints += _loader(value, key)
            elif key == "optim_wrapper":
                complaints += _optim_wrapper(value)
            elif key == "param_scheduler":
                schedule = value if isinstance(value, list) else [value]
                complaints += _typed(schedule, key, {"convert_to_iter_based"})
            elif key == "log_processor":
                complaints += _typed({"type": "LogProcessor", **value}, key)
            else:
                complaints += _typed(value, key)
    for path, known in _PLAIN_GROUPS.items():
        group: Any = cfg
        for part in path.split("."):
            group = (group or {}).get(part)
        complaints += _unknown(group or {}, path, known, path.split(".")[-1])
    return complaints


def check_config(cfg: Any) -> None:
    """Raise a ConfigError with all complaints."""
    if complaints := unknown_keys(cfg):
        _refuse(cfg, complaints)


def _refuse(cfg: Any, complaints: Iterable[str]) -> NoReturn:
    lines = "\n  ".join(complaints)
    raise ConfigError(f"{cfg.filename or 'config'}: keys or values that cannot be used\n  {lines}")


def merge_options(cfg: Any, options: Mapping[str, Any]) -> None:
    """Apply `--cfg-options`. An option that does not fit the config raises a ConfigError that names its key."""
    for key, value in options.items():
        before: Any = cfg._cfg_dict
        parts = key.split(".")
        for number, part in enumerate(parts):
            place = ".".join(parts[:number])
            if isinstance(before, list | tuple):
                if not part.isdigit() or int(part) >= len(before):
                    raise ConfigError(f"{key}: {part!r} is no item of {place}, which has items 0 to {len(before) - 1}")
                before = before[int(part)]
            elif isinstance(before, Mapping):
                before = before.get(part)
            elif before is None:
                break
            else:
                raise ConfigError(
                    f"{key}: {place} is {before!r} here, which has no keys. Replace it as a whole in a config of your "
                    f"own: {parts[number - 1]}=dict(...)"
                )
        else:
            if isinstance(before, Mapping) and "type" in before and not isinstance(value, Mapping | None):
                raise ConfigError(
                    f"{key} is a dict (type={before['type']}), which {value!r} cannot replace. Change its keys, as in "
                    f"{key}.KEY=VALUE, or replace it in a config of your own: "
                    f"{parts[-1]}=dict(_delete_=True, type=..., ...)"
                )
    try:
        cfg.merge_from_dict(dict(options))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"--cfg-options {' '.join(options)}: {str(error).strip()}") from None


def complete_inputs(cfg: Any, options: Iterable[str] = ()) -> None:
    """Fill in the tokenizers and image sizes that the pipelines of a config leave open, in place.

    The model's file gives them: `inputs = dict(tokenizer=..., image_size=...)`. A pipeline's own values win. If the
    model's text encoder is pretrained, its tokenizer then takes the place of any other, so that another text encoder is
    one change. `inputs = dict(raw=True)` is for models that resize and tokenize themselves: a bare `Resize` is
    dropped, and a bare `LoadText` becomes `RawText`. `inputs` is removed from the config, whose pipelines are complete
    without it.

    Args:
        cfg: A config with its options applied.
        options: Keys of `--cfg-options`. One of `inputs` that no pipeline takes is an error.

    Raises:
        ConfigError: A pipeline has no tokenizer or size, or a key of `inputs` is unknown or was set in vain.
    """
    inputs = cfg.pop("inputs", None) or {}
    if not isinstance(inputs, dict) or not isinstance(inputs.get("tokenizer") or {}, dict):
        wanted = "dict(tokenizer=dict(...), image_size=(height, width))"
        raise ConfigError(f"{cfg.filename or 'config'}: inputs must be {wanted}, not {inputs!r}")
    complaints = list(_unknown(inputs, "inputs", {"tokenizer", "image_size", "raw"}, "the model's inputs"))
    models = dicts_with(cfg.get("model"), "pretrained")
    encoders = {part["pretrained"] for part in models if part.get("type") == "TextEncoder"}
    encoders.discard(None)
    encoder = encoders.pop() if len(encoders) == 1 else None
    taken = set()
    for key, section in cfg.items():
        for part in dicts_with(section, "pipeline") if inputs.get("raw") else ():
            part["pipeline"] = [
                ConfigDict(type="RawText") if step == dict(type="LoadText") else step
                for step in part["pipeline"]
                if step != dict(type="Resize")
            ]
        for step in dicts_with(section, "type"):
            kind = str(step["type"]).rpartition(".")[2]  # refseg.Resize is Resize
            if kind == "Resize" and "size" not in step and "image_size" in inputs:
                step["size"] = inputs["image_size"]
                taken.add("inputs.image_size")
            explicit = step.get("tokenizer") or {}
            if kind == "LoadText" and isinstance(explicit, dict):
                defaults = inputs.get("tokenizer") or {}
                if any(explicit.get(name) for name in VOCABULARIES):  # one vocabulary takes the place of another
                    defaults = {name: value for name, value in defaults.items() if name not in VOCABULARIES}
                taken |= {f"inputs.tokenizer.{name}" for name in defaults if name not in explicit}
                step["tokenizer"] = ConfigDict({**defaults, **explicit})
                if encoder:  # its weights belong to its own tokens
                    for name in VOCABULARIES:
                        step["tokenizer"].pop(name, None)
                    step["tokenizer"]["pretrained"] = encoder
            missing = {"Resize": "size", "LoadText": "tokenizer"}.get(kind)
            if missing and not step.get(missing) and not key.startswith("_"):
                name = "image_size" if missing == "size" else missing
                complaints.append(f"{key}: {kind} has no {missing}; set inputs=dict({name}=...) beside the model")
    complaints += [
        f"{option}: every pipeline has its own. Change {{train,val,test}}_dataloader.dataset.pipeline.N instead"
        for option in options
        if option.startswith("inputs.") and not any(name.startswith(option) for name in taken)
    ]
    if complaints:
        _refuse(cfg, dict.fromkeys(complaints))


def dicts_with(config: Any, key: str) -> Iterator[dict]:
    """Yield every dict of a config that has the key."""
    if isinstance(config, dict):
        if key in config:
            yield config
        config = list(config.values())
    for value in config if isinstance(config, list | tuple) else ():
        yield from dicts_with(value, key)


def method_and_data(file: Any) -> tuple[str, str]:
    """Return the model class and the training data of a config file: ("InstAlign", "gRefCOCO")."""
    from refseg.datasets.catalog import SETS
    from refseg.engine.run import read_config

    titles = {f"data/{known.refs}": known.title for known in SETS.values()}
    cfg = read_config(file)
    dataset = cfg.train_dataloader.dataset
    files = [part.annotations.get("refs") or part.annotations.file for part in dataset.get("datasets") or [dataset]]
    return cfg.model.type, "; ".join(dict.fromkeys(titles.get(name, name) for name in files))
