"""Weights of a model: reading untrusted files, comparing them with a model, loading them, and hashing them."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refseg.compat import allow_mmengine_checkpoints
from refseg.errors import CheckpointError
from refseg.files import sha256_of

MIN_SHARE = 0.5  # minimum share of a model's tensors for `load_from` without load_from_partial=True
_MOST_NAMES = 8  # in one message

allow_mmengine_checkpoints()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a .pth or .safetensors file, on the CPU. No code in the file is executed.

    Raises:
        CheckpointError: The file is missing, damaged, or holds other Python objects than weights and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {"state_dict": load_file(path)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {_what_is_wrong(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _what_is_wrong(error: Exception) -> str:
    """Say in one sentence why a file was refused. torch's own text is a page of advice with terminal codes in it."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL ([\w.]+)", text):
        return (
            f"it holds a Python object ({found[1]}), and loading objects can run code. Save the weights alone, with "
            "torch.save({'state_dict': model.state_dict()}, FILE) or as .safetensors"
        )
    if "Unsupported operand" in text:
        return "it is a Python pickle, not a file of torch.save. Save the weights alone, with torch.save"
    reason = ": ".join(filter(None, [type(error).__name__, _first_line(error)]))
    return f"it is empty, truncated, or not a checkpoint ({reason})"


def inner_state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights of a checkpoint, which are under `model`, under `state_dict`, or at the top."""
    for _ in range(3):  # a pickle can hold itself
        inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def state_dict_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name, without the prefix of a DistributedDataParallel."""
    state = inner_state(content)
    strangers = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strangers or not state:
        culprit = f"{str(strangers[0])[:60]!r}, which is no tensor" if strangers else "nothing"
        raise CheckpointError(
            f"{path} holds no state dict. Expected tensors by name, under 'state_dict', 'model' or at the top of the "
            f"file; found {culprit}"
        )
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Names of the tensors that a model and a state dict share, and of the others."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    model: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, state: Mapping[str, Tensor]) -> _Fit:
        expected = model.state_dict()
        shared = [name for name in expected if name in state]
        mismatched = [name for name in shared if expected[name].shape != state[name].shape]
        loaded = [name for name in shared if expected[name].shape == state[name].shape]
        missing = [name for name in expected if name not in state]
        unexpected = [name for name in state if name not in expected]
        return cls(loaded, missing, unexpected, mismatched, expected, state)

    def load_into(self, model: nn.Module, path: str | Path) -> None:
        try:
            model.load_state_dict({name: self.state[name] for name in self.loaded}, strict=False)
        except RuntimeError as error:  # such as a sparse tensor, or one without storage
            raise CheckpointError(f"{path} holds tensors that cannot be copied ({_first_line(error)})") from None

    def shapes(self) -> str:
        """Describe the tensors whose shapes differ."""
        texts = [
            f"{name} has {tuple(self.state[name].shape)} in the file, {tuple(self.model[name].shape)} in the model"
            for name in self.mismatched
        ]
        return _shorten(texts)


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of exactly this model.

    Returns:
        The checkpoint's `meta`; empty if it has none.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape. The model is unchanged then.
    """
    content = read_checkpoint(path)
    load_all(model, state_dict_of(content, path), path, content.get("meta"))
    meta = content.get("meta")
    return meta if isinstance(meta, dict) else {}


def load_all(model: nn.Module, state: Mapping[str, Tensor], path: str | Path, meta: Any = None) -> None:
    """Load a state dict that must have exactly the tensors of the model. `meta` helps to explain a misfit."""
    fit = _Fit.of(model, state)
    problems = []
    if fit.missing:
        problems.append(f"{len(fit.missing)} missing ({by_prefix(fit.missing, fit.model)})")
    if fit.unexpected:
        problems.append(f"{len(fit.unexpected)} unexpected ({by_prefix(fit.unexpected, state)})")
    if fit.mismatched:
        problems.append(f"{len(fit.mismatched)} of another shape ({fit.shapes()})")
    if problems:
        origin = origin_of(meta)
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: tensors {'; '.join(problems)}. The file is of another "
            f"config, vocabulary or version of refseg{f' ({origin})' if origin else ''}: use the config beside it, or "
            "train again. A training can start from the tensors that fit: load_from"
        )
    fit.load_into(model, path)


def load_initial(model: nn.Module, state: Mapping[str, Tensor], path: str | Path, *, partial: bool = False) -> str:
    """Load the tensors of a state dict that fit, to start a training from them.

    Args:
        partial: Accept a share of less than `MIN_SHARE` of the model's tensors.

    Returns:
        How many tensors were loaded, and which kept their initial values.

    Raises:
        CheckpointError: Too few tensors fit. The model is unchanged then.
    """
    fit = _Fit.of(model, state)
    unfilled = fit.missing + fit.mismatched
    report = f"{len(fit.loaded)} of {len(fit.model)} tensors loaded"
    if unfilled:
        report += f"; {len(unfilled)} kept their initial values: {by_prefix(unfilled, fit.model)}"
    if fit.mismatched:
        report += f"; {len(fit.mismatched)} of another shape: {fit.shapes()}"
    if fit.unexpected:
        report += f"; {len(fit.unexpected)} of the file not used: {by_prefix(fit.unexpected, state)}"
    if not fit.loaded or (len(fit.loaded) < MIN_SHARE * len(fit.model) and not partial):
        remedy = ". load_from_partial=True starts from them all the same" if fit.loaded else ""
        raise CheckpointError(
            f"load_from: {path} is not of this model ({type(model).__name__}): {report}. At least {MIN_SHARE:.0%} of "
            f"the model's tensors must be in the file{remedy}"
        )
    fit.load_into(model, path)
    return report


def by_prefix(names: Iterable[str], among: Iterable[str]) -> str:
    """Summarize names by the shortest prefixes that none of the other names have: "decoder (60), head.bias"."""
    names = set(names)
    others = set(among) - names
    taken = others | {name[:end] for name in others for end in _dots(name)}
    groups = Counter(
        next((name[:end] for end in _dots(name) if name[:end] not in taken), name) for name in sorted(names)
    )
    return _shorten([prefix if prefix in names else f"{prefix} ({count})" for prefix, count in groups.items()])


def _dots(name: str) -> list[int]:
    return [found.start() for found in re.finditer(r"\.", name)]


def _shorten(texts: list[str]) -> str:
    more = len(texts) - _MOST_NAMES
    shown = ", ".join([*texts[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])])
    return "".join(sign for sign in shown if sign.isprintable())  # names come from files


def _first_line(error: Exception) -> str:
    return "".join(sign for sign in (str(error).splitlines() or [""])[0] if sign.isprintable())[:200]


# Origin of results ----------------------------------------------------------------------------------------------------


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensors, whatever kind of file they came from.

    It covers name, dtype, shape, and bytes of the entries of the state dict, ordered by name.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Return the file of the weights, its SHA-256, and the SHA-256 of the model's tensors, for files of results."""
    return {"file": os.fspath(path), "sha256": sha256_of(path), "weights_sha256": hash_weights(model)}


