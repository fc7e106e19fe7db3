"""From a config file to a running mmengine Runner: the options of train and test, applied in one place."""

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

from refseg.compat import find_shipped_bases, init_cpu_dist, wrap_on_cpu
from refseg.config_check import check_config, merge_options
from refseg.datasets.tokenizers import sync_tokenizers, with_tokenizer_files
from refseg.engine import RefRunner, latest_checkpoint
from refseg.errors import CheckpointError, ConfigError, UsageError, UserError
from refseg.files import write_atomically
from refseg.paths import resolve_config
from refseg.registry import METRICS, MODELS, SCOPE
from refseg.weights import describe_weights, generator_versions, load_weights, origin_of

_runner_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options that mmdet's and mmseg's tools know, under their names. `resume=True` finds the newest."""

    work_dir: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    launcher: Literal["none", "pytorch", "slurm", "mpi"] = "none"
    resume: bool | str = False
    amp: bool = False
    auto_scale_lr: bool = False
    compile: bool = False


def load_config(config: str, options: RunOptions | None = None) -> Config:
    """The config with the options applied, every key of it known to be read by something. `resume` is not a part of the
    config: `train` applies it."""
    options = options or RunOptions()
    path = Path(resolve_config(config))
    cfg = read_config(path)
    merge_options(cfg, options.cfg_options)
    sync_tokenizers(cfg)
    cfg.launcher = options.launcher
    cfg.work_dir = options.work_dir or cfg.get("work_dir") or f"work_dirs/{path.stem}"
    if options.amp:
        use_amp(cfg)
    if options.compile:
        check_compile("cuda" if torch.cuda.is_available() else "cpu")
        cfg.compile = True
    if options.auto_scale_lr:
        if not cfg.get("auto_scale_lr"):
            raise UsageError(f"{config}: --auto-scale-lr needs auto_scale_lr.base_batch_size in the config")
        cfg.auto_scale_lr.enable = True
    check_config(cfg)
    if cfg.get("wandb", {}).get("enable") and not any(  # a work directory's config has the backend already
        backend.type == "OptionalWandbBackend" for backend in cfg.visualizer.vis_backends
    ):
        start = {key: value for key, value in cfg.wandb.to_dict().items() if key != "enable"}
        cfg.visualizer.vis_backends.append(ConfigDict(type="OptionalWandbBackend", init_kwargs=start))
    return cfg


def read_config(path: Path) -> Config:
    """The file with its bases, after the import of what its `custom_imports` name."""
    find_shipped_bases()
    try:
        return Config.fromfile(path)
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(
            f"{path}: an import of the config failed ({cause}). custom_imports finds packages that pip installed, and "
            "modules of folders that the environment variable PYTHONPATH names"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a config is a program
        raise ConfigError(f"{path} cannot be read as a config ({type(error).__name__}: {error})") from error


def use_amp(cfg: Config) -> None:
    """Mixed precision: bf16 where the GPU has it, else fp16 with loss scaling."""
    if not torch.cuda.is_available():
        raise UsageError("--amp needs a GPU; leave it out to train in fp32 on the CPU")
    bf16 = torch.cuda.is_bf16_supported()
    cfg.optim_wrapper.type = "GuardedAmpOptimWrapper"
    cfg.optim_wrapper.dtype = "bfloat16" if bf16 else "float16"
    cfg.optim_wrapper.setdefault("loss_scale", 1.0 if bf16 else "dynamic")


def check_compile(device: str) -> None:
    """Refuses torch.compile on the CPU: with torch 2.14.1 the compiled backward pass of a convolutional stem of ours
    corrupts the heap there (`aot_eager` does not, and its numbers agree)."""
    if device == "cpu":
        raise UsageError("--compile needs a GPU: torch's compiler for CPUs crashes in backward passes of these models")


def without_weights(cfg: Any) -> Any:
    """The same config where every `pretrained` beside an architecture (`config`, `arch`), and every `init_cfg`, is
    None: for weights that come from a checkpoint anyway, or do not matter."""
    if isinstance(cfg, dict):
        plain = {key: without_weights(value) for key, value in cfg.items()}
        if plain.get("pretrained") and (plain.get("config") or plain.get("arch")):
            plain["pretrained"] = None
        if "init_cfg" in plain:
            plain["init_cfg"] = None
        return plain
    if isinstance(cfg, list | tuple):
        return type(cfg)(without_weights(item) for item in cfg)
    return cfg


def take_resume(cfg: Config, resume: bool | str) -> Path | None:
    """Return the checkpoint to go on from; None to start from the beginning.

    `resume=True` in the config means what `--resume` does (from its `load_from`, if set). Both leave the config here:
    they belong to one run, and the config that a run writes into its work directory must not repeat them.
    """
    if cfg.get("resume"):
        resume = resume or cfg.get("load_from") or True
        cfg.resume, cfg.load_from = False, None
    if not resume:
        return None
    found = Path(resume) if isinstance(resume, str) else latest_checkpoint(cfg.work_dir)
    if found is None:
        print(f"--resume: no checkpoint in {cfg.work_dir}, starting from the beginning")
    elif not found.is_file():
        raise CheckpointError(f"--resume: no such checkpoint: {found}")
    return found


def build_model(cfg: Config) -> torch.nn.Module:
    """Build the config's model with random weights."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", SCOPE)):
        return MODELS.build(without_weights(cfg.model.to_dict()))


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the (height, width) of the config's test pipeline."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or cfg.get("train_dataloader")
    for transform in (loader or {}).get("dataset", {}).get("pipeline", []):
        if transform["type"] == "Resize":
            return tuple(transform["size"])
    raise ValueError("the config's pipeline has no Resize: pass --shape H W")


