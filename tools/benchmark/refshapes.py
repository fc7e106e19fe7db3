"""Train and compare all methods on RefShapes mini, with equal data, encoders of one kind, and equal budgets.

    python tools/benchmark/refshapes.py --phrases 43200 [--methods InstAlign ReLA ...] [--seeds 3] [--jobs 2]
    python tools/benchmark/refshapes.py --seconds 600 --rates 0.5 1 2
    python tools/benchmark/refshapes.py --page-only

A budget is a number of training phrases (`--phrases`), or the time of training alone (`--seconds`: on a CPU the time of
one core, on a GPU the time on the clock; it becomes a number of steps through the measured time of a step). Each method
trains at its config's learning rate times each of `--rates` for a fraction of the budget first. The rate with the best
gIoU on val is then used for `--seeds` full trainings. All phrases of the training split are used, also those that refer
to nothing, and the last checkpoint is scored.

Each finished training is a line of `--results`, with the hash of its config, its seed, the machine, and the revision of
the code. The same command again skips these trainings and continues those that were interrupted, so a benchmark can be
spread over days and machines. The page and its pictures are drawn from the file alone. Text of the page between
`<!-- findings -->` and `<!-- end of findings -->` is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
ENCODERS = "lavt/lavt_tiny_refshapes"  # the Swin and the BERT that all methods with separate encoders get
SCHEDULE = "instalign_tiny_refshapes"  # Muon, warm-up, and cosine decay
BATCH = 8  # images of a step
SWEEP_SEED, SWEEP_SHARE = 100, 1 / 3
VALIDATIONS = 4  # points of a learning curve
SPLITS = {  # file and split
    "val": ("refshapes.jsonl", "val"),
    "test": ("refshapes.jsonl", "test"),
    "new words": ("paraphrases.jsonl", "test"),
}
GROUPS = ("skill", "length", "tag:objects")


class Method(NamedTuple):
    """A row of the tables.

    Args:
        config: Name of its config.
        phrases: Phrases of an image in a step: all 18 if the method encodes an image once for all of them.
        changes: Options of the config.
        ablates: The method that this one is compared with, for a part that it lacks.
        published: That comparison in the paper, as the paper's method minus this one.
    """

    config: str
    phrases: int = 6
    changes: dict[str, Any] = {}
    ablates: str = ""
    published: str = ""


# VIPA retrieves pixels of stride 16, so its Swin has no fourth stage (3 x 3 pixels here).
_VIPA = {
    "model.encoder.vision.arch": dict(embed_dims=16, depths=(2, 2, 2), num_heads=(1, 2, 4)),
    "model.encoder.fusion.head_dim": 16,
    "model.encoder.fused_stages": (0, 1, 2),
    "model.encoder.out_stages": (0, 1, 2),
}
METHODS = {
    "InstAlign": Method("instalign_tiny_refshapes", 18),
    "Mask2Former": Method("instalign/ablations/refshapes_without_poa", 18, {}, "InstAlign", "+2.7 cIoU (Table 3a)"),
    "ReLA": Method("rela_tiny_refshapes"),
    "LAVT": Method("lavt/lavt_tiny_refshapes"),
    "LGFormer": Method("lgformer_tiny_refshapes"),
    "VIPA": Method("vipa/ablations/refshapes_early_fusion", 6, _VIPA),
    "Latent-VG": Method("latentvg_tiny_refshapes"),
    "InstAlign without instances": Method(
        "instalign/ablations/refshapes_without_instance_supervision", 18, {}, "InstAlign", "+5.6 cIoU (Table 3a)"
    ),
    "ReLA, its own losses": Method("rela/rela_tiny_refshapes_own_losses", 6, {}, "ReLA", "-"),
    "LGFormer, a learnable query": Method(
        "lgformer/ablations/refshapes_1_learnable_query", 6, {}, "LGFormer", "+2.54 oIoU (Table 2)"
    ),
    "VIPA, words instead of VE": Method(
        "vipa/ablations/refshapes_early_fusion_language", 6, _VIPA, "VIPA", "+2.75 oIoU (Table V)"
    ),
    "VIPA, scale and bias in eq. 4": Method(
        "vipa/ablations/refshapes_early_fusion", 6, {**_VIPA, "model.supervision.scale_bias": True}, "VIPA", "-"
    ),
    "VIPA, centered pixels in eq. 5": Method(
        "vipa/ablations/refshapes_early_fusion", 6, {**_VIPA, "model.generator.centered": True}, "VIPA", "-"
    ),
    "VIPA, both keys": Method(
        "vipa/ablations/refshapes_early_fusion",
        6,
        {**_VIPA, "model.supervision.scale_bias": True, "model.generator.centered": True},
        "VIPA",
        "-",
    ),
    "Latent-VG, plain BEiT-3": Method("latentvg/ablations/refshapes_baseline", 6, {}, "Latent-VG", "-"),
}


class Job(NamedTuple):
    """A training, or with kind "speed" the measurement of a step."""

    kind: str  # "speed", "sweep", or "run"
    method: str
    seed: int
    rate: float
    steps: int
    budget: str  # such as "43200 phrases" or "600 s"


# A job, in a process of its own ---------------------------------------------------------------------------------------


def make_config(job: Job, data: Path) -> Any:
    """Return the complete config of a job."""
    from refseg.cli.quickstart import use_data_root
    from refseg.config_check import merge_options
    from refseg.engine.run import load_config

    method = METHODS[job.method]
    cfg, schedule, encoders = (load_config(name) for name in (method.config, SCHEDULE, ENCODERS))
    encoder = cfg.model.get("encoder", {})
    if encoder.get("type") == "FusedEncoder":
        stages = encoder.text.get("stages")
        encoder.vision, encoder.text = encoders.model.encoder.vision, encoders.model.encoder.text
        encoder.text.update({"stages": stages} if stages else {})
        cfg.model.data_preprocessor.size_divisor = encoders.model.data_preprocessor.size_divisor
    merge_options(cfg, method.changes)

    # The same data, schedule, and length for all
    use_data_root(cfg, str(data))
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.no_target = "keep"
    cfg.train_dataloader.batch_size = BATCH
    cfg.train_dataloader.dataset.expressions_per_image = method.phrases
    cfg.optim_wrapper, cfg.param_scheduler = schedule.optim_wrapper, schedule.param_scheduler
    cfg.optim_wrapper.optimizer.lr *= job.rate
    warm_up, cosine = cfg.param_scheduler
    warm_up.end = cosine.begin = min(warm_up.end, max(1, job.steps // 6))  # for short trainings
    cfg.val_evaluator.save_best = cfg.test_evaluator.save_best = "refseg/gIoU"
    validate = max(1, job.steps // (VALIDATIONS if job.kind == "run" else 1))
    cfg.train_cfg.update(max_epochs=None, max_iters=job.steps, val_interval=10**6, val_interval_iters=validate)
    cfg.default_hooks.logger.interval = 10
    cfg.default_hooks.checkpoint.update(interval=100, by_epoch=False, max_keep_ckpts=1, save_best=None)
    cfg.randomness.seed = job.seed
    return cfg


def run_job(job: Job, folder: Path, data: Path) -> dict[str, Any]:
    """Train and score; or measure the time of a step. Return the numbers of the line in the results."""
    from refseg.analysis.flops import count
    from refseg.engine.checkpoint import latest_checkpoint
    from refseg.engine.run import RunOptions, load_config, train

    folder.mkdir(parents=True, exist_ok=True)
    cfg = make_config(job, data)
    cfg.dump(str(folder / "benchmark.py"))
    if job.kind == "speed":
        return {"step_seconds": seconds_of_step(cfg, folder)}
    start, continued = time.monotonic(), latest_checkpoint(folder) is not None
    options = RunOptions(work_dir=str(folder), resume=True)
    runner = train(str(folder / "benchmark.py"), options)
    numbers: dict[str, Any] = {
        "seconds": None if continued else time.monotonic() - start,
        "phrases": job.steps * BATCH * METHODS[job.method].phrases,
    }
    numbers["curve"] = learning_curve(folder)
    if job.kind == "sweep":
        return numbers

    model = runner.model.module if hasattr(runner.model, "module") else runner.model
    size = count(load_config(str(folder / "benchmark.py")), model=model)
    numbers |= {"params": size["params"], "macs": size["macs"]}
    checkpoint = latest_checkpoint(folder)
    scores = {name: score(folder, checkpoint, data / file, split) for name, (file, split) in SPLITS.items()}
    return numbers | {"scores": scores}


def seconds_of_step(cfg: Any, folder: Path) -> float:
    """Return the median time of a training step without loading: of one core on a CPU, on the clock on a GPU."""
    import torch
    from mmengine.hooks import Hook

    from refseg.engine.run import build_runner

    class Clock(Hook):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def now(self) -> float:
            if not torch.cuda.is_available():
                return time.process_time()
            torch.cuda.synchronize()
            return time.perf_counter()

        def before_train_iter(self, *_: Any, **__: Any) -> None:
            self.start = self.now()

        def after_train_iter(self, *_: Any, **__: Any) -> None:
            self.seconds.append(self.now() - self.start)

    torch.set_num_threads(1)
    cfg.work_dir, cfg.launcher = str(folder), "none"
    cfg.param_scheduler = None  # it is longer than these steps
    runner, clock = build_runner(cfg), Clock()
    runner.register_hook(clock)
    runner.train()
    return statistics.median(clock.seconds[2:])


def learning_curve(folder: Path) -> list[tuple[float, float]]:
    """Return (step, gIoU on val) of each validation."""
    from refseg.report.work_dir import scalar_rows, training_curves

    (curve,) = (curve for curve in training_curves(scalar_rows(folder)).metrics if curve.name == "refseg/gIoU")
    return list(zip(curve.steps, curve.values, strict=True))


def score(folder: Path, checkpoint: Path, file: Path, split: str) -> dict[str, Any]:
    """Return the scores of a checkpoint on a split: overall, by group, and the IoU of each phrase in thousandths."""
    import numpy as np

    from refseg.engine.run import RunOptions, test
    from refseg.evaluation.breakdowns import with_columns
    from refseg.evaluation.protocols import get_protocol
    from refseg.evaluation.scorer import open_data, result_of, score_file

    predictions = folder / f"{file.stem}_{split}.jsonl"
    options = {"test_dataloader.dataset.annotations.file": str(file), "test_dataloader.dataset.split": split}
    start = time.monotonic()
    run = RunOptions(work_dir=str(folder / "test"), cfg_options=options)
    test(str(folder / "benchmark.py"), str(checkpoint), run, predictions=str(predictions))
    seconds, protocol, data = time.monotonic() - start, get_protocol("refseg"), open_data(f"{file}:{split}")
    scored = score_file(predictions, data.truths, [protocol])

    # Number of shapes in the image of each phrase, as a group
    names = [data.truths.expression(position).expression_id.rsplit("_", 1)[0] for position in range(len(data.truths))]
    shapes = shapes_by_image(file.parent)
    objects = np.array([f"{shapes[name] // 2 * 2} or {shapes[name] // 2 * 2 + 1}" for name in names], object)
    rows = with_columns(scored.rows["refseg"], data.truths, {"tag:objects": objects})
    result = result_of(protocol, rows, scored.counts["refseg"], None, GROUPS)
    worth = [round(1000 * value) for value in protocol.worth_of(rows).tolist()]
    return {"metrics": result["metrics"], "by": result["by"], "iou": worth, "seconds": seconds}


def shapes_by_image(data: Path) -> dict[str, int]:
    """Return the number of shapes of each image of val and test, by the name of its file without suffix."""
    count: dict[str, int] = {}
    for layout in ("grefcoco", "ref-zom"):
        table = json.loads((data / layout / "instances.json").read_text(encoding="utf-8"))
        shapes = Counter(entry["image_id"] for entry in table["annotations"])
        count |= {Path(image["file_name"]).stem: shapes[image["id"]] for image in table["images"]}
    return count


# Results --------------------------------------------------------------------------------------------------------------


class Results:
    """The lines of the results file. Lines are only ever appended."""

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, threading.Lock()
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]

    def add(self, row: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.lock, open(self.file, "ab", buffering=0) as lines:
            self.rows.append(row)
            lines.write(json.dumps(row).encode() + b"\n")  # in one call, so that other processes may append, too


def identity(cfg: Any) -> str:
    """Return a hash of what decides about a training: the config without its seed and without names of files."""
    keys = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "auto_scale_lr")
    text = json.dumps({key: cfg[key] for key in keys}, sort_keys=True, default=str)
    folder = str(Path(cfg.train_dataloader.dataset.annotations.file).parent)
    return hashlib.sha256(text.replace(folder, "").encode()).hexdigest()[:12]


def machine() -> str:
    """Return the name of the GPU, or of the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def do_jobs(jobs: Sequence[Job], results: Results, args: argparse.Namespace) -> None:
    """Do the jobs that have no line in the results yet, `args.jobs` of them side by side."""
    todo = []
    for job in jobs:
        if done_row(job, results, args.data) is None:
            todo.append((job, identity(make_config(job, args.data))))
    start = time.monotonic()

    def do(number: int, job: Job, digest: str) -> None:
        folder = args.out / f"{job.kind}_{job.method}_{job.seed}_{digest}".replace(" ", "_").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--worker", json.dumps(job._asdict()), "--data", str(args.data)]
        command += ["--out", str(folder)]
        threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
        paths = os.pathsep.join(filter(None, [str(REPOSITORY / "projects"), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=environment)
        if done.returncode:
            raise SystemExit(f"{job.method} failed with exit code {done.returncode}; the end of {log.name} says why")
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        results.add({**job._asdict(), "hash": digest, **row})
        gone = (time.monotonic() - start) / 60
        print(
            f"{number}/{len(todo)} {job.kind} {job.method}, seed {job.seed}, rate {job.rate:g} ({gone:.0f} min)",
            flush=True,
        )

    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = [pool.submit(do, number, job, digest) for number, (job, digest) in enumerate(todo, 1)]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def done_row(job: Job, results: Results, data: Path) -> dict[str, Any] | None:
    """Return the line of a finished job with today's config, if there is one."""
    digest = identity(make_config(job, data))
    found = results.find(kind=job.kind, method=job.method, seed=job.seed, steps=job.steps, hash=digest)
    return found[-1] if found else None


def steps_of(name: str, args: argparse.Namespace, results: Results) -> int:
    """Return the number of steps that a budget allows. The first measured time of a step counts, on any CPU or GPU."""
    if args.phrases:
        return max(1, args.phrases // (BATCH * METHODS[name].phrases))
    (speed, *_) = results.find(kind="speed", method=name, gpu=on_gpu())
    return max(1, int(args.seconds / speed["step_seconds"]))


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_benchmark(args: argparse.Namespace, results: Results) -> None:
    """Measure steps if the budget is a time, choose learning rates, and train."""
    budget = f"{args.phrases:,} phrases" if args.phrases else f"{args.seconds:g} s"
    if args.seconds:
        known = {row["method"] for row in results.find(kind="speed", gpu=on_gpu())}
        alone = argparse.Namespace(**{**vars(args), "jobs": 1})
        do_jobs([Job("speed", name, 0, 1.0, 12, "") for name in args.methods if name not in known], results, alone)
    steps = {name: steps_of(name, args, results) for name in args.methods}

    # The learning rate of each method
    rates = dict.fromkeys(args.methods, args.rates[0])
    if len(args.rates) > 1:
        sweep = {
            (name, rate): Job("sweep", name, SWEEP_SEED, rate, max(1, int(SWEEP_SHARE * steps[name])), budget)
            for name in args.methods
            for rate in args.rates
        }
        do_jobs(list(sweep.values()), results, args)
        for name in args.methods:
            tried = [row for rate in args.rates if (row := done_row(sweep[name, rate], results, args.data))]
            rates[name] = max(tried, key=lambda row: row["curve"][-1][1])["rate"]

    # Seed by seed, so that every method has numbers early
    jobs = [
        Job("run", name, seed, rates[name], steps[name], budget) for seed in range(args.seeds) for name in args.methods
    ]
    do_jobs(jobs, results, args)


def add_references(results: Results, data: Path) -> None:
    """Score answers on test that ignore the phrase, the image, or the order of words."""
    import refshapes_baselines as baselines

    rows = baselines.read(data, "test")
    blind = baselines.ImageBlind(baselines.read(data, "train", baselines.TRAIN_ROWS))
    answers = {
        "text-blind: all shapes": [baselines.set_areas(baselines.all_shapes(row), row) for row in rows],
        "image-blind: words and pairs of words": blind.test(rows)[0],
        "bag of words, knows all attributes": [baselines.set_areas(baselines.any_word(row), row) for row in rows],
    }
    for name, areas in answers.items():
        results.add({"kind": "reference", "method": name, "gIoU": 100 * baselines.mean_iou(areas)})


# Page -----------------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- findings -->", "<!-- end of findings -->"
INTRODUCTION = """# RefShapes mini: all methods, equal budgets

Written by `tools/benchmark/refshapes.py` from `{results}`. [RefShapes](../refshapes.md) says what the data and the
skills are. Studies of single methods: {studies}.

All methods start from random weights and get the same data: 2,400 images of 96 x 96 pixels with 18 phrases each, of
which 15 % refer to nothing. Images and words are encoded by the same Swin (four stages, 16 to 128 channels) and the
same BERT of two layers. VIPA has the first three stages, and Latent-VG has its one encoder of both, a BEiT-3 of six
layers. A step has 8 images with 6 phrases each. InstAlign and Mask2Former encode an image once for all its phrases, and
take 18. All train with Muon and AdamW, at most 50 steps of warm-up, and cosine decay. The last checkpoint counts, by
protocol `refseg`. Tables have the mean over seeds, and the range.
"""


def mean_range(values: Sequence[float]) -> str:
    between = " to " if min(values) < 0 else "-"
    extent = f" ({min(values):.1f}{between}{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{extent}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows whose config is that of the last row, one for each seed."""
    by_seed = {row["seed"]: row for row in rows if row["hash"] == rows[-1]["hash"]}
    return [by_seed[seed] for seed in sorted(by_seed)]


def paired(ablation: dict[str, Any], method: dict[str, Any]) -> str:
    """Return the difference in gIoU on test and its p-value, of two runs of one seed."""
    import numpy as np

    from refseg.evaluation.statistics import paired_test

    terms = [{"gIoU": (np.array(run["scores"]["test"]["iou"]) / 1000, 1.0)} for run in (ablation, method)]
    image = np.arange(len(terms[0]["gIoU"][0])) // 6  # mini has 6 phrases of each image, in the order of images
    result = paired_test(*terms, image)["gIoU"]
    return f"{result.difference:+.1f} ({result.p_value:.2g})"


def write_page(results: Results, args: argparse.Namespace) -> None:
    from refseg.report.plots import Curve, plot_svg

    old = args.page.read_text(encoding="utf-8") if args.page.is_file() else ""
    findings = old[old.index(BEGIN) : old.index(END) + len(END)] if BEGIN in old and END in old else f"{BEGIN}\n{END}"
    studies = ", ".join(
        f"[{file.stem.replace('_', ' ')}]({file.name})"
        for file in sorted(args.page.parent.glob("*.md"))
        if file != args.page
    )
    shown = args.results.resolve()
    shown = shown.relative_to(REPOSITORY) if shown.is_relative_to(REPOSITORY) else shown
    lines = [INTRODUCTION.format(results=shown, studies=studies), findings, ""]

    for budget in dict.fromkeys(row["budget"] for row in results.find(kind="run")):
        runs = {
            name: newest(found) for name in METHODS if (found := results.find(kind="run", budget=budget, method=name))
        }
        main = {name: rows for name, rows in runs.items() if not METHODS[name].ablates or name == "Mask2Former"}
        test = {name: [row["scores"]["test"] for row in rows] for name, rows in main.items()}
        gpu = next(iter(runs.values()))[0]["gpu"]
        what = "phrases seen" if "phrases" in budget else f"training time{'' if gpu else ' of one core'}"
        lines += [f"## {budget}: equal {what}", "", f"    python tools/benchmark/refshapes.py --{option_of(budget)}"]

        # Scores on test
        metrics = ("gIoU", "cIoU", "mIoU", "AUC", "N-acc", "T-acc")
        rows = []
        for name, scores in test.items():
            cells = [
                mean_range([one["metrics"][m] for one in scores]) if m in scores[0]["metrics"] else "-" for m in metrics
            ]
            words = mean_range([run["scores"]["new words"]["metrics"]["gIoU"] for run in main[name]])
            rows.append([name, str(len(scores)), *cells, words])
        rows += [[row["method"], "-", f"{row['gIoU']:.1f}", *["-"] * 6] for row in results.find(kind="reference")]
        lines += table(["test", "seeds", *metrics, "gIoU, new words"], rows)

        # What it costs
        rows = []
        for name, found in main.items():
            speed = statistics.median(
                len(run["scores"]["test"]["iou"]) / run["scores"]["test"]["seconds"] for run in found
            )
            seen, known = found[0]["phrases"], [run["seconds"] for run in found if run["seconds"]]
            seconds = statistics.median(known) if known else None  # of trainings that were not interrupted
            numbers = [f"{found[0]['params'] / 1e6:.2f} M", f"{found[0]['macs'] / 1e6:.0f} M", f"{found[0]['steps']:,}"]
            times = ["-", "-"] if seconds is None else [f"{seconds:.0f} s", f"{seen / seconds:.0f}"]
            numbers += [f"{seen:,}", *times, f"{speed:.0f}", f"{found[0]['rate']:g}"]
            rows.append([name, *numbers])
        costs = "parameters|MACs of a phrase|steps|phrases seen|training and validations|phrases/s|test, phrases/s"
        lines += table(["", *costs.split("|"), "learning rate x"], rows)

        # By skill, number of shapes, and length
        for group, label in (("skill", "skill"), ("tag:objects", "shapes in the image"), ("length", "length")):
            names = list(dict.fromkeys(one[group] for scores in test.values() for one in scores[0]["by"][group]))
            rows = []
            for name, scores in test.items():
                by = [{one[group]: one.get("gIoU") for one in run["by"][group]} for run in scores]
                rows.append([name, *(f"{statistics.mean(one[key] for one in by):.1f}" for key in names)])
            lines += table([f"gIoU by {label}", *names], rows)

        # Learning curves
        curves = []
        for name, found in main.items():
            steps = [step for step, _ in found[0]["curve"]]
            values = [statistics.mean(run["curve"][i][1] for run in found) for i in range(len(steps))]
            scale = (
                found[0]["phrases"] / found[0]["steps"]
                if "phrases" in budget
                else args_seconds(budget) / found[0]["steps"]
            )
            curves.append(Curve(name, tuple(step * scale for step in steps), tuple(values)))
        picture = f"refshapes_{option_of(budget).replace(' ', '_')}.svg"
        unit = "phrases seen" if "phrases" in budget else "seconds of training"
        svg = plot_svg(curves, title="gIoU on val during training", x_label=unit)
        pictures = args.page.parent.parent / "images"
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / picture).write_text(svg + "\n", encoding="utf-8")
        lines += [f"![gIoU on val against {unit}](../images/{picture})", ""]

        # Ablations
        rows = []
        for name, found in runs.items():
            method = METHODS[name]
            of = {run["seed"]: run for run in runs.get(method.ablates, [])}
            both = [(run, of[run["seed"]]) for run in found if run["seed"] in of]
            if both:
                gains = [
                    full["scores"]["test"]["metrics"]["gIoU"] - run["scores"]["test"]["metrics"]["gIoU"]
                    for run, full in both
                ]
                tests = "; ".join(paired(*pair) for pair in both)
                rows.append([f"{method.ablates} - {name}", mean_range(gains), tests, method.published])
        if rows:
            lines += [
                "### The central ablations",
                "",
                "Difference in gIoU on test, seed by seed, with the p-value of a paired test over images. It compares",
                "two trained networks, and knows nothing of other seeds.",
            ]
            lines += table(["", "mean", "of each seed (p)", "in the paper"], rows)

        # Learning rates
        sweep = {(row["method"], row["rate"]): row for row in results.find(kind="sweep", budget=budget)}
        rates = sorted({rate for _, rate in sweep})
        if rates:
            share = f"{SWEEP_SHARE:.0%}"
            lines += [
                "### Learning rates",
                "",
                f"gIoU on val after {share} of the budget, at multiples of the rate 0.001.",
            ]
            rows = [
                [
                    name,
                    *(f"{sweep[name, rate]['curve'][-1][1]:.1f}" if (name, rate) in sweep else "-" for rate in rates),
                ]
                for name in METHODS
                if any((name, rate) in sweep for rate in rates)
            ]
            lines += table(["", *(f"x {rate:g}" for rate in rates)], rows)

    runs = results.find(kind="run")
    lines += ["## Where the numbers come from", ""]
    facts = Counter((row["machine"], row["torch"], row["revision"]) for row in runs)
    lines += [
        f"- {count} trainings on {who}, torch {torch}, revision {revision}"
        for (who, torch, revision), count in facts.items()
    ]
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def option_of(budget: str) -> str:
    number, unit = budget.replace(",", "").split()
    return f"phrases {number}" if unit == "phrases" else f"seconds {number}"


def args_seconds(budget: str) -> float:
    return float(budget.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    add("--seeds", type=int, default=3, help="trainings of each method (default: %(default)s)")
    add("--phrases", type=int, help="budget: phrases of a training")
    add("--seconds", type=float, help="budget: time of a training")
    add("--rates", type=float, nargs="+", default=[1.0], help="learning rates to choose from, as multiples")
    add("--jobs", type=int, default=1, help="trainings side by side (default: %(default)s)")
    add("--data", type=Path, default=REPOSITORY / "data/refshapes_mini", help="folder of RefShapes mini")
    add("--out", type=Path, default=REPOSITORY / "work_dirs/refshapes_benchmark", help="folder for the trainings")
    add("--results", type=Path, default=REPOSITORY / "docs/results/refshapes.jsonl", help="file of finished trainings")
    add("--page", type=Path, default=REPOSITORY / "docs/results/refshapes.md", help="page to write")
    add("--page-only", action="store_true", help="write the page from the results")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        import torch

        job = Job(**json.loads(args.worker))
        git = ("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")
        revision = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
        facts = {"machine": machine(), "gpu": on_gpu(), "torch": torch.__version__, "revision": revision}
        facts["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        row = run_job(job, args.out, args.data) | facts
        (args.out / "row.json").write_text(json.dumps(row), encoding="utf-8")
        return
    results = Results(args.results)
    if not args.page_only:
        if (args.phrases is None) == (args.seconds is None):
            parser.error("give a budget: either --phrases or --seconds")
        if not (args.data / "refshapes.jsonl").is_file():
            parser.error(f"{args.data} has no RefShapes: refseg data refshapes --preset mini --out {args.data}")
        run_benchmark(args, results)
        if not results.find(kind="reference"):
            add_references(results, args.data)
    write_page(results, args)


if __name__ == "__main__":
    main()
