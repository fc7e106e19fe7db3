"""Options of the verbs that train or run a model."""

from __future__ import annotations

import argparse
import os
from typing import Any

MODEL = "config (file, or name of one that ships), checkpoint, or work directory"
WEIGHTS = "checkpoint or work directory, if MODEL is a config"


def add_cfg_options(parser: Any) -> None:
    from refseg.compat import dict_action

    more: Any = dict(nargs="+", action=dict_action(), default={}, metavar="KEY=VALUE")
    parser.add_argument("--cfg-options", **more, help="overrides of config keys")


def add_model_options(parser: Any) -> None:
    """Add --cfg-options and --allow-download, which `refseg.cli.main` applies."""
    add_cfg_options(parser)
    parser.add_argument("--allow-download", action="store_true", help="allow text encoders to come from the hub")


class RefuseGpus(argparse.Action):
    """Reject the `--gpus` of other toolboxes with a pointer to the launcher."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        verb = parser.prog.split()[-1]
        parser.error(f"{option} is not an option of refseg. For {values} GPUs: bash tools/dist_{verb}.sh ... {values}")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `refseg train` and `refseg test` share."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config name>)")
    add_model_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--gpus", action=RefuseGpus, help=argparse.SUPPRESS)


def run_options(args: argparse.Namespace, **more: Any) -> Any:
    """Return the `RunOptions` that the arguments describe."""
    from refseg.engine.run import RunOptions

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return RunOptions(work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher, **more)
