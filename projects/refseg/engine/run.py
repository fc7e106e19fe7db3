"""Train and test a config. This file reads from top to bottom: config, model, runner, train, test."""

from __future__ import annotations

import itertools
import json
import logging
import os
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from refseg.compat import find_shipped_bases, format_configs_once, init_cpu_dist, wrap_on_cpu
from refseg.config_check import accepted_names, check_config, complete_inputs, dicts_with, find_class, merge_options
from refseg.datasets.tokenizers import with_tokenizer_files
from refseg.engine import RefRunner, latest_checkpoint
from refseg.engine.checkpoint import PROCESSOR
from refseg.errors import CheckpointError, ConfigError, UsageError, UserError
from refseg.files import write_atomically
from refseg.json_config import name_of_config, read_json_config
from refseg.paths import data_path, resolve_config
from refseg.processes import keep_freed_memory
from refseg.registry import METRICS, MODELS, SCOPE
from refseg.weights import describe_weights, generator_versions, load_weights, origin_of, weights_file

_runner_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of training and testing, with the names that they have in mmdet's and mmseg's tools.

    Args:
        resume: A checkpoint to continue from, or True for the newest one in the work directory.
    """

    work_dir: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    launcher: Literal["none", "pytorch", "slurm", "mpi"] = "none"
    resume: bool | str = False
    amp: bool = False
    auto_scale_lr: bool = False
    compile: bool = False


# Config ---------------------------------------------------------------------------------------------------------------


def load_config(config: str, options: RunOptions | None = None) -> Config:
    """Read a config, apply the options, and check every key. `train` applies `resume`, which is no part of the config.

    Args:
        config: A path, or the name of a config that ships.
        options: Options to apply.

    Raises:
        UserError: The config cannot be read, has keys that nothing reads, or the options do not fit it.
    """
    options = options or RunOptions()
    path = Path(resolve_config(config))
    cfg = read_config(path)
    merge_options(cfg, options.cfg_options)
    complete_inputs(cfg, options.cfg_options)
    cfg.launcher = options.launcher
    cfg.work_dir = options.work_dir or cfg.get("work_dir") or f"work_dirs/{name_of_config(path).replace('/', '_')}"

    # Mixed precision: bf16 if the GPU has it, else fp16 with loss scaling.
    if options.amp:
        if not torch.cuda.is_available():
            raise UsageError("--amp needs a GPU. Omit it to train in fp32 on the CPU")
        bf16 = torch.cuda.is_bf16_supported()
        cfg.optim_wrapper.type = "GuardedAmpOptimWrapper"
        cfg.optim_wrapper.dtype = "bfloat16" if bf16 else "float16"
        cfg.optim_wrapper.setdefault("loss_scale", 1.0 if bf16 else "dynamic")
    if options.compile:
        check_compile("cuda" if torch.cuda.is_available() else "cpu")
        cfg.compile = True
    if options.auto_scale_lr:
        if not cfg.get("auto_scale_lr"):
            raise UsageError(f"{config}: --auto-scale-lr needs auto_scale_lr.base_batch_size in the config")
        cfg.auto_scale_lr.enable = True
    check_config(cfg)

    # wandb.enable adds a backend, unless the config is one that an earlier run wrote with it.
    if cfg.get("wandb", {}).get("enable") and not any(
        backend.type == "OptionalWandbBackend" for backend in cfg.visualizer.vis_backends
    ):
        init_kwargs = {key: value for key, value in cfg.wandb.to_dict().items() if key != "enable"}
        cfg.visualizer.vis_backends.append(ConfigDict(type="OptionalWandbBackend", init_kwargs=init_kwargs))
    return cfg


def read_config(path: Path) -> Config:
    """Read a config file and its bases, and import the modules of its `custom_imports`. JSON is read as data only."""
    if path.suffix == ".json":
        return read_json_config(path)
    find_shipped_bases()
    try:
        return Config.fromfile(path)
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(
            f"{path}: an import of the config failed ({cause}). custom_imports finds packages installed with pip, and "
            "modules in folders of the environment variable PYTHONPATH"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a config is a program
        raise ConfigError(f"{path} cannot be read as a config ({type(error).__name__}: {error})") from error


def check_compile(device: str) -> None:
    """Refuse torch.compile on the CPU.

    With torch 2.14.1, the compiled backward pass of a convolutional stem corrupts the heap there. (`aot_eager` does
    not, and its numbers agree.)
    """
    if device == "cpu":
        raise UsageError("--compile needs a GPU: torch's compiler for CPUs crashes in backward passes of these models")


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the (height, width) of the config's test pipeline."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or cfg.get("train_dataloader")
    for transform in (loader or {}).get("dataset", {}).get("pipeline", []):
        if str(transform["type"]).rpartition(".")[2] == "Resize":
            return tuple(transform["size"])
    raise UsageError("the pipeline of this config has no Resize, so the input size is unknown. Pass --shape H W")


# Model and runner -----------------------------------------------------------------------------------------------------


def build_model(cfg: Config) -> torch.nn.Module:
    """Build the config's model with random weights."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", SCOPE)):
        return MODELS.build(without_weights(cfg.model))


