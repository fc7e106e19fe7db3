"""The `refseg` command: a table of verbs, and one place that handles errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from refseg import __version__
from refseg.errors import UserError, sentence

RANK_WAIT_S = 10.0  # an error that all processes share ends the others in this time
VERBS = {  # verb: what it does; its arguments and its work are in refseg.cli.<verb>
    "train": "train a config",
    "test": "evaluate a model on its config's test split",
    "predict": "masks for images and phrases of your own",
    "demo": "a web page to try a model with images of your own",
    "score": "score a file of predictions by named protocols",
    "compare": "compare two files of predictions on the same data",
    "report": "one page about a run: curves, scores, calibration, pictures",
    "probe": "change one thing of a phrase: does the answer follow?",
    "data": "find, check, browse, convert and generate data",
    "quickstart": "generate RefShapes, train a small model, evaluate, write a report",
    "configs": "list the configs that ship, with their methods and data sets",
    "flops": "parameters, MACs and FLOPs of a model",
    "benchmark": "samples per second, latency and memory of a model",
    "doctor": "what is installed, what works, what is missing; or whether a config can be trained here",
}


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}. `{self.prog} --help` shows the options\n")


class _Help(argparse.HelpFormatter):
    """argparse's help, with indented paragraphs (examples) as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super()._fill_text
        return "\n\n".join(
            block if block.startswith("  ") or "\n  " in block else filled(block, width, indent)
            for block in text.split("\n\n")
        )


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="refseg", description="The open toolbox for referring segmentation.")
    parser.add_argument("--version", action="version", version=f"refseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        verb_parser = verbs.add_parser(name, help=summary, formatter_class=_Help)
        if name == chosen:  # importing the others would take seconds
            module = importlib.import_module(f"refseg.cli.{name}")
            examples = textwrap.indent(module.EXAMPLES.strip(), "  ")
            verb_parser.description = f"{summary[:1].upper()}{summary[1:]}.\n\nexamples:\n{examples}"
            module.add_arguments(verb_parser)
    args = parser.parse_args(argv)
    try:
        code = module.main(args)
        sys.stdout.flush()
        _leave_process_group(together=True)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        if os.environ.get("REFSEG_TRACEBACK"):
            traceback.print_exc()
        sys.stdout.flush()
        print_error(args.verb, sentence(error))
        return 1
    finally:
        _leave_process_group(together=False)


def print_error(verb: str, message: str) -> None:
    """Print an error once: of several processes that meet the same one, rank 0 prints it.

    The launcher ends the other processes when rank 0 is gone. Who is still there after a while has an error that rank 0
    does not share, and prints it too.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank:
        time.sleep(RANK_WAIT_S)
    where = f" (process {rank})" if rank else ""
    print(f"refseg {verb}: error{where}: {message}", file=sys.stderr, flush=True)


def _leave_process_group(*, together: bool) -> None:
    """gloo's threads now and then abort a process that ends without leaving, or while others still talk to it."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()
