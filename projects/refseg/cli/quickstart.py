"""`refseg quickstart`: data, training, evaluation and a report with pictures, in one go.

The model is whatever config is given; the report is that of `refseg report`.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from refseg.analysis.extras import alignment_report
from refseg.analysis.probes.run import probe_data
from refseg.engine.checkpoint import best_checkpoint, chosen_from
from refseg.engine.preflight import dicts_with
from refseg.engine.run import RunOptions, build_runner, load_config, load_weights
from refseg.errors import TrainingError, UsageError
from refseg.evaluation.metrics import predicted_rows
from refseg.evaluation.prediction_file import PredictionWriter
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scoring import describe_predictions, open_data
from refseg.files import write_atomically
from refseg.inference.loading import ALIGNMENT, LoadedModel, test_pipeline
from refseg.refshapes import generate
from refseg.refshapes.output import EXPRESSIONS
from refseg.report.examples import Example, contact_sheet
from refseg.report.report import write_report
from refseg.report.report_data import Settings, score_run
from refseg.report.work_dir import read_scalars, read_work_dir, training_curves
from refseg.weights import describe_weights


def use_data_root(cfg: Config, root: str) -> None:
    """Point every data set of a RefShapes config at another folder; a config of other data is a UsageError."""
    files = [one["annotations"].get("file", "") for one in dicts_with(cfg._cfg_dict, "annotations")]
    if any(Path(file).name != EXPRESSIONS for file in files):
        raise UsageError(
            f"{cfg.filename}: quickstart trains on RefShapes, and this config on other data. Use one whose name ends "
            "in _refshapes (`refseg configs refshapes` lists them), or `refseg train` for this one"
        )
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = cfg[key].dataset
        dataset.annotations.file = str(Path(root, Path(dataset.annotations.file).name))
        for transform in dataset.pipeline:
            if transform.get("tokenizer", {}).get("word_list"):
                transform.tokenizer.word_list = str(Path(root, Path(transform.tokenizer.word_list).name))


@dataclass(frozen=True, slots=True)
class Training:
    """What the report says of a training that may have been another process's."""

    log_dir: Path
    steps: int
    seed: int


def train_here(cfg: Config, **more: Any) -> Training:
    """Trains in this process, one of those that a launcher started or alone."""
    runner = build_runner(Config({**cfg.to_dict(), **more}, filename=cfg.filename))
    runner.train()
    return Training(Path(runner.log_dir), runner.iter, runner.seed)


def train_in_processes(cfg: Config, processes: int) -> Training:
    """Trains in processes that share each batch and this machine's cores. For a small model without a GPU, two
    processes of one thread are faster than two threads of one process."""
    if processes == 1:
        return train_here(cfg)
    batch_size = cfg.train_dataloader.batch_size
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} images cannot be shared by {processes} processes; --processes 1 works"
        )
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
        what = failure.message.get("message") if isinstance(failure.message, dict) else failure.message
        raise TrainingError(f"training failed in process {rank} of {processes}: {what}") from None


def _train_as_a_rank(cfg: Config) -> Training:
    warnings.filterwarnings("ignore", message="Multi-processing start method")  # mmengine, of data workers
    init_default_scope("refseg")
    try:
        training = train_here(cfg, launcher="pytorch")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    atexit.register(os._exit, 0)  # runs first at exit, when the result has been sent: see compat.exit_launched
    return training


