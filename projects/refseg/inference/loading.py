"""From what people call a model (a config with weights, a checkpoint, a work directory) to a model that can answer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from refseg.datasets.tokenizers import with_tokenizer_files
from refseg.datasets.transforms import LoadImage
from refseg.engine import best_checkpoint, latest_checkpoint
from refseg.engine.run import RunOptions, build_model, load_config, load_weights
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.evaluation.alignment import beats_chance
from refseg.files import sha256_of
from refseg.models.segmentor import RefSegmentor
from refseg.paths import resolve_config
from refseg.registry import TRANSFORMS

ALIGNMENT = "alignment.json"  # the measurement of how well instances find their words, beside the weights
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights, the pipeline of its tests, the config, and their files.

    `aligned`: whether its weights of words were measured to find the right words better than chance
    (`measured_alignment`).
    """

    segmentor: RefSegmentor
    pipeline: list[dict]
    cfg: Config
    config: Path
    checkpoint: Path
    aligned: bool = False


def find_model(model: str | Path, weights: str | Path | None = None) -> tuple[Path, Path]:
    """Config and checkpoint.

    `model` is a config (a file, or the name of one that ships) and `weights` its checkpoint; or `model` is a checkpoint
    or a work directory alone, and the config is the one file `*.py` beside the weights. Of a work directory's weights
    the best of validation are taken, else the newest, else the only ones. What a checkpoint says of its config is never
    run.
    """
    path = Path(model)
    if path.is_dir():
        return config_beside(path), find_weights(path if weights is None else Path(weights))
    if path.suffix in WEIGHT_SUFFIXES:
        if weights is not None:
            raise UsageError(f"{model} is a checkpoint already: in front of weights there is a config")
        return config_beside(find_weights(path).parent), path
    try:
        config = resolve_config(model)
    except FileNotFoundError as error:
        raise UsageError(f"{str(model)!r} is neither a work directory nor a checkpoint, and there is {error}") from None
    if weights is None:
        raise UsageError(
            f"{model} is a config, which has no weights: name a checkpoint too (MODEL WEIGHTS), or the work directory "
            "of a training instead"
        )
    return config, find_weights(Path(weights))


def find_config(model: str | Path) -> Path:
    """Return the config of a model: `model` is a config (a file, or the name of one that ships), a checkpoint, or a
    work directory, as for `find_model`, but no weights are needed."""
    path = Path(model)
    if path.is_dir():
        return config_beside(path)
    return config_beside(find_weights(path).parent) if path.suffix in WEIGHT_SUFFIXES else resolve_config(model)


def find_weights(path: Path) -> Path:
    """A checkpoint, or that of a work directory: the best, else the newest, else the one file of weights in it."""
    if path.is_dir():
        found = best_checkpoint(path) or latest_checkpoint(path)
        if found is not None:
            return found
        others = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(others) == 1:
            return others[0]
        told = f"which of {', '.join(file.name for file in others)}?" if others else "nor any other weights"
        raise CheckpointError(f"no checkpoint in {path}: neither best_*.pth nor epoch_*.pth nor iter_*.pth; {told}")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    return path


def config_beside(folder: Path) -> Path:
    """The config that a training left in its work directory."""
    configs = sorted(folder.glob("*.py"))
    if len(configs) == 1:
        return configs[0]
    found = f"{len(configs)} configs ({', '.join(file.name for file in configs)})" if configs else "no config"
    raise CheckpointError(f"{found} in {folder}: name the config, and the checkpoint as its weights")


def test_pipeline(cfg: Config) -> list[dict]:
    """What the config does to an image and its phrases before the model sees them."""
    for key in ("test_dataloader", "val_dataloader"):
        dataset = (cfg.get(key) or {}).get("dataset") or {}
        dataset = (dataset.get("datasets") or [dataset])[0]
        if dataset.get("pipeline"):
            return [dict(transform) for transform in dataset["pipeline"]]
    raise ConfigError(f"{cfg.filename}: neither test_dataloader nor val_dataloader has a pipeline")


def build_transforms(pipeline: Sequence[dict]) -> list[Callable[[Any], Any]]:
    """Of a test pipeline. The first one reads the image's file, the others do not know where an image is from."""
    built = [TRANSFORMS.build(dict(transform)) for transform in pipeline]
    if not built or not isinstance(built[0], LoadImage):
        raise ConfigError("the config's test pipeline must begin with LoadImage")
    return built


def load_model(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """`device`: by default the GPU where there is one."""
    config, checkpoint = find_model(model, weights)
    cfg = load_config(str(config), RunOptions(cfg_options=dict(cfg_options or {})))
    where = find_device(device)
    segmentor = build_model(cfg)
    if not isinstance(segmentor, RefSegmentor):
        raise ConfigError(f"{config}: {type(segmentor).__name__} is no RefSegmentor, which predict needs")
    load_weights(segmentor, checkpoint)
    pipeline = with_tokenizer_files(checkpoint.parent, test_pipeline(cfg))
    return LoadedModel(
        segmentor.to(where).eval(), pipeline, cfg, config, checkpoint, aligned=measured_alignment(checkpoint)
    )


def measured_alignment(checkpoint: Path) -> bool:
    """Whether `alignment.json` beside a checkpoint says that its instances find their words better than chance.

    The file is what `refseg score PREDICTIONS --alignment --json` writes for predictions of these very weights;
    `refseg quickstart` leaves one. A file of other weights says nothing.
    """
    try:
        measured = json.loads((checkpoint.parent / ALIGNMENT).read_text(encoding="utf-8"))
        scores, made_with = measured["alignment"]["all words"], measured["predictions"]["header"]["checkpoint"]
        return beats_chance(scores) and made_with["sha256"] == sha256_of(checkpoint)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{checkpoint.parent / ALIGNMENT} is ignored: not what `refseg score --alignment --json` writes "
                      f"({type(error).__name__}: {error})", stacklevel=2)  # fmt: skip
        return False


def find_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"no such device: {device!r}; there are 'cpu', 'cuda', 'cuda:1', ...") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {device!r}: PyTorch sees {torch.cuda.device_count()} GPUs here. Use 'cpu', or see `refseg doctor`"
        )
    return found
