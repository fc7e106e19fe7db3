"""`refseg train`: train a config."""

from __future__ import annotations

import argparse

from refseg.cli.options import add_run_options, run_options

EXAMPLES = """
refseg train instalign_tiny_refshapes
refseg train my_config.py --work-dir work_dirs/mine --amp
refseg train instalign_swinb --resume --cfg-options train_dataloader.batch_size=4
bash tools/dist_train.sh instalign_swinb 8   # 8 GPUs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file, or the name of one that ships (`refseg configs` lists them)")
    add_run_options(parser)
    parser.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="CKPT", help="continue from CKPT, or from the newest"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (bf16 where the GPU has it)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")


def main(args: argparse.Namespace) -> int:
    from refseg.engine.run import train

    more = dict(resume=args.resume, amp=args.amp, auto_scale_lr=args.auto_scale_lr, compile=args.compile)
    train(args.config, run_options(args, **more))
    return 0