def batch_report(cfg: Config, world_size: int) -> tuple[str, bool]:
    """ "per GPU x GPUs x accumulation = total", beside the paper's total; whether they agree."""
    per_gpu = cfg.train_dataloader.batch_size
    accumulation = cfg.optim_wrapper.get("accumulative_counts", 1)
    total = per_gpu * world_size * accumulation
    what = "GPU" if torch.cuda.is_available() else "process"
    line = f"batch: {per_gpu} per {what} x {world_size} x {accumulation} accumulation = {total} images"
    paper = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
    if paper is None:
        return line, True
    line += f" (the learning rate belongs to {paper})"
    if paper != total and not cfg.auto_scale_lr.get("enable"):
        return line + ". They differ: pass --auto-scale-lr, or change batch_size or accumulative_counts", False
    return line, True


def build_runner(cfg: Config, *, resume_from: Path | None = None) -> RefRunner:
    """The runner; processes are joined first where there is no GPU, and accumulation counts in --auto-scale-lr.

    A runner that can train writes `cfg` into its work directory, without what is changed here for this run alone.

    mmengine keeps loggers and visualisers by experiment name, which has a resolution of one second: a process's second
    runner gets a name of its own, or its curves could go to the first one's files.
    """
    dist_cfg = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    init_cpu_dist(cfg.launcher, dist_cfg.get("timeout"))
    this_run = deepcopy(cfg)
    number = next(_runner_numbers)
    if number > 1 and not cfg.get("experiment_name"):
        this_run.experiment_name = f"{Path(cfg.filename or 'run').stem}_{number}"
    wrap_on_cpu(this_run)
    accumulation = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    if (cfg.get("auto_scale_lr") or {}).get("enable") and accumulation > 1:
        this_run.auto_scale_lr.base_batch_size /= accumulation  # mmengine's real batch leaves accumulation out
    if resume_from is not None:
        this_run.model = without_weights(cfg.model.to_dict())
    runner = RefRunner.from_cfg(this_run)
    if resume_from is not None:
        runner._resume, runner._load_from = True, str(resume_from)
    runner.cfg = cfg
    if cfg.get("train_cfg"):
        Runner.dump_config(runner)
    return runner


def train(config: str, options: RunOptions | None = None) -> Runner:
    """Trains; returns the runner when it is done."""
    cfg = load_config(config, options)
    resume_from = take_resume(cfg, options.resume if options else False)
    if resume_from is None and cfg.get("load_from") and not Path(cfg.load_from).is_file():
        raise CheckpointError(f"load_from: no such checkpoint: {cfg.load_from}")
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0:
        from refseg.engine.preflight import require_preflight

        require_preflight(cfg)
    runner = build_runner(cfg, resume_from=resume_from)
    runner.batch_line, agrees = batch_report(cfg, runner.world_size)
    if not agrees:
        print_log(runner.batch_line, logger="current", level=30)
    try:
        runner.train()
    except ValueError as error:
        if "end should be larger than begin" not in str(error):
            raise
        raise ConfigError(
            f"the run is shorter than a part of its schedule ({error}): train longer, or give it another, such as "
            "--cfg-options param_scheduler=None"
        ) from None
    return runner


def test(
    config: str,
    checkpoint: str,
    options: RunOptions | None = None,
    *,
    out: str | None = None,
    predictions: str | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint on the config's test set; `out`: a JSON file for the metrics; `predictions`: a prediction
    file for the answers. No other weights are loaded, whatever `load_from` and `resume` say."""
    cfg = load_config(config, options)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "load_from"):
        cfg[key] = None
    cfg.resume = False
    for key in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[key] = None
    cfg.model = without_weights(cfg.model.to_dict())
    cfg.custom_hooks = [
        hook for hook in cfg.get("custom_hooks", []) if hook["type"] in ("TextTruncationHook", "ProgressBarHook")
    ]
    cfg.test_dataloader = with_tokenizer_files(Path(checkpoint).parent, cfg.test_dataloader)
    runner = build_runner(cfg)
    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    meta = load_weights(model, checkpoint)
    trained, tested = generator_versions(meta), generator_versions(runner.test_dataloader.dataset.metainfo)
    if trained and tested and trained != tested:
        print_log(
            f"{checkpoint} was {origin_of(meta)}, and is tested on generator version {', '.join(tested)}. Scores on "
            "other versions cannot be compared: train again, or test on data of the same version",
            logger="current",
            level=logging.WARNING,
        )
    made_with = {
        "config": config,
        "cfg_options": (options or RunOptions()).cfg_options,
        "checkpoint": describe_weights(model, checkpoint),
        "data": runner.test_dataloader.dataset.metainfo,
        "trained_on": meta.get("dataset_meta"),  # with the leak filter; null for weights without it
        "postprocess": asdict(model.postprocess),
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
