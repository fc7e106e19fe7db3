"""`refseg convert`: convert published weights to a safetensors file in refseg's names."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import get_args

from refseg.convert.files import Conversion, Target, convert
from refseg.errors import UsageError
from refseg.weights import by_prefix

EXAMPLES = """
refseg convert swin_base_patch4_window12_384_22k.pth --out swin_base.safetensors
refseg convert lavt_refcoco.pth --out lavt/model.safetensors
refseg convert model_final_f6e0f6.pkl --out mask2former.safetensors
refseg convert rela_swint.pth --config rela/rela_swint_grefcoco --out rela/model.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", help="published weights: a .pth, .pkl or .safetensors file, or a folder of transformers")
    add("--out", required=True, metavar="FILE", help="file to write (.safetensors)")
    add("--config", help="config of the model that the weights are for (default: that of the layout's paper)")
    add(
        "--to",
        choices=get_args(Target),
        help="encoder: weights of the image encoder, for its `pretrained`; model: weights for `load_from`, or to "
        "predict and test with (default: what the file holds)",
    )


def main(args: argparse.Namespace) -> int:
    if Path(args.out).suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors")
    result = convert(args.file, config=args.config, to=args.to)
    result.save(args.out)
    print(report(result, args.out))
    return 0


def report(result: Conversion, out: str) -> str:
    """Describe a conversion: what was written, what was left out and why, and what the model lacks."""
    fits = f", which fit {result.config}" if result.config else ""
    lines = [
        f"layout: {result.layout.name}",
        f"written: {len(result.state)} tensors{fits}, of {result.num_keys} in the file -> {out}",
    ]
    reasons = defaultdict(list)
    for key, reason in result.left_out.items():
        reasons[reason].append(key)
    lines += [
        f"left out: {len(keys)} ({reason}): {by_prefix(keys, set(result.left_out) - set(keys) | set(result.state))}"
        for reason, keys in reasons.items()
    ]
    if result.others:
        lines.append(f"not weights: {', '.join(result.others)}")
    if result.missing:
        taken = set(result.state)
        lines.append(
            f"not in the file: {len(result.missing)} tensors of the model, which start as the config says: "
            f"{by_prefix(result.missing, taken)}"
        )
    return "\n".join(lines)
