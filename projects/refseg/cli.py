"""The `refseg` command: one verb each, all loading lazily."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from refseg import __version__
from refseg.errors import UserError, sentence

MODEL = "config (file, or name of one that ships), checkpoint, or work directory"
RANK_WAIT_S = 10.0  # an error that all processes share ends the others in this time


class _RefuseGpus(argparse.Action):
    """`--gpus`, which other toolboxes have, and here means another command."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        verb = parser.prog.split()[-1]
        parser.error(f"{option} is no option here. For {values} GPUs: bash tools/dist_{verb}.sh ... {values}")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--gpus", action=_RefuseGpus, help=argparse.SUPPRESS)
    parser.add_argument("--allow-download", action="store_true", help="let text encoders come from the hub")


def _run_options(args: argparse.Namespace, **more: Any) -> Any:
    from refseg.apis import RunOptions

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    return RunOptions(work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher, **more)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file, or the name of one that ships (`refseg configs` lists them)")
    _add_run_options(parser)
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CKPT", help="go on from CKPT, or from the newest in the work dir"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (bf16 where the GPU has it)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")


def _train(args: argparse.Namespace) -> int:
    from refseg.apis import train

    resume = True if args.resume == "auto" else args.resume or False
    more = dict(resume=resume, amp=args.amp, auto_scale_lr=args.auto_scale_lr, compile=args.compile)
    train(args.config, _run_options(args, **more))
    return 0


def _test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_argument("weights", nargs="?", help="checkpoint or work directory, where MODEL is a config")
    _add_run_options(parser)
    parser.add_argument("--out", help="write the metrics to this JSON file")
    parser.add_argument("--predictions", help="write the answers to this prediction file (.jsonl, .jsonl.gz)")


def _test(args: argparse.Namespace) -> int:
    from refseg.apis import test
    from refseg.apis.models import find_model

    config, checkpoint = find_model(args.model, args.weights)
    test(str(config), str(checkpoint), _run_options(args), out=args.out, predictions=args.predictions)
    return 0


def _quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="instalign_tiny_refshapes", help="what to train")
    parser.add_argument("--work-dir", default="work_dirs/quickstart")
    parser.add_argument("--data", default="data/refshapes_mini", help="where RefShapes mini is, or will be made")
    parser.add_argument("--processes", type=int, help="that train (default: one per core without a GPU)")


def _quickstart(args: argparse.Namespace) -> int:
    from refseg.apis.quickstart import quickstart

    quickstart(config=args.config, work_dir=args.work_dir, data=args.data, processes=args.processes)
    return 0


def _configs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="only configs with all of these in their line")
    parser.add_argument("--ablations", action="store_true", help="those of the papers' ablations too")


def _configs(args: argparse.Namespace) -> int:
    from refseg.config_check import method_and_data
    from refseg.paths import shipped_configs

    lines = []
    for name, file in shipped_configs().items():
        if args.ablations or "/" not in name:
            line = (name, *method_and_data(file))
            if all(any(word.lower() in cell.lower() for cell in line) for word in args.words):
                lines.append(line)
    if not lines:
        raise UserError(f"no config matches {' '.join(args.words)!r}; `refseg configs --ablations` lists all")
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for name, method, data in lines:
        print(f"{name:{widths[0]}}  {method:{widths[1]}}  {data}")
    return 0