def without_weights(model: ConfigDict, *, resume: bool = False) -> dict[str, Any]:
    """Return a model's config without initial weights, because its weights come from a checkpoint or do not matter.

    Every `init_cfg`, and every `pretrained` beside an architecture (`config`, `arch`, `name`), becomes None. So does
    `lora`, except to resume: a checkpoint's weights have its additions in them.
    """
    plain = model.to_dict()
    for part in dicts_with(plain, "init_cfg"):
        part["init_cfg"] = None
    for part in dicts_with(plain, "pretrained"):
        if part.get("config") or part.get("arch") or part.get("name"):
            part["pretrained"] = None
    for part in dicts_with(plain, "lora") if not resume else ():
        part["lora"] = None
    return plain


def with_processor(model: ConfigDict, folder: Path) -> ConfigDict:
    """Return a model's config with the processor that a training saved beside its weights, if there is one."""
    model = deepcopy(model)
    for part in dicts_with(model, "processor"):
        if (folder / PROCESSOR).is_dir():
            part["processor"] = str(folder / PROCESSOR)
    return model


def name_architectures(model: ConfigDict) -> None:
    """Write the architectures of pretrained encoders into a model's config, in place.

    A work directory then has all that the model is made of, and answers on a machine without the pretrained weights.
    """
    for part in dicts_with(model, "pretrained"):
        encoder = MODELS.get(part["type"]) if part.get("pretrained") else None
        if hasattr(encoder, "architecture"):
            part.update(encoder.architecture(part))


def build_runner(cfg: Config, *, resume_from: Path | None = None) -> RefRunner:
    """Build the runner of a config, and join the processes first if there is no GPU.

    A runner that can train writes `cfg` into its work directory, without the changes that this function makes.

    Args:
        cfg: A config from `load_config`.
        resume_from: The checkpoint that the training continues from.
    """
    format_configs_once()
    if not torch.cuda.is_available():
        keep_freed_memory()
    dist_cfg = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    init_cpu_dist(cfg.launcher, dist_cfg.get("timeout"))
    this_run = deepcopy(cfg)

    # mmengine keeps loggers and visualizers by experiment name, which is the time in seconds. The second runner of a
    # process needs another name, or its curves could go into the files of the first one.
    number = next(_runner_numbers)
    if number > 1 and not cfg.get("experiment_name"):
        this_run.experiment_name = f"{Path(cfg.filename or 'run').stem}_{number}"
    wrap_on_cpu(this_run)

    # Encoders recompute their blocks themselves.
    if cfg.get("gradient_checkpointing") is True:
        for part in dicts_with(this_run.model, "type"):
            encoder = find_class(part["type"])
            if encoder is not None and "checkpointing" in (accepted_names(encoder) or ()):
                part["checkpointing"] = True

    # --auto-scale-lr: mmengine compares the base batch size with a batch that does not count accumulation.
    accumulation = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    if (cfg.get("auto_scale_lr") or {}).get("enable") and accumulation > 1:
        this_run.auto_scale_lr.base_batch_size /= accumulation

    if resume_from is not None:
        this_run.model = without_weights(cfg.model, resume=True)
    runner = RefRunner.from_cfg(this_run)
    if resume_from is not None:
        runner._resume, runner._load_from = True, str(resume_from)
    runner.cfg = cfg
    if cfg.get("train_cfg"):
        name_architectures(cfg.model)
        if Path(cfg.filename or "").suffix == ".json":  # a work directory has a Python config
            runner.cfg = Config(cfg._cfg_dict, filename=str(Path(cfg.filename).with_suffix(".py")))
        Runner.dump_config(runner)
    return runner


# Train and test -------------------------------------------------------------------------------------------------------


def train(config: str, options: RunOptions | None = None) -> Runner:
    """Train a model, and return the runner at the end.

    Args:
        config: A path, or the name of a config that ships.
        options: Options that are applied to the config.
    """
    cfg = load_config(config, options)
    if not cfg.get("train_cfg"):
        raise UsageError(
            f"{config} is a config for evaluation only: it has no train_cfg. Use the model as it is, calibrate its "
            "thresholds (`refseg calibrate`), or let it label images for another model (`refseg label`)."
        )
    resume_from = take_resume(cfg, options.resume if options else False)
    needed = cfg.copy()
    if resume_from is not None:  # all weights come from the checkpoint
        needed.load_from, needed.model = None, without_weights(cfg.model, resume=True)
    elif cfg.get("load_from"):
        cfg.load_from = str(data_path(cfg.load_from))
        if not weights_file(cfg.load_from).is_file():
            raise CheckpointError(f"load_from: no such checkpoint: {cfg.load_from}")
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0:
        from refseg.engine.preflight import require_preflight

        require_preflight(needed)
    runner = build_runner(cfg, resume_from=resume_from)
    runner.batch_line, agrees = batch_report(cfg, runner.world_size)
    if not agrees:
        print_log(runner.batch_line, logger="current", level=logging.WARNING)
    try:
        runner.train()
    except ValueError as error:
        if "end should be larger than begin" not in str(error):
            raise
        raise ConfigError(
            f"the run is shorter than a part of its schedule ({error}). Train longer, or change the schedule, for "
            "example with --cfg-options param_scheduler=None"
        ) from None
    return runner


