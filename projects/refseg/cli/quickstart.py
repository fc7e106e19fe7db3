"""`refseg quickstart`: generate RefShapes, train a small model, evaluate it and write a report.

Each of the four steps shows one progress bar. mmengine's log goes to a file in the work directory.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shlex
import shutil
import sys
import time
import warnings
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from refseg.analysis.probes.run import probe_data
from refseg.config_check import dicts_with
from refseg.engine.checkpoint import best_checkpoint, chosen_from
from refseg.engine.run import RunOptions, build_runner, load_config, load_weights
from refseg.errors import TrainingError, UsageError
from refseg.evaluation.alignment import alignment_report
from refseg.evaluation.metrics import predicted_rows
from refseg.evaluation.prediction_file import PredictionWriter
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import describe_predictions, open_data
from refseg.files import write_atomically
from refseg.inference.loading import ALIGNMENT, LoadedModel, test_pipeline
from refseg.processes import usable_cores
from refseg.refshapes import generate
from refseg.refshapes.generate import EXPRESSIONS
from refseg.report.examples import contact_sheet
from refseg.report.report import render_report
from refseg.report.report_data import Settings, score_run
from refseg.report.work_dir import read_scalars, read_work_dir, training_curves
from refseg.weights import describe_weights


def use_data_root(cfg: Config, root: str) -> None:
    """Point every data set of a RefShapes config at another folder. Other configs raise a UsageError."""
    files = [dataset["annotations"].get("file", "") for dataset in dicts_with(cfg._cfg_dict, "annotations")]
    if any(Path(file).name != EXPRESSIONS for file in files):
        raise UsageError(
            f"{cfg.filename}: quickstart trains on RefShapes, and this config uses other data. Use one whose name "
            "ends in _refshapes (`refseg configs refshapes` lists them), or train this one with `refseg train`"
        )
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = cfg[key].dataset
        dataset.annotations.file = str(Path(root, Path(dataset.annotations.file).name))
        for transform in dataset.pipeline:
            if transform.get("tokenizer", {}).get("word_list"):
                transform.tokenizer.word_list = str(Path(root, Path(transform.tokenizer.word_list).name))


class Training(NamedTuple):
    """Facts about a training, which may have run in another process."""

    log_dir: Path
    steps: int
    seed: int


def train_here(cfg: Config, **changes: Any) -> Training:
    """Train in this process, alone or as one of several."""
    runner = build_runner(Config({**cfg.to_dict(), **changes}, filename=cfg.filename))
    runner.train()
    return Training(Path(runner.log_dir), runner.iter, runner.seed)


def train_in_processes(cfg: Config, processes: int) -> Training:
    """Train in processes that share each batch and the cores of this machine.

    For a small model without a GPU, two processes of one thread are faster than two threads of one process.
    """
    if processes == 1:
        return train_here(cfg)
    batch_size = cfg.train_dataloader.batch_size
    if batch_size % processes:
        raise UsageError(f"a batch of {batch_size} images cannot be shared by {processes} processes. Use --processes 1")
    cfg = cfg.copy()
    cfg.train_dataloader.batch_size = batch_size // processes
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="quickstart",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="spawn",
        max_restarts=0,
    )
    threads = str(max(1, torch.get_num_threads() // processes))
    os.environ |= dict(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    try:
        return elastic_launch(settings, _train_as_a_rank)(cfg)[0]
    except ChildFailedError as error:  # its traceback has been printed
        rank, failure = error.get_first_failure()
        message = failure.message.get("message") if isinstance(failure.message, dict) else failure.message
        raise TrainingError(f"training failed in process {rank} of {processes}: {message}") from None


def _train_as_a_rank(cfg: Config) -> Training:
    warnings.filterwarnings("ignore", message="Multi-processing start method")  # from mmengine
    init_default_scope("refseg")
    try:
        training = train_here(cfg, launcher="pytorch")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    atexit.register(os._exit, 0)  # runs first at exit, after the result is sent: see compat.exit_launched
    return training


def default_processes(batch_size: int) -> int:
    """Return one process per core (at most 4) that can share a batch evenly, or one if there is a GPU."""
    if torch.cuda.is_available():
        return 1
    most = min(usable_cores(), batch_size // 2, 4)
    return max(n for n in range(1, most + 1) if batch_size % n == 0)


def quickstart(
    *,
    config: str,
    work_dir: str,
    data: str,
    preset: str = "mini",
    processes: int | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Path:
    """Generate RefShapes if it is missing, train, evaluate the best checkpoint on the test split, and write a report.

    Args:
        config: config of a model that trains on RefShapes.
        work_dir: folder for the log, checkpoints, predictions, metrics, and the report.
        data: folder where RefShapes is, or will be generated.
        preset: size of the generated data.
        processes: number of training processes (default: `default_processes`).
        cfg_options: overrides of config keys.

    Returns:
        The path of the report.
    """
    start = time.monotonic()
    out = Path(work_dir)
    cfg = load_config(config, RunOptions(work_dir=work_dir, cfg_options=cfg_options or {}))
    use_data_root(cfg, data)
    hooks = [hook for hook in cfg.get("custom_hooks", []) if hook["type"] != "ProgressBarHook"]
    cfg.custom_hooks = [*hooks, dict(type="ProgressBarHook", always=True)]  # the bar replaces lines of losses
    bar_style: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": 10, "ascii": True, "ncols": 80}

    print(f"1/4 data: RefShapes {preset} in {data}", flush=True)
    generate(preset, data)

    print(f"2/4 training {config} (log and TensorBoard files: {work_dir})", flush=True)
    training = train_in_processes(cfg, processes or default_processes(cfg.train_dataloader.batch_size))
    runner = build_runner(cfg)
    trained = time.monotonic()

    # The best checkpoint answers the test split, into a prediction file.
    checkpoint = best_checkpoint(work_dir)
    if checkpoint is None:
        raise TrainingError(f"the training wrote no best_*.pth to {work_dir}. See the log there")
    print(f"3/4 evaluating {checkpoint.name} on the test split", flush=True)
    load_weights(runner.model, checkpoint)
    model = runner.model.eval()
    dataset = runner.test_dataloader.dataset
    predictions = out / "predictions.jsonl"
    header = {
        "config": config,
        "checkpoint": describe_weights(model, checkpoint),
        "data": dataset.metainfo,
        "postprocess": asdict(model.postprocess),
    }
    with PredictionWriter(predictions, header=header) as writer, torch.no_grad():
        for batch in tqdm(runner.test_dataloader, desc="test", unit="batch", **bar_style):
            for result in model.test_step(batch):
                for row in predicted_rows(result):
                    writer.write(row)

    print("4/4 report", flush=True)
    with (
        tqdm(total=4, desc="report", unit="part", file=sys.stderr, **bar_style) as bar,
        open(training.log_dir / "report.log", "w", encoding="utf-8") as log,
        redirect_stderr(log),  # the bars of each part
    ):
        # Scores and example pictures
        bar.set_postfix_str("scores")
        split, drop_no_target = dataset.metainfo["split"], dataset.metainfo["no_target"] == "drop"
        test_set = open_data(f"{Path(data, EXPRESSIONS)}:{split}", drop_no_target=drop_no_target)
        scored = score_run(predictions, test_set, Settings([get_protocol("refseg")], per_group=6))
        metrics = scored.results[0]["metrics"]
        bar.update()
        # Alignment of words and instances
        bar.set_postfix_str("alignment")
        alignment = alignment_report(str(predictions), test_set.truths)
        bar.update()
        # Changed phrases
        bar.set_postfix_str("probes")
        loaded = LoadedModel(model, test_pipeline(cfg), cfg, Path(cfg.filename), checkpoint)
        probes = probe_data(loaded, test_set)
        bar.update()
        # Files
        bar.set_postfix_str("files")
        curves = training_curves(read_scalars(training.log_dir / "vis_data" / "scalars.json"))
        pretrained = any(part["pretrained"] for part in dicts_with(cfg.model, "pretrained"))
        validations = max((len(curve.values) for curve in curves.metrics), default=0)
        summary = {
            "model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
            f"from {'pretrained encoders' if pretrained else 'random weights'}, {training.steps} steps",
            "checkpoint": f"{checkpoint.name} ({chosen_from(validations)})",
            "seed": str(training.seed),
            "training time": f"{trained - start:.0f} s with data",
        }
        report = replace(
            scored,
            title=f"{Path(config).stem} on RefShapes {preset}",
            summary={**scored.summary, **summary},
            curves=curves,
            environment=read_work_dir(work_dir).environment,
            config_text=cfg.pretty_text,
            probes=probes,
        )
        write_atomically(out / "report.html", render_report(report))
        write_atomically(out / "metrics.json", json.dumps(metrics, indent=2))
        aligned = {"alignment": alignment, "predictions": describe_predictions(predictions)}
        write_atomically(out / ALIGNMENT, json.dumps(aligned, indent=1))
        write_atomically(out / "probes.json", json.dumps(probes, indent=1))
        # One row each: random, multi-target (hits and misses), and no-target examples.
        random, several, no_target = (
            [case for case in scored.cases if case.group == group] for group in ("random", "several", "no-target")
        )
        examples = [*random[:3], *several[:: max(1, len(several) // 3)][:3], *no_target[-3:]]
        Image.fromarray(contact_sheet(examples)).save(out / "examples.png", optimize=True)
        bar.update()

    # `refseg` may not be on the PATH where `make` ran this.
    command = "refseg" if shutil.which("refseg") else f"{shlex.quote(sys.executable)} -m refseg.cli"
    print("  ".join(f"{name} {value:.1f}" for name, value in metrics.items()))
    print(f"done in {time.monotonic() - start:.0f} s")
    print(f"try the model in a web page: {command} demo {shlex.quote(work_dir)}")
    print(f"the report: {(out / 'report.html').resolve()}")
    return out / "report.html"


EXAMPLES = """
refseg quickstart
refseg quickstart --config instalign_lite0_minilm_refshapes    # pretrained encoders: refseg[pretrained]
refseg quickstart --config vipa_tiny_refshapes --work-dir work_dirs/vipa
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="instalign_tiny_refshapes", help="config to train (default: %(default)s)")
    parser.add_argument("--work-dir", default="work_dirs/quickstart", help="output folder (default: %(default)s)")
    parser.add_argument("--data", default="data/refshapes_mini", help="RefShapes mini; generated there if missing")
    parser.add_argument("--processes", type=int, help="training processes (default: one per core; 1 with a GPU)")


def main(args: argparse.Namespace) -> int:
    quickstart(config=args.config, work_dir=args.work_dir, data=args.data, processes=args.processes)
    return 0
