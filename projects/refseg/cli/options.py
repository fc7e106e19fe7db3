"""Options that several verbs share, and their checks."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, get_args

from refseg.errors import UsageError
from refseg.evaluation.breakdowns import BREAKDOWNS, TAG, get_breakdown
from refseg.evaluation.other_formats import is_coco_results
from refseg.evaluation.protocols import PROTOCOLS, READ_BY, Protocol, get_protocol
from refseg.records import NoTargetRule

# Models ---------------------------------------------------------------------------------------------------------------

MODEL = "config (file, or name of one that ships), checkpoint, or work directory"
WEIGHTS = "checkpoint or work directory, if MODEL is a config"


def add_cfg_options(parser: Any) -> None:
    from refseg.compat import dict_action

    more: Any = dict(nargs="+", action=dict_action(), default={}, metavar="KEY=VALUE")
    parser.add_argument("--cfg-options", **more, help="overrides of config keys")


def add_model_options(parser: Any) -> None:
    """Add --cfg-options and --allow-download, which `refseg.cli.main` applies."""
    add_cfg_options(parser)
    parser.add_argument("--allow-download", action="store_true", help="allow downloads from the hub: models, encoders")


def open_inferencer(args: argparse.Namespace, **options: Any) -> Any:
    """Load the model that the arguments name, and print what users must know about it.

    Args:
        args: values of `model`, `weights`, `device`, `dtype`, and `add_model_options`.
        **options: more arguments of `ReferringInferencer`.
    """
    from refseg.inference.inferencer import ReferringInferencer
    from refseg.shipped import ShapesOnlyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapesOnlyWarning)  # printed below, without a place in the code
        inferencer = ReferringInferencer(
            args.model, args.weights, device=args.device, dtype=args.dtype, cfg_options=args.cfg_options, **options
        )
    if inferencer.loaded.note:
        print(f"note: {inferencer.loaded.note}", file=sys.stderr)
    return inferencer


def add_launcher(parser: Any) -> None:
    """Add the option for a share of the images."""
    text = "share the images with the other processes of torchrun (which is noticed without it) or srun"
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help=text)


def share_of_process(args: argparse.Namespace) -> tuple[int, int]:
    """Return the number of this process and the number of all, and choose a GPU of its own unless the user did.

    torchrun's variables count without `--launcher`, too. Slurm's do not, because a batch script has them, which is a
    single process.
    """
    slurm = args.launcher == "slurm"
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if slurm else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size = int(os.environ.get(names[0]) or 0), int(os.environ.get(names[1]) or 1)
    if not 0 <= rank < size:
        raise UsageError(f"{names[0]} is {rank}, but {names[1]} is {size}. Set both, or neither, as torchrun does.")
    if args.device is None and names[2] in os.environ:
        import torch

        if torch.cuda.is_available():
            args.device = f"cuda:{int(os.environ[names[2]]) % torch.cuda.device_count()}"
    return rank, size


class _RefuseGpus(argparse.Action):
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
    parser.add_argument("--gpus", action=_RefuseGpus, help=argparse.SUPPRESS)


def run_options(args: argparse.Namespace, **more: Any) -> Any:
    """Return the `RunOptions` that the arguments describe."""
    from refseg.engine.run import RunOptions

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return RunOptions(work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher, **more)


# Scores ---------------------------------------------------------------------------------------------------------------

FORMATS = """
predictions can be
  a prediction file (.jsonl, .jsonl.gz), as `refseg test --predictions` writes it (fields: docs/protocols.md)
  a folder of PNGs, one per expression, named by expression id. Characters that a file name cannot have are
    percent-encoded (a/b is a%2Fb.png). Gray, black and white, or RGB: 0 is background, everything else is mask
  COCO results (.json): a list of objects with an id (the first of expression_id, image_id and id that the first entry
    has), segmentation (an RLE), score and bbox. Entries with the same id are one answer. Their masks are merged, and
    each entry is a box: its bbox, or the box around its mask. "Nothing here" is an entry with an empty mask, or no
    entry and --absent-is-nothing
