"""Check that a training that is killed and resumed has the same losses as one that is not interrupted.

    python tools/dev/kill_and_resume.py CONFIG [--kills 4] [--gpus 2] [--cfg-options KEY=VALUE ...]

Train CONFIG without interruption, then again with kills (SIGKILL): alternately at a random step and during the write of
a checkpoint, each followed by `--resume`. Compare the losses of each step. The exit code is 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from refseg.cli import main as main_of_refseg
from refseg.engine.run import load_config

TOOLS = Path(__file__).resolve().parents[1]


def read_losses(work_dir: Path) -> dict[int, float]:
    """Return the loss of each step from mmengine's scalars.json files. The last value counts for a repeated step."""
    losses = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the kill interrupted this line
                continue
            if "loss" in row:
                losses[int(row["step"])] = float(row["loss"])
    return losses


def start(args: argparse.Namespace, work_dir: Path, *, resume: bool) -> BaseProcess:
    """Start a training in a new process group, with its output in a file beside its work directory."""
    arguments = ["--work-dir", str(work_dir), *(["--resume"] if resume else [])]
    arguments += ["--cfg-options", "default_hooks.logger.interval=1", *args.cfg_options]
    process = multiprocessing.get_context("fork").Process(target=train, args=(args, arguments, f"{work_dir}.log"))
    process.start()
    return process


def train(args: argparse.Namespace, arguments: list[str], log: str) -> NoReturn:
    """Train in this process, a fork that has imported everything already, or in those of dist_train.sh."""
    os.setsid()
    with open(log, "a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    if args.gpus > 1:
        script = str(TOOLS / "dist_train.sh")
        command = ["bash", script, args.config, str(args.gpus), *arguments]
        os.execvpe("bash", command, os.environ | {"PYTHON": sys.executable})
    sys.exit(main_of_refseg(["train", args.config, *arguments]))


def is_writing(work_dir: Path) -> bool:
    return work_dir.is_dir() and any(name.endswith(".part") and ".pth" in name for name in os.listdir(work_dir))


def kill_when(process: BaseProcess, work_dir: Path, *, in_write: bool, after_steps: int) -> bool:
    """Kill the process group during a checkpoint write or after some steps. Return False if it ended before."""
    while process.is_alive():
        if is_writing(work_dir) if in_write else len(read_losses(work_dir)) >= after_steps:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0 if in_write else 0.02)
    return False


def failed(process: BaseProcess) -> bool:
    process.join()
    return process.exitcode != 0


def run_with_kills(args: argparse.Namespace, work_dir: Path, steps: int) -> list[str]:
    """Run with kills and resumes. Return a line about each kill."""
    events, draw = [], random.Random(args.seed)
    for kill in range(args.kills):
        in_write = kill % 2 == 1
        process = start(args, work_dir, resume=kill > 0)
        after = draw.randint(1 + steps * kill // (args.kills + 1), max(1, steps * (kill + 1) // (args.kills + 1)))
        if not kill_when(process, work_dir, in_write=in_write, after_steps=after):
            events.append("the run ended before the kill")
            break
        half = " (an incomplete file remains)" if is_writing(work_dir) else ""
        where = f"during a checkpoint write{half}" if in_write else "during training"
        events.append(f"killed {where}, {len(read_losses(work_dir))} steps logged")
    if failed(start(args, work_dir, resume=True)):
        sys.exit(f"the resumed run failed; see {work_dir}.log")
    return events


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=1, help="processes of dist_train.sh; 1 trains without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference of losses")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    args = parser.parse_args()
    load_config(args.config)  # imports what every training needs, once
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "killed")
        if failed(start(args, whole, resume=False)):
            print(Path(f"{whole}.log").read_text()[-3000:], file=sys.stderr)
            return 1
        expected = read_losses(whole)
        events = run_with_kills(args, broken, len(expected))
        resumed = read_losses(broken)
        leftovers = [path.name for path in broken.glob(".*.part")]
    print("\n".join(events))
    both = set(expected) & set(resumed)
    worst = max((abs(resumed[step] - expected[step]) / max(abs(expected[step]), 1e-12) for step in both), default=0)
    missing = sorted(set(expected) ^ set(resumed))
    print(f"{len(expected)} steps; largest relative difference of losses {worst:.2e}; steps not in both {missing}")
    if leftovers:
        print(f"temporary files remain: {leftovers}")
    return int(worst > args.tolerance or bool(missing) or bool(leftovers))


if __name__ == "__main__":
    sys.exit(main())
