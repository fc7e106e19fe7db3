"""`refseg quickstart`: data, training, evaluation and a report with pictures, in one go.

The model is whatever config is given; the report is `refseg.visualization.write_report`.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from refseg.apis.runner import RunOptions, build_runner, load_config, load_weights
from refseg.datasets.images import read_image
from refseg.datasets.masks import decode
from refseg.datasets.refshapes import generate
from refseg.engine import best_checkpoint
from refseg.errors import TrainingError, UsageError
from refseg.evaluation.areas import union_rle
from refseg.evaluation.breakdowns import breakdown
from refseg.evaluation.metrics import rows_of, truth_of
from refseg.evaluation.protocols import Protocol, get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.files import write_atomically
from refseg.structures import ImageResult
from refseg.visualization.cases import RIGHT_IOU, Case, choose_cases, contact_sheet
from refseg.visualization.curves import read_scalars, training_curves
from refseg.visualization.instances import CaseInstance
from refseg.visualization.report import write_report


def use_data_root(cfg: Config, root: str) -> None:
    """Points every data set of a RefShapes config at another folder."""
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
        return train_here(cfg, launcher="pytorch")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def default_processes(batch_size: int) -> int:
    """As many as there are cores, if they can share a batch; one where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(n for n in range(1, min(cores, batch_size // 2, 4) + 1) if batch_size % n == 0)


def evaluate(runner: Runner, protocol: Protocol) -> tuple[list[ImageResult], Rows]:
    """Results, without logits, and rows of the runner's test set. Instances wait until something asks for them."""
    model = runner.model.eval()
    results: list[ImageResult] = []
    rows: list[Row] = []
    with torch.no_grad():
        for data in runner.test_dataloader:
            for result in model.test_step(data):
                rows += rows_of(result, protocol.view, truth_of(result))
                result.mask_logits = None
                results.append(result)
    return results, Rows.of(rows)


def merged_target(result: ImageResult, k: int) -> np.ndarray:
    """(h, w) bool: the union of an expression's referents at the original size."""
    truth = truth_of(result)
    expression = truth.record.expressions[k]
    return decode(union_rle([truth.instance_rle(i) for i in expression.referents], truth.record.size))


def found_all(result: ImageResult, k: int) -> bool:
    """Whether an expression's instances are its referents: as many, and each referent has one of an IoU of at least
    RIGHT_IOU."""
    truth = truth_of(result)
    found = [instance.mask.numpy() for instance in result.instances[k]]
    targets = [decode(truth.instance_rle(i)) for i in truth.record.expressions[k].referents]
    if len(found) != len(targets):
        return False
    return all(max(mask_iou(mask, target) for mask in found) >= RIGHT_IOU for target in targets)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks (h, w) bool, of which one has a pixel."""
    return float((a & b).sum() / (a | b).sum())


def case_instances(result: ImageResult, k: int) -> list[CaseInstance]:
    """An expression's instances; none from models that do not tell them apart."""
    instances = [] if result.instances is None else result.instances[k]
    return [CaseInstance(instance.mask.numpy(), instance.score, instance.words) for instance in instances]


def make_cases(results: list[ImageResult], rows: Rows, protocol: Protocol, per_group: int = 6) -> list[Case]:
    """The best, the worst, random and no-target expressions and such with several targets, with their masks. Only the
    images that are looked at are asked for their instances."""
    place = {name: (result, k) for result in results for k, name in enumerate(result.meta.expression_ids)}
    ious = protocol.terms(rows)["gIoU"][0]
    rejected = protocol.no_target.rejected(rows)
    tell_instances = any(result.lazy_instances is not None for result in results)
    choices = choose_cases(
        [
            {
                "expression_id": name,
                "iou": float(iou),
                "no_target": bool(num_targets == 0),
                "rejected": bool(refused),
                "several": bool(num_targets > 1),
            }
            for name, iou, num_targets, refused in zip(
                rows.expression_id, ious, rows.num_targets, rejected, strict=True
            )
        ],
        per_group=per_group,
        found_all=(lambda row: not row["rejected"] and found_all(*place[row["expression_id"]]))
        if tell_instances
        else None,
    )
    cases = []
    for group, chosen in choices.items():
        for choice in chosen:
            result, k = place[choice["expression_id"]]
            cases.append(
                Case(
                    image=read_image(result.meta.image_path, result.meta.original_size),
                    text=result.meta.texts[k],
                    predicted=result.masks[k].numpy(),
                    ground_truth=merged_target(result, k),
                    iou=choice["iou"],
                    rejected=choice["rejected"],
                    expression_id=choice["expression_id"],
                    tags={"skill": result.meta.tags[k].get("skill", "")},
                    group=group,
                    instances=case_instances(result, k),
                )
            )
    return cases


def example_cases(cases: list[Case], columns: int = 3) -> list[Case]:
    """A row each of random cases, of such with several targets, found and missed, and of no-target ones."""
    random, several, no_target = (
        [case for case in cases if case.group == group] for group in ("random", "several", "no-target")
    )
    step = max(1, len(several) // columns)
    return [*random[:columns], *several[::step][:columns], *no_target[-columns:]]


def environment() -> dict[str, str]:
    import platform

    import mmengine

    from refseg import __version__

    return {
        "refseg": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "mmengine": mmengine.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "system": f"{platform.system()} {platform.machine()}",
    }


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
    print(f"1/4 data: RefShapes {preset} in {data}")
    generate(preset, data)
    cfg = load_config(config, RunOptions(work_dir=work_dir, cfg_options=cfg_options or {}))
    use_data_root(cfg, data)

    print(f"2/4 training {config} (log and TensorBoard files: {work_dir})")
    training = train_in_processes(cfg, processes or default_processes(cfg.train_dataloader.batch_size))
    runner = build_runner(cfg)
    trained = time.monotonic()

    checkpoint = best_checkpoint(work_dir)
    if checkpoint is None:
        raise TrainingError(f"the training left no best_*.pth in {work_dir}; its log says why")
    print(f"3/4 evaluating {checkpoint.name} on the test split")
    load_weights(runner.model, checkpoint)
    protocol = get_protocol("refseg")
    results, rows = evaluate(runner, protocol)
    metrics = protocol.score(rows)

    print("4/4 report")
    scalars = training.log_dir / "vis_data" / "scalars.json"
    report = Path(work_dir) / "report.html"
    cases = make_cases(results, rows, protocol)
    write_report(
        report,
        title=f"{Path(config).stem} on RefShapes {preset}",
        summary={
            "protocol": f"{protocol.name} ({protocol.title})",
            "data set": f"RefShapes {preset}",
            "split": f"test: {len(results)} images, {len(rows)} expressions",
            "model": f"{type(runner.model).__name__}, {sum(p.numel() for p in runner.model.parameters()) / 1e6:.2f} M "
            f"parameters, from random weights, {training.steps} steps",
            "checkpoint": f"{checkpoint.name} (best on val)",
            "seed": str(training.seed),
            "training time": f"{trained - start:.0f} s with data",
        },
        metrics=metrics,
        breakdowns={
            "by skill": breakdown(rows, protocol, "skill"),
            "by number of targets": breakdown(rows, protocol, "targets"),
        },
        curves=training_curves(read_scalars(scalars)),
        cases=cases,
        environment=environment(),
        config_text=cfg.pretty_text,
    )
    write_atomically(Path(work_dir) / "metrics.json", json.dumps(metrics, indent=2))
    sheet = contact_sheet(example_cases(cases), columns=3)
    Image.fromarray(sheet).save(Path(work_dir) / "examples.png", optimize=True)
    print("  ".join(f"{name} {value:.1f}" for name, value in metrics.items()))
    print(f"done in {time.monotonic() - start:.0f} s; open the report: {report.resolve()}")
    return report