def origin_of(meta: Any) -> str:
    """Describe the training data of a checkpoint by its `meta`; empty if unknown."""
    texts = []
    for part in _data_sets(meta):
        annotations = part["annotations"]
        text = str(annotations.get("file") or annotations.get("refs") or annotations.get("format"))
        if (made := _generated(part)) is not None:
            text += f", RefShapes {made[0]}, generator version {made[1]}"
        texts.append(text)
    return f"trained on {_shorten(texts)}" if texts else ""


def generator_versions(meta: Any) -> set[str]:
    """Return the versions of the RefShapes generator that made the data of a checkpoint's or data set's meta."""
    return {made[1] for part in _data_sets(meta) if (made := _generated(part)) is not None}


def _data_sets(meta: Any) -> list[dict[str, Any]]:
    """Return the data sets in the `meta` of an untrusted file."""
    meta = meta.get("dataset_meta", meta) if isinstance(meta, dict) else {}
    parts = meta.get("mixture", [meta]) if isinstance(meta, dict) else []
    known = parts if isinstance(parts, list | tuple) else []
    return [part for part in known if isinstance(part, dict) and isinstance(part.get("annotations"), dict)]


def _generated(part: dict[str, Any]) -> tuple[str, str] | None:
    """Return preset and generator version of RefShapes; None for other data. Old checkpoints have no version."""
    made = part.get("generated")
    if isinstance(made, dict):
        return str(made.get("preset")), str(made.get("generator_version"))
    if str(part["annotations"].get("file")).endswith("refshapes.jsonl"):
        return "of an unknown preset", "unknown"
    return None