def take_resume(cfg: Config, resume: bool | str) -> Path | None:
    """Return the checkpoint to continue from; None to start from the beginning.

    `resume=True` in the config means the same as `--resume` (from its `load_from`, if set). Both are removed from the
    config: they belong to one run, and the config in the work directory must not repeat them.
    """
    if cfg.get("resume"):
        resume = resume or cfg.get("load_from") or True
        cfg.resume, cfg.load_from = False, None
    if not resume:
        return None
    checkpoint = Path(resume) if isinstance(resume, str) else latest_checkpoint(cfg.work_dir)
    if checkpoint is None:
        print(f"--resume: no checkpoint in {cfg.work_dir}, starting from the beginning")
    elif not checkpoint.is_file():
        raise CheckpointError(f"--resume: no such checkpoint: {checkpoint}")
    return checkpoint


def batch_report(cfg: Config, world_size: int) -> tuple[str, bool]:
    """Describe the total batch size, and return whether it is the one that the learning rate is for."""
    per_gpu = cfg.train_dataloader.batch_size
    accumulation = cfg.optim_wrapper.get("accumulative_counts", 1)
    total = per_gpu * world_size * accumulation
    device = "GPU" if torch.cuda.is_available() else "process"
    line = f"batch: {per_gpu} per {device} x {world_size} x {accumulation} accumulation = {total} images"
    paper = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
    if paper is None:
        return line, True
    line += f" (the learning rate belongs to {paper})"
    if paper != total and not cfg.auto_scale_lr.get("enable"):
        return line + ". They differ: pass --auto-scale-lr, or change batch_size or accumulative_counts", False
    return line, True


def test(
    config: str,
    checkpoint: str | None,
    options: RunOptions | None = None,
    *,
    out: str | None = None,
    predictions: str | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test set, whatever `load_from` and `resume` of the config say.

    Args:
        config: A path, or the name of a config that ships.
        checkpoint: The weights of exactly this model; None for a model that loads published weights itself.
        options: Options that are applied to the config.
        out: A JSON file to write for the metrics.
        predictions: A prediction file to write.

    Returns:
        The metrics by name.
    """
    # Remove all that belongs to training and validation.
    cfg = load_config(config, options)
    training = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "load_from")
    for key in (*training, "val_dataloader", "val_cfg", "val_evaluator"):
        cfg[key] = None
    cfg.resume = cfg.fsdp = False
    if checkpoint is not None:
        cfg.model = without_weights(with_processor(cfg.model, Path(checkpoint).parent))
    cfg.custom_hooks = [
        hook for hook in cfg.get("custom_hooks") or [] if hook["type"] in ("TextTruncationHook", "ProgressBarHook")
    ]
    beside = Path(checkpoint or resolve_config(config)).parent
    cfg.test_dataloader = with_tokenizer_files(beside, cfg.test_dataloader)

    # Build, load the weights, and compare what they were trained on with the test data.
    runner = build_runner(cfg)
    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    meta = {} if checkpoint is None else load_weights(model, checkpoint)
    data = runner.test_dataloader.dataset.metainfo
    trained_versions, tested_versions = generator_versions(meta), generator_versions(data)
    if trained_versions and tested_versions and trained_versions != tested_versions:
        print_log(
            f"{checkpoint} was {origin_of(meta)}, and is tested on generator version {', '.join(tested_versions)}. "
            "Scores on different versions cannot be compared. Train again, or test on data of the same version",
            logger="current",
            level=logging.WARNING,
        )

    # Evaluate, and write the results with what they were made with.
    made_with = {
        "config": config,
        "cfg_options": (options or RunOptions()).cfg_options,
        "checkpoint": describe_weights(model, checkpoint),
        "data": data,
        "trained_on": meta.get("dataset_meta"),  # with the leak filter; null for weights without it
        "postprocess": asdict(model.postprocess),
        "merged": "instances" if model.unites_instances else "mask",  # which thresholds `refseg calibrate` can choose
    }
    evaluator = runner.test_loop.evaluator
    protocols = [p.describe() for metric in evaluator.metrics for p in getattr(metric, "protocols", ())]
    if predictions is not None:
        dump = METRICS.build(dict(type="DumpPredictions", file=predictions, header=made_with))
        evaluator.metrics.append(dump)
    metrics = runner.test()
    if out is not None and runner.rank == 0:
        write_atomically(out, json.dumps({"metrics": metrics, "protocols": protocols, **made_with}, indent=2))
    return metrics
