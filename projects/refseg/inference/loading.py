"""Resolve and load a model from a config, checkpoint, or work directory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from refseg.config_check import check_config, complete_inputs, merge_options
from refseg.datasets.tokenizers import with_tokenizer_files
from refseg.datasets.transforms import LoadImage
from refseg.engine.checkpoint import best_checkpoint, latest_checkpoint
from refseg.engine.run import build_model, load_weights, read_config, with_processor
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.files import sha256_of
from refseg.inference.hub import hub_folder, is_hub_name
from refseg.json_config import CONFIG, name_of_config
from refseg.known_models import KNOWN_MODELS, own_models, suggest_model
from refseg.models.segmentor import RefSegmentor
from refseg.paths import resolve_config
from refseg.registry import MODELS, TRANSFORMS
from refseg.shipped import WEIGHTS, model_note, shipped_model
from refseg.weights import names_of

ALIGNMENT = "alignment.json"  # beside the weights: how well the model's instances point to their words
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
GRAPH_SUFFIX = ".onnx"  # of models that `refseg export` wrote: their config names the graphs


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights.

    Args:
        segmentor: The model, in evaluation mode.
        pipeline: The transforms of its test data.
        cfg: Its config.
        config: File of the config.
        checkpoint: File of the weights; None for a model that brings its own.
        aligned: Whether the instances' word weights were measured to point to the right words better than chance.
    """

    segmentor: RefSegmentor
    pipeline: list[dict]
    cfg: Config
    config: Path
    checkpoint: Path | None
    aligned: bool = False

    @property
    def name(self) -> str:
        """The name of the config, of the model folder, or of the model on the hub."""
        return name_of_config(self.config)

    @property
    def note(self) -> str:
        """A note for users about the model; empty unless it is the one that ships with refseg."""
        return "" if self.checkpoint is None else model_note(self.checkpoint)

    @property
    def weights_name(self) -> str:
        """The name of the checkpoint, or those of the weights that the model brings."""
        return names_of(self.segmentor.sources) if self.checkpoint is None else self.checkpoint.name


def find_model(model: str | Path, weights: str | Path | None = None) -> tuple[Path, Path | None]:
    """Find the config and the checkpoint of a model. The config that a checkpoint contains is never run.

    Args:
        model: A name that `refseg models` lists, a config (a file, or the name of one that ships) with `weights`, or a
            checkpoint, a work directory, a model folder, a name on the hub ("user/model"), or a folder or graph of
            `refseg export` alone. The config of the latter is the `config.json` in the folder, else the only `*.py`
            file.
        weights: A checkpoint, or a work directory with its best, newest or only one.

    Returns:
        The config, and the checkpoint; None for a model that loads published weights itself.
    """
    path = _place_of(model)
    if path.suffix == GRAPH_SUFFIX:
        path = find_weights(path).parent
    if path.is_dir():
        config = find_config(path)
        if weights is None and any(path.glob(f"*{GRAPH_SUFFIX}")) and brings_weights(read_config(config)):
            return config, None
        return config, find_weights(path if weights is None else Path(weights))
    if path.suffix in WEIGHT_SUFFIXES:
        if weights is not None:
            raise UsageError(f"{model} is already a checkpoint. Pass a config file when you give WEIGHTS separately.")
        return find_config(path), path
    config = _config_named(model)
    if weights is None:
        if brings_weights(read_config(config)):
            return config, None
        raise UsageError(
            f"{model} is a config without weights. Pass a checkpoint too (MODEL WEIGHTS), or pass the work directory "
            "of a training instead."
        )
    return config, find_weights(Path(weights))


def _place_of(model: str | Path) -> Path:
    """Return the folder of a model that has a name, here or on the hub; the path itself for anything else."""
    path = shipped_model(model) or own_models().get(str(model)) or Path(model)
    if path.exists() or not is_hub_name(model):
        return path
    try:
        resolve_config(model)
        return path
    except FileNotFoundError as error:
        missing = _unknown_model(model, error)
    try:
        return hub_folder(str(model))
    except CheckpointError as error:
        raise CheckpointError(f"{missing} As a name on the hub: {error}") from None


def _config_named(model: str | Path) -> Path:
    """Return the config of a known model, or of that path or name."""
    known = KNOWN_MODELS.get(str(model))
    try:
        return resolve_config(known.config if known else model)
    except FileNotFoundError as error:
        raise UsageError(_unknown_model(model, error)) from None


def _unknown_model(model: str | Path, error: FileNotFoundError) -> str:
    return (
        f"{str(model)!r} is neither a work directory nor a checkpoint nor the name of a model. "
        f"{suggest_model(str(model))} ({error})"
    )


def brings_weights(cfg: Config) -> bool:
    """Return whether the model of a config loads published weights itself."""
    return getattr(MODELS.get((cfg.get("model") or {}).get("type", "")), "brings_weights", False)


