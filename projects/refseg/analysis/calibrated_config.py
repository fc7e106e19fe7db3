"""Write chosen thresholds into the config of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from refseg.engine.run import read_config
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.evaluation.protocols import READ_BY, get_protocol
from refseg.files import sha256_of, write_atomically
from refseg.inference.loading import WEIGHT_SUFFIXES, find_config, find_weights
from refseg.models.postprocess import PostProcess
from refseg.paths import configs_dir
from refseg.shipped import shipped_model


@dataclass(frozen=True)
class ConfigTarget:
    """The config to write thresholds into.

    Args:
        config: Config of the model.
        out: File to write: the config itself in a work directory, otherwise a new file.
        base: `_base_` of the new file. None in a work directory.
    """

    config: Path
    out: Path
    base: str | None = None


def find_target(model: str, predictions: str | Path, header: Mapping[str, Any]) -> ConfigTarget:
    """Find the config to write thresholds into, and check that predictions were made by its weights.

    Args:
        model: A work directory, or a config: a file, or a name as for `find_model`. A config beside weights means its
            work directory.
        predictions: File of the predictions.
        header: Its header.

    Raises:
        UserError: There is no such config, or the predictions were made by other weights than those of the directory.
    """
    path = Path(model)
    if shipped_model(model) is not None:
        raise UsageError(
            f"the model {model} ships with refseg and is not changed. Copy its folder ({shipped_model(model)}) and "
            "pass the copy to --apply"
        )
    if path.suffix in WEIGHT_SUFFIXES:
        raise UsageError(f"--apply {model} is a checkpoint. Pass its work directory or its config")
    try:
        config = find_config(model)
    except UsageError as error:
        raise UsageError(f"--apply: {error}") from None
    except CheckpointError as error:  # no config or several ones
        raise CheckpointError(f"--apply {model} must be a work directory or a config. {error}") from None
    if config.suffix != ".py":
        raise UsageError(f"--apply {model} must be a work directory or a Python config (.py)")

    # A config without weights stays as it is, and the new one is beside it, or in the current folder if it ships.
    if not path.is_dir() and not any(file.suffix in WEIGHT_SUFFIXES for file in config.parent.iterdir()):
        file, shipped = config.resolve(), configs_dir().resolve()
        name = f"{config.stem}_calibrated.py"
        if file.is_relative_to(shipped):
            return ConfigTarget(config, Path(name), f"refseg::{file.relative_to(shipped).as_posix()}")
        return ConfigTarget(config, config.with_name(name), config.name)

    # In a work directory, the predictions must be of its weights.
    checkpoint = find_weights(config.parent)
    made_with = header.get("checkpoint")
    digest = made_with.get("sha256") if isinstance(made_with, dict) else None
    if digest is None:
        raise CheckpointError(
            f"{predictions} does not say which weights made it, so its thresholds cannot be written to "
            f"{config.parent}. Make predictions with `refseg test {config.parent} --predictions FILE`"
        )
    if digest != sha256_of(checkpoint):
        raise CheckpointError(
            f"{predictions} was made by other weights ({made_with.get('file')}, SHA-256 {str(digest)[:8]}...) than "
            f"those of the work directory ({checkpoint}, {sha256_of(checkpoint)[:8]}...). Make predictions with "
            f"`refseg test {config.parent} --predictions FILE`"
        )
    return ConfigTarget(config, config)


def write_thresholds(target: ConfigTarget, thresholds: Mapping[str, float]) -> list[str]:
    """Write thresholds into `model.postprocess`, and return the keys that were set, as text.

    If a protocol of `test_evaluator` reads a no-target threshold, it gets the chosen one too. Then `refseg test`
    scores what `refseg predict` answers, under a protocol name that says so. The file appears complete or not at all.

    Args:
        thresholds: Values by their name in `model.postprocess`.
    """
    # Collect the keys to set.
    cfg = read_config(target.config)
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{target.config} has no model to write thresholds into")
    changes: dict[str, Any] = {"model": {"postprocess": dict(thresholds)}}
    if "no_target_threshold" in thresholds:
        rule = (cfg.model.get("postprocess") or {}).get("no_target", PostProcess().no_target)
        if rule == "none" and thresholds["no_target_threshold"] == 1:  # neither rejects anything
            del changes["model"]["postprocess"]["no_target_threshold"]
        elif rule not in READ_BY["threshold"]:
            raise ConfigError(
                f"{target.config}: model.postprocess.no_target is {rule!r}, which reads no threshold. Set it to "
                "'head-or-empty' first"
            )
        elif reads_threshold(cfg.get("test_evaluator")):
            changes["test_evaluator"] = {"no_target": {"threshold": thresholds["no_target_threshold"]}}

    # Write them.
    if target.base is None:
        cfg.merge_from_dict(changes)
        write_atomically(target.out, cfg.pretty_text)
    else:
        write_atomically(target.out, Config({"_base_": target.base, **changes}).pretty_text)
    keys = [f"model.postprocess.{name} = {value!r}" for name, value in changes["model"]["postprocess"].items()]
    if "test_evaluator" in changes:
        keys.append(f"test_evaluator.no_target.threshold = {thresholds['no_target_threshold']!r}")
    return keys


def reads_threshold(evaluator: Any) -> bool:
    """Check whether a protocol of an evaluator's config reads a no-target threshold."""
    if not isinstance(evaluator, dict) or evaluator.get("type") != "ReferringMetric":
        return False
    rule = (evaluator.get("no_target") or {}).get("rule")
    rules = [rule or get_protocol(name).no_target.rule for name in evaluator.get("protocols", ("refseg",))]
    return any(rule in READ_BY["threshold"] for rule in rules)
