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

RANK_WAIT_S = 10.0  # the launcher ends all processes within this time once rank 0 is gone
VERBS = {  # verb: summary. The module refseg.cli.<verb> has EXAMPLES, add_arguments(parser) and main(args).
    "train": "train a config",
    "test": "evaluate a model on its config's test split",
    "predict": "predict masks for your own images and phrases",
    "label": "write pseudo-labels of your own images, with a model as the teacher",
    "demo": "open a web page to try a model with your own images",
    "serve": "serve a model as an HTTP API, for programs and for Label Studio",
    "score": "score a file of predictions by named protocols",
    "calibrate": "choose thresholds on predictions for val, and write them into a config",
    "compare": "compare two files of predictions on the same data",
    "report": "write one page about a run: curves, scores, calibration, pictures",
    "probe": "change one thing in each phrase and measure whether the answer follows",
    "convert": "convert published weights of Swin, BEiT-3, LAVT, ReLA, Mask2Former and others",
    "data": "find, check, browse, convert and generate data",
    "export": "write a model as ONNX graphs that answer like it, for onnxruntime",
    "finetune": "fine-tune a model on your own images and phrases",
    "publish": "write a model folder that others can load: weights, config, tokenizer, model card",
    "quickstart": "generate RefShapes, train a small model, evaluate, write a report",
    "models": "list the models that have a name, and whether their weights are on this machine",
    "configs": "list the configs that ship with refseg",
    "flops": "count parameters, MACs and FLOPs of a model",
    "benchmark": "measure samples per second, latency and memory of a model",
    "doctor": "check the installation, or whether a config can be trained here",
}


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}. `{self.prog} --help` shows the options\n")


class _Help(argparse.HelpFormatter):
    """Help that keeps indented paragraphs (examples) as they are."""

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
        if name == chosen:  # importing all of them takes seconds
            module = importlib.import_module(f"refseg.cli.{name}")
            verb_parser.description = with_examples(summary, module.EXAMPLES)
            module.add_arguments(verb_parser)
    args = parser.parse_args(argv)
    if getattr(args, "allow_download", False):
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    try:
        code = module.main(args)
        sys.stdout.flush()
        _leave_process_group(together=True)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has stopped, as `| head` does
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


def with_examples(summary: str, examples: str) -> str:
    """Return the description of a command for its help: a sentence, then indented examples."""
    sentences = f"{summary[:1].upper()}{summary[1:]}".rstrip(".")
    return f"{sentences}.\n\nexamples:\n{textwrap.indent(examples.strip(), '  ')}"


def print_error(verb: str, message: str) -> None:
    """Print an error once. Of several processes with the same error, rank 0 prints it.

    The launcher ends the other processes when rank 0 is gone. A process that is still there after a while has an error
    of its own and prints it too.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank:
        time.sleep(RANK_WAIT_S)
    where = f" (process {rank})" if rank else ""
    print(f"refseg {verb}: error{where}: {message}", file=sys.stderr, flush=True)


def _leave_process_group(*, together: bool) -> None:
    """Leave the process group: gloo sometimes aborts a process that does not, or whose peers still send to it."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()
