"""The `refseg` command: one verb each, all loading lazily."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from refseg import __version__
from refseg.errors import UserError


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    from refseg.compat import dict_action

    parser.add_argument("config", help="config file, or the name of one that ships with refseg")
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
    parser.add_argument("--allow-download", action="store_true", help="let text encoders come from the hub")


def _run_options(args: argparse.Namespace, **more: Any) -> Any:
    from refseg.apis import RunOptions

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.allow_download:
        os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    return RunOptions(work_dir=args.work_dir, cfg_options=args.cfg_options, launcher=args.launcher, **more)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
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
    _add_run_options(parser)
    parser.add_argument("checkpoint", help="weights (.pth or .safetensors)")
    parser.add_argument("--out", help="write the metrics to this JSON file")
    parser.add_argument("--predictions", help="write the answers to this prediction file (.jsonl, .jsonl.gz)")


def _test(args: argparse.Namespace) -> int:
    from refseg.apis import test

    test(args.config, args.checkpoint, _run_options(args), out=args.out, predictions=args.predictions)
    return 0


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apis import predict

    predict.add_arguments(parser)


def _predict(args: argparse.Namespace) -> int:
    from refseg.apis import predict

    return predict.main(args)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.demo import command

    command.add_arguments(parser)


def _demo(args: argparse.Namespace) -> int:
    from refseg.demo import command

    return command.main(args)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg import doctor

    doctor.add_arguments(parser)


def _doctor(args: argparse.Namespace) -> int:
    from refseg import doctor

    return doctor.main(args)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.datasets.commands import cli

    cli.add_arguments(parser)


def _data(args: argparse.Namespace) -> int:
    from refseg.datasets.commands import cli

    return cli.main(args)


def _quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="instalign_tiny_refshapes", help="what to train")
    parser.add_argument("--work-dir", default="work_dirs/quickstart")
    parser.add_argument("--data", default="data/refshapes_mini", help="where RefShapes mini is, or will be made")
    parser.add_argument("--processes", type=int, help="that train (default: one per core without a GPU)")


def _quickstart(args: argparse.Namespace) -> int:
    from refseg.apis.quickstart import quickstart

    quickstart(config=args.config, work_dir=args.work_dir, data=args.data, processes=args.processes)
    return 0


def _flops_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apis import flops

    flops.add_arguments(parser)


def _flops(args: argparse.Namespace) -> int:
    from refseg.apis import flops

    return flops.main(args)


def _benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.apis import benchmark

    benchmark.add_arguments(parser)


def _benchmark(args: argparse.Namespace) -> int:
    from refseg.apis import benchmark

    return benchmark.main(args)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation import score_cli

    score_cli.add_arguments(parser)


def _score(args: argparse.Namespace) -> int:
    from refseg.evaluation import score_cli

    return score_cli.main(args)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation import compare_cli

    compare_cli.add_arguments(parser)


def _compare(args: argparse.Namespace) -> int:
    from refseg.evaluation import compare_cli

    return compare_cli.main(args)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.evaluation import report_cli

    report_cli.add_arguments(parser)


def _report(args: argparse.Namespace) -> int:
    from refseg.evaluation import report_cli

    return report_cli.main(args)


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    from refseg.probes import cli

    cli.add_arguments(parser)


def _probe(args: argparse.Namespace) -> int:
    from refseg.probes import cli

    return cli.main(args)


VERBS = {
    "train": ("train a config", _train_arguments, _train),
    "test": ("evaluate a checkpoint", _test_arguments, _test),
    "predict": ("masks for images and phrases of your own", _predict_arguments, _predict),
    "demo": ("a web page to try a model with images of your own", _demo_arguments, _demo),
    "score": ("score a file of predictions by named protocols", _score_arguments, _score),
    "compare": ("compare two files of predictions on the same data", _compare_arguments, _compare),
    "report": ("one page about a run: curves, scores, calibration, pictures", _report_arguments, _report),
    "probe": ("change one thing of a phrase: does the answer follow?", _probe_arguments, _probe),
    "data": ("find, check, browse, convert and generate data", _data_arguments, _data),
    "quickstart": (
        "generate RefShapes, train a small model, evaluate, write a report",
        _quickstart_arguments,
        _quickstart,
    ),
    "flops": ("parameters, MACs and FLOPs of a config", _flops_arguments, _flops),
    "benchmark": ("samples per second, latency and memory of a config", _benchmark_arguments, _benchmark),
    "doctor": ("what is installed, what works, what is missing", _doctor_arguments, _doctor),
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="refseg", description="The open toolbox for referring segmentation.")
    parser.add_argument("--version", action="version", version=f"refseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for verb, (summary, add_arguments, _) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=summary, description=summary)
        if verb == chosen:  # building the others would import what they need
            add_arguments(verb_parser)
    args = parser.parse_args(argv)
    try:
        code = VERBS[args.verb][2](args)
        sys.stdout.flush()
        _leave_process_group(together=True)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if isinstance(error, UserError | OSError):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # An error from a data worker carries that worker's traceback; its last line is the message.
            message = lines[-1] if lines[0].startswith("Caught ") else "\n".join(lines)
            print(f"refseg {args.verb}: error: {message}", file=sys.stderr)
            return 1
        raise
    finally:
        _leave_process_group(together=False)


def _leave_process_group(*, together: bool) -> None:
    """gloo's threads now and then abort a process that ends without leaving, or while others still talk to it."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
