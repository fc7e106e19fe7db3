"""Weights of a model: reading untrusted files, comparing them with a model, loading them, and hashing them."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refseg.compat import allow_mmengine_checkpoints
from refseg.errors import CheckpointError
from refseg.files import sha256_of
from refseg.large_models import like

WEIGHT_KEYS = ("state_dict", "model", "module", "model_state_dict")  # "module" is DeepSpeed's, the last CGFormer's
COMPUTED = ("relative_position_index",)  # ends of the names of buffers that follow from a model's sizes
METADATA = "refseg"  # key in the metadata of a .safetensors file: the rest of the checkpoint, as JSON
MIN_SHARE = 0.5  # minimum share of a model's tensors for `load_from` without load_from_partial=True
_MOST_NAMES = 8  # in one message

allow_mmengine_checkpoints()


def weights_file(path: str | Path) -> Path:
    """Return the file of weights that a path means: itself, or the one in a folder of transformers."""
    path = Path(path)
    names = ("model.safetensors", "pytorch_model.bin")
    if path.is_dir():
        return next((path / name for name in names if (path / name).is_file()), path)
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a .pth, .safetensors or .pkl file, on the CPU. No code in the file is executed.

    A folder of transformers means the file of weights in it.

    Raises:
        CheckpointError: The file is missing, damaged, or holds other Python objects than weights and plain values.
    """
    path = weights_file(path)
    if not path.is_file():
        lacks = " (a folder without model.safetensors and pytorch_model.bin)" if path.is_dir() else ""
        raise CheckpointError(f"no such checkpoint: {path}{lacks}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return {**json.loads((file.metadata() or {}).get(METADATA, "{}")), "state_dict": state}
        if path.suffix == ".pkl":
            return _read_pickle(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch's own text is a page of advice with terminal codes in it
        if found := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
            reason = (
                f"it holds a Python object ({found[1]}), and loading objects can run code. Save the weights alone, "
                "with torch.save({'state_dict': model.state_dict()}, FILE) or as .safetensors"
            )
        elif "Unsupported operand" in str(error):
            reason = (
                "it is a Python pickle, not a file of torch.save. Save the weights alone, with torch.save, or, if it "
                "is a file of detectron2, name it *.pkl"
            )
        else:
            cause = ": ".join(filter(None, [type(error).__name__, _first_line(error)]))
            reason = f"it is empty, truncated, or not a checkpoint ({cause})"
        raise CheckpointError(f"{path} cannot be read as weights: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of plain values, numpy arrays and tensors, as detectron2's files have them."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # names since numpy 2, and before
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
            ("torch._utils", "_rebuild_tensor_v2"),
        ):
            return super().find_class(module, name)
        # The words of torch.load, which `read_checkpoint` looks for
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")


def _read_pickle(path: Path) -> Any:
    """Return the content of a pickle, whose arrays become tensors."""

    def with_tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tensors(inner) for key, inner in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, for the old name of its module
        return with_tensors(_ArrayUnpickler(file).load())


def inner_state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights of a checkpoint, which are under one of `WEIGHT_KEYS`, or at the top."""
    for _ in range(3):  # a pickle can hold itself
        inner = next((content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)), None)
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
            f"{path} holds no state dict. Expected tensors by name, under one of {', '.join(WEIGHT_KEYS)}, or at the "
            f"top of the file; found {culprit}"
        )
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


class _Fit:
    """Names of the tensors that a model and a state dict share, and of the others."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
        self.model, self.state, self.path = model, state, path
        own = model.state_dict().items()
        self.expected = {name: value for name, value in own if name in state or not name.endswith(COMPUTED)}
        shared = [name for name in self.expected if name in state]
        self.loaded = [name for name in shared if self.expected[name].shape == state[name].shape]
        self.mismatched = [name for name in shared if self.expected[name].shape != state[name].shape]
        self.missing = [name for name in self.expected if name not in state]
        self.unexpected = [name for name in state if name not in self.expected]

    def load(self) -> None:
        """Copy the tensors that fit into the model."""
        try:
            values = {name: like(self.state[name], self.expected[name]) for name in self.loaded}
            self.model.load_state_dict(values, strict=False)
        except RuntimeError as error:  # such as a sparse tensor, or one without storage
            raise CheckpointError(f"{self.path} holds tensors that cannot be copied ({_first_line(error)})") from None

    def shapes(self) -> str:
        """Describe the tensors whose shapes differ."""
        return _shorten(
            f"{name} has {tuple(self.state[name].shape)} in the file, {tuple(self.expected[name].shape)} in the model"
            for name in self.mismatched
        )


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of exactly this model.

    Returns:
        The checkpoint's `meta`; empty if it has none.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape. The model is unchanged then.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    load_all(model, state_dict_of(content, path), path, meta)
    return meta if isinstance(meta, dict) else {}


def load_all(model: nn.Module, state: Mapping[str, Tensor], path: str | Path, meta: Any = None) -> None:
    """Load a state dict that must have exactly the tensors of the model. `meta` helps to explain a misfit."""
    fit = _Fit(model, state, path)
    problems = []
    if fit.missing:
        problems.append(f"{len(fit.missing)} missing ({by_prefix(fit.missing, fit.expected)})")
    if fit.unexpected:
        problems.append(f"{len(fit.unexpected)} unexpected ({by_prefix(fit.unexpected, state)})")
    if fit.mismatched:
        problems.append(f"{len(fit.mismatched)} of another shape ({fit.shapes()})")
    if problems:
        origin = origin_of(meta)
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: tensors {'; '.join(problems)}. The file is of another "
            f"config, vocabulary or version of refseg{f' ({origin})' if origin else ''}: use the config beside it, or "
            "train again. A training can start from the tensors that fit: load_from. Published files of other projects "
            f"are converted: refseg convert {path} --config CONFIG --out model.safetensors"
        )
    fit.load()


def load_initial(model: nn.Module, state: Mapping[str, Tensor], path: str | Path, *, partial: bool = False) -> str:
    """Load the tensors of a state dict that fit, to start a training from them.

    Args:
        partial: Accept a share of less than `MIN_SHARE` of the model's tensors.

    Returns:
        How many tensors were loaded, and which kept their initial values.

    Raises:
        CheckpointError: Too few tensors fit. The model is unchanged then.
    """
    fit = _Fit(model, state, path)
    unfilled = fit.missing + fit.mismatched
    report = f"{len(fit.loaded)} of {len(fit.expected)} tensors loaded"
    if unfilled:
        report += f"; {len(unfilled)} kept their initial values: {by_prefix(unfilled, fit.expected)}"
    if fit.mismatched:
        report += f"; {len(fit.mismatched)} of another shape: {fit.shapes()}"
    if fit.unexpected:
        report += f"; {len(fit.unexpected)} of the file not used: {by_prefix(fit.unexpected, state)}"
    if not fit.loaded or (len(fit.loaded) < MIN_SHARE * len(fit.expected) and not partial):
        remedy = ". load_from_partial=True starts from them all the same" if fit.loaded else ""
        raise CheckpointError(
            f"load_from: {path} is not of this model ({type(model).__name__}): {report}. At least {MIN_SHARE:.0%} of "
            f"the model's tensors must be in the file{remedy}"
        )
    fit.load()
    return report


def by_prefix(names: Iterable[str], among: Iterable[str]) -> str:
    """Summarize names by the shortest prefixes that none of the other names have: "decoder (60), head.bias"."""

    def prefixes(name: str) -> list[str]:
        return list(itertools.accumulate(name.split("."), "{}.{}".format))  # "a.b.c": a, a.b, a.b.c

    names = set(names)
    taken = {prefix for other in set(among) - names for prefix in prefixes(other)}
    groups = Counter(next((prefix for prefix in prefixes(name) if prefix not in taken), name) for name in sorted(names))
    return _shorten(prefix if prefix in names else f"{prefix} ({count})" for prefix, count in groups.items())


def _shorten(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = [f"and {len(texts) - _MOST_NAMES} more"] if len(texts) > _MOST_NAMES else []
    return _printable(", ".join([*texts[:_MOST_NAMES], *more]))


def _first_line(error: Exception) -> str:
    return _printable((str(error).splitlines() or [""])[0])[:200]


def _printable(text: str) -> str:
    """Remove control characters: names come from files."""
    return "".join(sign for sign in text if sign.isprintable())


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


def names_of(sources: Iterable[str]) -> str:
    """Return the names of published weights, such as "grounding-dino-base + sam2.1-hiera-large"."""
    return " + ".join(Path(source).name for source in sources)


def describe_weights(model: nn.Module, path: str | Path | None) -> dict[str, str]:
    """Return the file of the weights, its SHA-256, and the SHA-256 of the model's tensors, for files of results.

    For a model that loads published weights itself, `path` is None and `file` has their names.
    """
    if path is None:
        return {"file": names_of(model.sources), "weights_sha256": hash_weights(model)}
    return {"file": os.fspath(path), "sha256": sha256_of(path), "weights_sha256": hash_weights(model)}


def origin_of(meta: Any) -> str:
    """Describe the training data of a checkpoint by its `meta`; empty if unknown."""
    texts = []
    for source, made in _data_sets(meta):
        text = str(source.get("file") or source.get("refs") or source.get("format"))
        texts.append(text + (f", RefShapes {made[0]}, generator version {made[1]}" if made else ""))
    return f"trained on {_shorten(texts)}" if texts else ""


def generator_versions(meta: Any) -> set[str]:
    """Return the versions of the RefShapes generator that made the data of a checkpoint's or data set's meta."""
    return {made[1] for _, made in _data_sets(meta) if made}


def _data_sets(meta: Any) -> Iterator[tuple[dict, tuple[str, str] | None]]:
    """Yield the annotations of each data set in the `meta` of an untrusted file, with preset and version of RefShapes.

    Preset and version are None for other data. Old checkpoints have none.
    """
    meta = meta.get("dataset_meta", meta) if isinstance(meta, dict) else {}
    parts = meta.get("mixture", [meta]) if isinstance(meta, dict) else []
    for part in parts if isinstance(parts, list | tuple) else []:
        if isinstance(part, dict) and isinstance(annotations := part.get("annotations"), dict):
            made = part.get("generated")
            if isinstance(made, dict):
                yield annotations, (str(made.get("preset")), str(made.get("generator_version")))
            elif str(annotations.get("file")).endswith("refshapes.jsonl"):
                yield annotations, ("of an unknown preset", "unknown")
            else:
                yield annotations, None
