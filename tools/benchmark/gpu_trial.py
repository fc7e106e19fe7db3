"""Test and measure refseg on the GPU of this machine, in a limited time and without a network.

    python tools/benchmark/gpu_trial.py --minutes 8 --out work_dirs/gpu_trial
    python tools/benchmark/gpu_trial.py --dry-run --out /tmp/trial      # every step at toy size on the CPU

The steps run one after the other, the most valuable ones first, each in a process of its own with a share of the time
that is left. Each number is appended to OUT/results.jsonl as soon as it is measured. OUT/report.md is written after
every step, and OUT/log.txt has the output of all steps. The same command again skips the steps that are finished, so a
trial can be continued after a kill, or on another day.

Models have random weights and get synthetic images and phrases of 20 tokens, at the input size of their configs, in
bf16 by autocast. A training step counts as three times the FLOPs of the forward pass, as `refseg flops` counts them.
MFU is the share of these FLOPs per second in the GPU's nominal rate.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = {
    "instalign": "instalign_swinb",
    "rela": "rela_swinb",
    "lavt": "lavt_swinb",
    "lgformer": "lgformer_swinb",
    "vipa": "vipa_swinb",
    "latentvg": "latentvg_beit3b",
}
# Dense bf16 FLOP/s with sums in fp32, from NVIDIA's datasheets (half of the figures "with sparsity"). The first name
# in the device's counts. On an H200, a large matrix product was measured at 790e12.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A6000": 155e12, "A5000": 111e12}


class Trial:
    """The output folder, and the facts that every row of results.jsonl repeats."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dry, self.out, self.minutes = args.dry_run, args.out.resolve(), args.minutes
        self.deadline = time.monotonic() + args.seconds  # of a step
        self.device = "cpu" if self.dry else "cuda"
        self.facts = {
            "device": "cpu" if self.dry else output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
            "torch": importlib.metadata.version("torch"),
            "revision": output_of("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
        }

    def write(self, step: str, what: str, **numbers: Any) -> None:
        """Append a row to results.jsonl."""
        row = {
            "step": step,
            "what": what,
            **numbers,
            **self.facts,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with open(self.out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the rows with the given values, oldest first. A row that a kill cut off is left out."""
        rows = []
        file = self.out / "results.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def output_of(*command: str) -> str:
    """Return the first line that a command prints; "unknown" if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


# Steps. Each runs in a process of its own -----------------------------------------------------------------------------


def run_tests(trial: Trial) -> int:
    """Run the tests marked `gpu`; in a dry run, those of the same file on the CPU. Return pytest's exit code."""
    import pytest

    class Recorder:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                crash = getattr(report.longrepr, "reprcrash", None)
                error = crash.message.splitlines()[0] if crash else ""
                numbers = dict(outcome=report.outcome, test_seconds=round(report.duration, 2), error=error)
                trial.write("tests", "test", test=report.nodeid, **numbers)

    os.chdir(REPOSITORY)
    options = ["-q", "-p", "no:cacheprovider"]
    if trial.dry:
        return int(pytest.main([*options, "-m", "not gpu", "tests/test_devices.py"], plugins=[Recorder()]))
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    files = ["tests/test_devices.py", "tests/test_configs.py"]
    return int(pytest.main([*options, "-m", "gpu", *files], plugins=[Recorder()]))


def run_kernels(trial: Trial) -> None:
    """Measure the ceilings of the device, and deformable attention against mmcv's form in PyTorch."""
    import deformable_attention
    import torch

    side, count = (256, 2**20) if trial.dry else (8192, 2**31)  # 2**31 numbers in bf16 are 4 GiB
    left, right = torch.randn(2, side, side, device=trial.device, dtype=torch.bfloat16)
    source = torch.ones(count, device=trial.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    product, copy = seconds_of(lambda: left @ right, 20), seconds_of(lambda: target.copy_(source), 20)
    trial.write("kernels", "ceilings", tflops=2e-12 * side**3 / product, copy_gb_per_s=4e-9 * count / copy)
    size, images = (64, 1) if trial.dry else (480, 8)
    for dtype in ("float32", "bfloat16"):
        settings = dict(size=size, images=images, device=trial.device, dtype=dtype, threads=None, repeats=11)
        result = deformable_attention.measure(argparse.Namespace(**settings))
        trial.write("kernels", "deformable attention", **result, dtype=dtype, images=images)


def seconds_of(function: Callable[[], Any], calls: int) -> float:
    """Return the mean time of a call after two warm-up calls. The timer waits for the device."""
    from torch.utils.benchmark import Timer

    return Timer("function()", globals={"function": function}).timeit(calls).mean


def load(trial: Trial, name: str) -> tuple[Any, tuple[int, int]]:
    """Return a model's config and its input size; in a dry run, those of a toy."""
    from refseg.engine.run import input_size, load_config

    cfg = load_config(MODELS[name])
    if trial.dry:
        cfg.merge_from_dict(cfg._tiny)
    return cfg, (64, 64) if trial.dry else input_size(cfg)


def run_model(trial: Trial, name: str, *, compiled: bool) -> None:
    """Measure training with larger and larger batches, and the latency of inference."""
    import torch

    from refseg.analysis.benchmark import benchmark
    from refseg.analysis.flops import count
    from refseg.engine.run import build_model

    step = f"{name} compiled" if compiled else name
    cfg, shape = load(trial, name)
    model = build_model(cfg).to(trial.device)
    flops = 3 * count(cfg, model=model, shape=shape)["flops"]
    peak = next((value for device, value in PEAK_FLOPS.items() if device in trial.facts["device"]), None)
    how = dict(model=model, shape=shape, device=trial.device, amp=True)
    how |= dict(iters=1, warmup=0) if trial.dry else dict(iters=8, warmup=3)
    if compiled:
        how["backend"] = "aot_eager" if trial.dry else "inductor"

    # Training: double the batch until it does not fit, is not faster, or time is short. Compile for the best one only.
    eager = trial.rows(step=name, what="training")
    batches, best, spent = [1, 2] if trial.dry else [8, 16, 32, 64, 128], 0.0, 0.0
    if compiled and eager:
        batches = [max(eager, key=lambda row: row["images_per_s"])["batch"]]
    for batch in batches:
        start = time.monotonic()
        if start + 3 * spent > trial.deadline:
            break
        try:
            (row,) = benchmark(cfg, modes=["training"], batch_size=batch, **how)
        except torch.OutOfMemoryError:
            trial.write(step, "training", batch=batch, images_per_s=0.0, error="out of memory")
            break
        rate, spent = flops * row["images_per_s"], time.monotonic() - start
        trial.write(step, batch=batch, gflop=flops / 1e9, tflops=rate / 1e12, mfu=peak and rate / peak, **row)
        if row["images_per_s"] < 1.03 * best:
            break
        best = row["images_per_s"]
    model.zero_grad()

    # Inference, from images and phrases to masks
    for expressions in (1,) if compiled else (1, 8):
        if time.monotonic() < trial.deadline - 5:
            (row,) = benchmark(cfg, modes=["inference"], expressions=expressions, **how)
            trial.write(step, expressions=expressions, **row)


def run_profile(trial: Trial) -> None:
    """Profile InstAlign's training step: kernels of the GPU, in a dry run operators."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from refseg.analysis.benchmark import make_calls
    from refseg.analysis.synthetic import dummy_batch, vocabulary_size
    from refseg.engine.run import build_model

    cfg, shape = load(trial, "instalign")
    model = build_model(cfg).to(trial.device).train()
    batch, steps = (2, 1) if trial.dry else (16, 3)
    data = dummy_batch(shape=shape, num_images=batch, vocab_size=vocabulary_size(model))
    step = make_calls(model, data, amp=True)["training"]
    seconds = seconds_of(step, steps)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not trial.dry)) as profiler:
        for _ in range(steps):
            step()
        if not trial.dry:
            torch.cuda.synchronize()
    kind, key = (DeviceType.CPU, "self_cpu_time_total") if trial.dry else (DeviceType.CUDA, "self_device_time_total")
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    total, launches = sum(getattr(event, key) for event in events), sum(event.count for event in events)
    numbers = dict(step_ms=1e3 * seconds, busy_ms=total / 1e3 / steps, launches=launches / steps)
    trial.write("profile", "profile", batch=batch, **numbers)
    for event in sorted(events, key=lambda event: getattr(event, key), reverse=True)[:30]:
        used = getattr(event, key)
        numbers = dict(ms=used / 1e3 / steps, calls=event.count / steps, share=used / total)
        trial.write("profile", "kernel", kernel=event.key[:120], **numbers)


def run_refshapes(trial: Trial) -> None:
    """Generate RefShapes, train tiny InstAlign on it, and score the best checkpoint on the test split."""
    from refseg.engine.checkpoint import best_checkpoint
    from refseg.engine.run import RunOptions, test, train
    from refseg.refshapes import generate

    preset, epochs = ("tiny", 1) if trial.dry else ("mini", max(3, round(3 * trial.minutes / 8)))
    folder = REPOSITORY / "work_dirs" / f"gpu_trial_refshapes_{preset}"
    data, run = folder / "data", str(folder / "run")
    if not trial.rows(step="refshapes"):  # left by another trial
        shutil.rmtree(run, ignore_errors=True)
        trial.write("refshapes", "begin")
    generate(preset, data, progress=False)
    options: dict[str, Any] = {"train_cfg.max_epochs": epochs, "train_cfg.val_interval": 1}
    for split in ("train", "val", "test"):
        options[f"{split}_dataloader.dataset.annotations.file"] = str(data / "refshapes.jsonl")
        options[f"{split}_dataloader.dataset.pipeline.2.tokenizer.word_list"] = str(data / "words.txt")
        if trial.dry:
            options["param_scheduler"] = None  # it is longer than three steps
        else:
            options |= {f"{split}_dataloader.num_workers": 4, f"{split}_dataloader.pin_memory": True}
    config, start = "instalign_tiny_refshapes", time.monotonic()
    runner = train(config, RunOptions(work_dir=run, cfg_options=options, amp=not trial.dry, resume=True))
    trial.write("refshapes", "trained", steps=runner.iter, epochs=epochs, train_seconds=time.monotonic() - start)
    scores = test(config, str(best_checkpoint(run)), RunOptions(work_dir=run, cfg_options=options))
    trial.write("refshapes", "scores", data=f"RefShapes {preset}, test", scores=scores)


# Name, share of the time, and function of each step, the most valuable ones first
STEPS: dict[str, tuple[float, Callable[[Trial], int | None]]] = {
    "tests": (120, run_tests),
    "kernels": (20, run_kernels),
    "instalign": (45, lambda trial: run_model(trial, "instalign", compiled=False)),
    "profile": (25, run_profile),
    "refshapes": (90, run_refshapes),
    **{name: (25, lambda trial, name=name: run_model(trial, name, compiled=False)) for name in list(MODELS)[1:]},
    **{f"{name} compiled": (20, lambda trial, name=name: run_model(trial, name, compiled=True)) for name in MODELS},
}


# Report ---------------------------------------------------------------------------------------------------------------


def table(columns: str, rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a Markdown table; `columns` are separated by |. Numbers get three digits, None a dash."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "-" if value is None else str(value).replace("|", "/")

    count = columns.count("|") + 1
    return ["", f"| {columns} |", "|---" * count + "|", *(f"| {' | '.join(map(text, row))} |" for row in rows), ""]


def render(trial: Trial) -> str:
    """Return the report on all rows of results.jsonl. Of rows that were measured twice, it shows the last ones."""

    def last(*keys: str, **wanted: Any) -> list[dict[str, Any]]:
        return list({tuple(row.get(key) for key in keys): row for row in trial.rows(**wanted)}.values())

    def columns(keys: str, rows: Iterable[dict[str, Any]]) -> list[list[Any]]:
        return [[row.get(key) for key in keys.split()] for row in rows]

    lines = ["# GPU trial", ""]
    lines += [f"- {row['device']}, torch {row['torch']}, revision {row['revision']}" for row in last(*trial.facts)]
    ends = columns("step seconds rc error", last("step", what="step end"))
    lines += table("step | seconds | exit code | last output", ends)
    tests = last("test", what="test")
    counts = Counter(row["outcome"] for row in tests)
    lines += ["## Tests", "", ", ".join(f"{number} {outcome}" for outcome, number in counts.items())]
    failed = [row for row in tests if row["outcome"] == "failed"]
    lines += table("failed test | error", columns("test error", failed)) if failed else [""]

    lines += ["## Deformable attention", ""]
    for row in last(what="ceilings"):
        lines += [f"Ceilings: {row['tflops']:.3g} TFLOP/s (a bf16 product), {row['copy_gb_per_s']:.0f} GB/s (a copy)."]
    lines += table(
        "dtype | images | backend | pass | refseg ms | mmcv's PyTorch form ms | ratio | error | its error",
        [
            [row["dtype"], row["images"], row["backend"], way]
            + [row[way][key] for key in ("refseg_ms", "grid_sample_ms", "ratio")]
            + [max(row["error"][who].values()) for who in ("refseg", "grid_sample")]
            for row in last("dtype", what="deformable attention")
            for way in ("forward", "forward_backward")
        ],
    )
    lines += ["## Training at real size, bf16"]
    keys = "step batch images_per_s latency_ms peak_memory_mib tflops mfu error"
    rows = columns(keys, last("step", "batch", what="training"))
    lines += table("model | batch | samples/s | step ms | peak MiB | TFLOP/s | MFU | error", rows)
    lines += ["## Inference at real size, bf16"]
    keys = "step expressions expressions_per_s latency_ms peak_memory_mib"
    rows = columns(keys, last("step", "expressions", what="inference"))
    lines += table("model | phrases | phrases/s | latency ms | peak MiB", rows)
    lines += ["## Training on RefShapes", ""]
    for row in last(what="trained"):
        lines += [f"{row['epochs']} epochs, {row['steps']} steps in {row['train_seconds']:.0f} s with validation."]
    for row in last(what="scores"):
        lines += table(f"{row['data']} | score", row["scores"].items())
    lines += ["## Profile of InstAlign's training step", ""]
    for row in last(what="profile"):
        lines += [f"Batch {row['batch']}: {row['step_ms']:.1f} ms, {row['busy_ms']:.1f} of them in kernels,"]
        lines += [f"{row['launches']:.0f} launches."]
    lines += table("kernel | ms | calls | share", columns("kernel ms calls share", last("kernel", what="kernel")))
    return "\n".join(lines)


# The trial ------------------------------------------------------------------------------------------------------------


def run_step(trial: Trial, name: str, seconds: float) -> None:
    """Run a step in a process group of its own, which is killed when its time is over."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--seconds", str(seconds)]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY / "projects"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = "" if trial.dry else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    start = time.monotonic()
    with open(trial.out / "log.txt", "a+", encoding="utf-8", errors="replace") as log:
        print(f"\n===== {name} (at most {seconds:.0f} s)", file=log, flush=True)
        begin = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            rc = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            rc = 124
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            except ProcessLookupError:
                pass
            process.wait()
        log.seek(begin)
        output = log.read().split()
    error = "" if rc == 0 else "time is over" if rc == 124 else " ".join(output)[-200:]
    trial.write(name, "step end", seconds=time.monotonic() - start, rc=rc, error=error)
    print(f"{name}: {time.monotonic() - start:.0f} s, exit code {rc} {error}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time for all steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, report.md and log.txt")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--dry-run", action="store_true", help="run everything at toy size on the CPU")
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trial = Trial(args)
    if args.worker:
        return STEPS[args.worker][1](trial) or 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step, too
    end = time.monotonic() + 60 * args.minutes
    finished = {row["step"] for row in trial.rows(what="step end", rc=0)}
    names = [name for name in args.steps if name not in finished]
    (trial.out / "report.md").write_text(render(trial), encoding="utf-8")
    for number, name in enumerate(names):
        left = end - time.monotonic()
        if left < 5:
            print(f"no time for {', '.join(names[number:])}; the same command continues")
            return 1
        run_step(trial, name, left * STEPS[name][0] / sum(STEPS[other][0] for other in names[number:]))
        (trial.out / "report.md").write_text(render(trial), encoding="utf-8")
    finished = {row["step"] for row in trial.rows(what="step end", rc=0)}
    return int(not finished >= set(args.steps))


if __name__ == "__main__":
    sys.exit(main())
