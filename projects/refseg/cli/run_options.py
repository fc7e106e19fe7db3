"""Options that `refseg train` and `refseg test` share."""

from __future__ import annotations

import argparse
import os
from typing import Any

MODEL = "config (file, or name of one that ships), checkpoint, or work directory"


class RefuseGpus(argparse.Action):
    """Refuse `--gpus` of other toolboxes, and name the launcher instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        verb = parser.prog.split()[-1]
        parser.error(f"{option} is no option here. For {values} GPUs: bash tools/dist_{verb}.sh ... {values}")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `refseg train` and `refseg test` share."""
    from refseg.compat import dict_action

    parser.add_argument("--work-dir", help="where logs and checkpoints go (default: work_dirs/<config name>)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=dict_action(),
        default={},
        metavar="KEY=VALUE",
        help="overrides of config keys",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--gpus", action=RefuseGpus, help=argparse.SUPPRESS)
    parser.add_argument("--allow-download", action="store_true", help="let text encoders come from the hub")


def run_options(args: argparse.Namespace, **more: Any) -> Any:
    """Return the `RunOptions` that the arguments describe."""
    from refseg.engine.run import RunOptions

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    return RunOptions(work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher, **more)