def find_config(model: str | Path) -> Path:
    """Find the config of a model, which is given as for `find_model`, but needs no weights."""
    folder = _place_of(model)
    if folder.suffix in (*WEIGHT_SUFFIXES, GRAPH_SUFFIX) and not folder.is_dir():
        folder = find_weights(folder).parent
    elif not folder.is_dir():
        return _config_named(model)
    if (folder / CONFIG).is_file():  # data is safer than a program
        return folder / CONFIG
    configs = sorted(folder.glob("*.py"))
    if len(configs) == 1:
        return configs[0]
    count = f"{len(configs)} configs ({', '.join(file.name for file in configs)})" if configs else "No config"
    raise CheckpointError(f"{count} in {folder}. Name the config, and the checkpoint as its weights.")


def find_weights(path: Path) -> Path:
    """Find a checkpoint, or that of a work directory: the best, else the newest, else the only file of weights.

    A model folder has `model.safetensors`.
    """
    if path.is_dir():
        if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
            return path / WEIGHTS
        checkpoint = best_checkpoint(path) or latest_checkpoint(path)
        if checkpoint is not None:
            return checkpoint
        others = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        if len(others) == 1:
            return others[0]
        others_text = f"Name one of {', '.join(file.name for file in others)}" if others else "There are no weights"
        raise CheckpointError(f"no checkpoint in {path} (best_*.pth, epoch_*.pth, iter_*.pth). {others_text}.")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    return path


def test_pipeline(cfg: Config) -> list[dict]:
    """Return the transforms that the config applies to an image and its phrases at test time."""
    for key in ("test_dataloader", "val_dataloader"):
        dataset = (cfg.get(key) or {}).get("dataset") or {}
        dataset = (dataset.get("datasets") or [dataset])[0]
        if dataset.get("pipeline"):
            return [dict(transform) for transform in dataset["pipeline"]]
    raise ConfigError(f"{cfg.filename}: neither test_dataloader nor val_dataloader has a pipeline.")


def build_transforms(pipeline: Sequence[dict]) -> list[Callable[[Any], Any]]:
    """Build a test pipeline. Its first transform must be LoadImage, the others work on images from anywhere."""
    try:
        transforms = [TRANSFORMS.build(dict(transform)) for transform in pipeline]
    except TypeError as error:
        raise ConfigError(f"The config's test pipeline cannot be built: {error}") from None
    if not transforms or not isinstance(transforms[0], LoadImage):
        raise ConfigError("The config's test pipeline must begin with LoadImage.")
    return transforms


def load_model(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        model: See `find_model`.
        weights: See `find_model`.
        device: Device of the model. The default is the GPU, if there is one.
        cfg_options: Changes of the config.
    """
    config, checkpoint = find_model(model, weights)

    # A training has checked the config already: without changes, only the model's part is checked again
    cfg = read_config(config)
    merge_options(cfg, dict(cfg_options or {}))
    complete_inputs(cfg, dict(cfg_options or {}))
    model_part = {key: cfg[key] for key in ("default_scope", "model") if key in cfg}
    check_config(cfg if cfg_options else Config(model_part, filename=cfg.filename))

    target = find_device(device)
    if checkpoint is not None:
        cfg.model = with_processor(cfg.model, checkpoint.parent)
    segmentor = build_model(cfg)
    if not isinstance(segmentor, RefSegmentor):
        raise ConfigError(f"{config}: {type(segmentor).__name__} is not a RefSegmentor, which inference needs.")
    pipeline = with_tokenizer_files((checkpoint or config).parent, test_pipeline(cfg))
    if checkpoint is None:
        return LoadedModel(segmentor.to(target).eval(), pipeline, cfg, config, None)
    load_weights(segmentor, checkpoint)
    return LoadedModel(
        segmentor.to(target).eval(), pipeline, cfg, config, checkpoint, aligned=measured_alignment(checkpoint)
    )


def measured_alignment(checkpoint: Path) -> bool:
    """Whether `alignment.json` beside a checkpoint says that its instances point to their words better than chance.

    `refseg score PREDICTIONS --alignment --json` writes the file for predictions of these very weights, and `refseg
    quickstart` leaves one. A file of other weights does not count.
    """
    file = checkpoint.parent / ALIGNMENT
    if not file.is_file():
        return False
    from refseg.evaluation.statistics import beats_chance

    try:
        measured = json.loads(file.read_text(encoding="utf-8"))
        scores, made_with = measured["alignment"]["all words"], measured["predictions"]["header"]["checkpoint"]
        return beats_chance(scores) and made_with["sha256"] == sha256_of(checkpoint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{file} is ignored: not what `refseg score --alignment --json` writes "
                      f"({type(error).__name__}: {error})", stacklevel=2)  # fmt: skip
        return False


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device, by default the GPU, if there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UsageError(f"Unknown device {device!r}. Valid devices: 'cpu', 'cuda', 'cuda:1', ...") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"No device {device!r}: PyTorch sees {torch.cuda.device_count()} GPUs. Use 'cpu', or see `refseg doctor`."
        )
    return parsed