class Verb(NamedTuple):
    """A verb of the command: a line about it, examples for its help, and what adds its arguments and runs it."""

    summary: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _module(name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
    """Return `add_arguments` and `main` of a module that is imported when one of them is called."""
    return (
        lambda parser: importlib.import_module(name).add_arguments(parser),
        lambda args: importlib.import_module(name).main(args),
    )


VERBS = {
    "train": Verb(
        "train a config",
        "refseg train instalign_tiny_refshapes\n"
        "refseg train my_config.py --work-dir work_dirs/mine --amp\n"
        "refseg train instalign_swinb --resume --cfg-options train_dataloader.batch_size=4\n"
        "bash tools/dist_train.sh instalign_swinb 8   # 8 GPUs",
        _train_arguments,
        _train,
    ),
    "test": Verb(
        "evaluate a model on its config's test split",
        "refseg test work_dirs/quickstart\n"
        "refseg test work_dirs/quickstart/epoch_3.pth --predictions answers.jsonl\n"
        "refseg test instalign_swinb weights.pth --cfg-options test_dataloader.dataset.split=testA",
        _test_arguments,
        _test,
    ),
    "predict": Verb(
        "masks for images and phrases of your own",
        'refseg predict work_dirs/quickstart --image photo.jpg --text "the red cup" --out answers --show\n'
        "refseg predict instalign_swinb weights.pth --jsonl questions.jsonl --out answers",
        *_module("refseg.apis.predict"),
    ),
    "demo": Verb(
        "a web page to try a model with images of your own",
        "refseg demo work_dirs/quickstart\nrefseg demo instalign_swinb weights.pth --port 8000",
        *_module("refseg.demo.command"),
    ),
    "score": Verb(
        "score a file of predictions by named protocols",
        "refseg score answers.jsonl --data refcoco:val --protocol lavt,refseg",
        *_module("refseg.evaluation.score_cli"),
    ),
    "compare": Verb(
        "compare two files of predictions on the same data",
        "refseg compare a.jsonl b.jsonl --data refcoco:val --html compared.html",
        *_module("refseg.evaluation.compare_cli"),
    ),
    "report": Verb(
        "one page about a run: curves, scores, calibration, pictures",
        "refseg report work_dirs/quickstart --predictions answers.jsonl --data data/refshapes_mini:test",
        *_module("refseg.evaluation.report_cli"),
    ),
    "probe": Verb(
        "change one thing of a phrase: does the answer follow?",
        "refseg probe work_dirs/quickstart --data data/refshapes_mini:test",
        *_module("refseg.probes.cli"),
    ),
    "data": Verb(
        "find, check, browse, convert and generate data",
        "refseg data layout\nrefseg data check refcoco\nrefseg data refshapes --preset mini --out data/refshapes_mini",
        *_module("refseg.datasets.commands.cli"),
    ),
    "quickstart": Verb(
        "generate RefShapes, train a small model, evaluate, write a report",
        "refseg quickstart\nrefseg quickstart --config vipa_tiny_refshapes --work-dir work_dirs/vipa",
        _quickstart_arguments,
        _quickstart,
    ),
    "configs": Verb(
        "list the configs that ship, with their methods and data sets",
        "refseg configs\nrefseg configs instalign grefcoco\nrefseg configs vipa --ablations",
        _configs_arguments,
        _configs,
    ),
    "flops": Verb(
        "parameters, MACs and FLOPs of a model",
        "refseg flops instalign_swinb\nrefseg flops work_dirs/quickstart --shape 480 480",
        *_module("refseg.apis.flops"),
    ),
    "benchmark": Verb(
        "samples per second, latency and memory of a model",
        "refseg benchmark instalign_swinb --batch-size 8 --amp\nrefseg benchmark work_dirs/quickstart --device cpu",
        *_module("refseg.apis.benchmark"),
    ),
    "doctor": Verb(
        "what is installed, what works, what is missing; or whether a config can be trained here",
        "refseg doctor\nrefseg doctor instalign_swinb",
        *_module("refseg.doctor"),
    ),
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
    for name, verb in VERBS.items():
        examples = textwrap.indent(verb.examples, "  ")
        description = f"{verb.summary[:1].upper()}{verb.summary[1:]}.\n\nexamples:\n{examples}"
        verb_parser = verbs.add_parser(name, help=verb.summary, description=description, formatter_class=_Help)
        if name == chosen:  # building the others would import what they need
            verb.add_arguments(verb_parser)
    args = parser.parse_args(argv)
    try:
        code = VERBS[args.verb].run(args)
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


if __name__ == "__main__":
    sys.exit(main())