"""


def add_scoring_options(
    parser: argparse.ArgumentParser, *, protocols: str, by: str, data_required: bool = True
) -> None:
    """Add the options that `refseg score`, `refseg compare` and `refseg report` share.

    Args:
        parser: parser of the verb.
        protocols: metavar of --protocol.
        by: default of --by.
        data_required: whether --data must be given.
    """
    parser.epilog = FORMATS
    add = parser.add_argument
    add(
        "--data",
        required=data_required,
        metavar="SET:SPLIT",
        help="data set (a name from `refseg data layout`, a JSONL file or a folder) and its splits: grefcoco:testA, "
        "refcoco:val,testA, my.jsonl:test (default: all splits)",
    )
    add("--protocol", default="refseg", metavar=protocols, help=f"{', '.join(PROTOCOLS)} (default: refseg)")
    groups = ", ".join([*BREAKDOWNS, f"{TAG}NAME"])
    add("--by", default=by, metavar="GROUP[,GROUP]", help=f"break down by {groups} (default: {by or 'none'})")
    add("--json", metavar="FILE", help="also write all results to this file")
    add("--no-target-rule", choices=get_args(NoTargetRule), help="rule for 'nothing here', instead of the protocol's")
    head = "no-target probability above which a phrase is rejected (default: 0.5; rules head and head-or-empty)"
    add("--no-target-threshold", type=probability, metavar="P", help=head)
    area = "mask area below which a phrase is rejected (default: 50; rule area)"
    add("--min-area", type=at_least(1), metavar="PIXELS", help=area)
    add("--min-score", type=finite, metavar="S", help="ignore masks of COCO results with a lower score")
    add_matching_options(parser)


def add_matching_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for predictions that do not match the data one to one, and --data-root."""
    add = parser.add_argument
    add("--absent-is-nothing", action="store_true", help="count a missing prediction as the answer 'nothing here'")
    add("--drop-no-target", action="store_true", help="ignore expressions that refer to nothing")
    partial = "report missing, duplicate, extra and wrong-sized predictions, and score the rest"
    add("--allow-partial", action="store_true", help=partial)
    add_data_root(parser)


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="folder to use for `data/...` paths (default: $REFSEG_DATA)")


def scoring_options(args: argparse.Namespace, *files: str) -> tuple[list[Protocol], list[str]]:
    """Return the protocols and breakdowns that the arguments describe. Mistakes are errors before any work is done.

    `args.absent_is_nothing` becomes true for protocols that list objects: their files have no row for "nothing here".

    Args:
        args: values of `add_scoring_options`.
        files: files of predictions.
    """
    protocols = [get_protocol(name) for name in names_in(args.protocol)]
    # The options' rule for "nothing here"
    options = {"rule": args.no_target_rule, "threshold": args.no_target_threshold, "min_area": args.min_area}
    changes = {name: value for name, value in options.items() if value is not None}
    for protocol in protocols:
        rule = changes.get("rule", protocol.no_target.rule)
        for option, key in (("--no-target-threshold", "threshold"), ("--min-area", "min_area")):
            if key in changes and rule not in READ_BY[key] and protocol.no_target.rule != "none":
                raise UsageError(f"{option} needs --no-target-rule {READ_BY[key][0]}. {protocol.name} uses {rule}")
    protocols = [protocol.with_no_target(**changes) for protocol in protocols]
    args.absent_is_nothing = args.absent_is_nothing or all(protocol.lists_objects for protocol in protocols)
    # Breakdowns
    groups = names_in(args.by) if args.by else []
    for group in groups:
        get_breakdown(group)
    if args.min_score is not None and not any(is_coco_results(file) and os.path.isfile(file) for file in files):
        raise UsageError(f"--min-score needs COCO results (.json), and {', '.join(files)} has none")
    return protocols, groups


def names_in(argument: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in argument.split(",")))
    if not all(names):
        raise UsageError(f"{argument!r} is not a list of names, as in a,b")
    return names


# Types. argparse shows the message of an ArgumentTypeError. -----------------------------------------------------------


def at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return convert


def finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def probability(text: str) -> float:
    number = finite(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1]")
    return number