def default_processes(batch_size: int) -> int:
    """As many as there are cores, if they can share a batch; one where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(n for n in range(1, min(cores, batch_size // 2, 4) + 1) if batch_size % n == 0)


def predict(runner: Runner, file: Path, header: dict[str, Any]) -> None:
    """Writes the model's answers to the runner's test set to a prediction file."""
    model = runner.model.eval()
    with PredictionWriter(file, header=header) as writer, torch.no_grad():
        for data in tqdm(runner.test_dataloader, desc="test", unit="batch", ascii=True, ncols=80, mininterval=10):
            for result in model.test_step(data):
                for row in predicted_rows(result):
                    writer.write(row)


def example_cases(cases: list[Example], columns: int = 3) -> list[Example]:
    """A row each of random cases, of such with several targets, found and missed, and of no-target ones."""
    random, several, no_target = (
        [case for case in cases if case.group == group] for group in ("random", "several", "no-target")
    )
    step = max(1, len(several) // columns)
    return [*random[:columns], *several[::step][:columns], *no_target[-columns:]]


def quickstart(
    *,
    config: str,
    work_dir: str,
    data: str,
    preset: str = "mini",
    processes: int | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Path:
    """Makes RefShapes if it is not there, trains, evaluates the best checkpoint of val on test, writes the report.
    `processes`: that train, by default `default_processes`."""
    start = time.monotonic()
    cfg = load_config(config, RunOptions(work_dir=work_dir, cfg_options=cfg_options or {}))
    use_data_root(cfg, data)
    # The training shows one bar, and nothing else.
    hooks = [hook for hook in cfg.get("custom_hooks", []) if hook["type"] != "ProgressBarHook"]
    cfg.custom_hooks = [*hooks, dict(type="ProgressBarHook", always=True)]
    print(f"1/4 data: RefShapes {preset} in {data}")
    generate(preset, data)

    print(f"2/4 training {config} (log and TensorBoard files: {work_dir})")
    training = train_in_processes(cfg, processes or default_processes(cfg.train_dataloader.batch_size))
    runner = build_runner(cfg)
    trained = time.monotonic()

    checkpoint = best_checkpoint(work_dir)
    if checkpoint is None:
        raise TrainingError(f"the training left no best_*.pth in {work_dir}; its log says why")
    print(f"3/4 evaluating {checkpoint.name} on the test split")
    load_weights(runner.model, checkpoint)
    predictions = Path(work_dir) / "predictions.jsonl"
    dataset = runner.test_dataloader.dataset
    made_with = {
        "config": config,
        "checkpoint": describe_weights(runner.model, checkpoint),
        "data": dataset.metainfo,
        "postprocess": asdict(runner.model.postprocess),
    }
    predict(runner, predictions, made_with)

    print("4/4 report")
    split, drops = dataset.metainfo["split"], dataset.metainfo["no_target"] == "drop"
    test_set = open_data(f"{Path(data, EXPRESSIONS)}:{split}", drop_no_target=drops)
    scored = score_run(predictions, test_set, Settings([get_protocol("refseg")], per_group=6))
    loaded = LoadedModel(runner.model.eval(), test_pipeline(cfg), cfg, Path(cfg.filename), checkpoint)
    probes = probe_data(loaded, test_set)
    run = read_work_dir(work_dir)
    curves = training_curves(read_scalars(training.log_dir / "vis_data" / "scalars.json"))
    validations = max((len(curve.values) for curve in curves.metrics), default=0)
    report = Path(work_dir) / "report.html"
    facts = {
        "model": f"{type(runner.model).__name__}, {sum(p.numel() for p in runner.model.parameters()) / 1e6:.2f} M "
        f"parameters, from random weights, {training.steps} steps",
        "checkpoint": f"{checkpoint.name} ({chosen_from(validations)})",
        "seed": str(training.seed),
        "training time": f"{trained - start:.0f} s with data",
    }
    content = scored.report(
        title=f"{Path(config).stem} on RefShapes {preset}",
        summary=facts,
        curves=curves,
        environment=run.environment,
        config_text=cfg.pretty_text,
        probes=probes,
    )
    write_report(report, content)
    metrics = scored.results[0]["metrics"]
    write_atomically(Path(work_dir) / "metrics.json", json.dumps(metrics, indent=2))
    alignment = {
        "alignment": alignment_report(str(predictions), test_set.truths),
        "predictions": describe_predictions(predictions),
    }
    write_atomically(Path(work_dir) / ALIGNMENT, json.dumps(alignment, indent=1))
    write_atomically(Path(work_dir) / "probes.json", json.dumps(probes, indent=1))
    sheet = contact_sheet(example_cases(scored.cases), columns=3)
    Image.fromarray(sheet).save(Path(work_dir) / "examples.png", optimize=True)
    print("  ".join(f"{name} {value:.1f}" for name, value in metrics.items()))
    print(f"done in {time.monotonic() - start:.0f} s")
    print(f"a page to try it: {page_command(work_dir)}")
    print(f"the report: {report.resolve()}")
    return report


def page_command(work_dir: str) -> str:
    """What opens the web page, as this environment is: `refseg` may not be on the PATH where `make` ran this."""
    refseg = "refseg" if shutil.which("refseg") else f"{shlex.quote(sys.executable)} -m refseg.cli"
    return f"{refseg} demo {shlex.quote(work_dir)}"


EXAMPLES = """
refseg quickstart
refseg quickstart --config vipa_tiny_refshapes --work-dir work_dirs/vipa
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="instalign_tiny_refshapes", help="what to train")
    parser.add_argument("--work-dir", default="work_dirs/quickstart")
    parser.add_argument("--data", default="data/refshapes_mini", help="where RefShapes mini is, or will be made")
    parser.add_argument("--processes", type=int, help="that train (default: one per core without a GPU)")


def main(args: argparse.Namespace) -> int:
    quickstart(config=args.config, work_dir=args.work_dir, data=args.data, processes=args.processes)
    return 0
