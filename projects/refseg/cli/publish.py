"""`refseg publish`: write a model folder that others can load, and upload it if asked to."""

from __future__ import annotations

import argparse
from pathlib import Path

from refseg.cli.options import MODEL, WEIGHTS, add_data_root, add_model_options, names_in
from refseg.datasets.targets import data_root
from refseg.errors import UsageError

EXAMPLES = """
refseg publish work_dirs/quickstart --out published/shapes --license apache-2.0
refseg test published/shapes --predictions test.jsonl
refseg publish published/shapes --out published/shapes --predictions test.jsonl --data my.jsonl:test
refseg publish published/shapes --out published/shapes --push USER/shapes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=MODEL)
    add("weights", nargs="?", help=WEIGHTS)
    add("--out", required=True, metavar="DIR", help="folder to write; a model folder that is there is replaced")
    add("--half", action="store_true", help="write 16 bits per number, which halves the file")
    license = "license of the weights, such as apache-2.0 (default: that of a model folder, or unknown)"
    add("--license", metavar="ID", help=license)
    scores = "prediction files of these weights, by `refseg test --predictions`: their scores go into the model card"
    add("--predictions", nargs="+", default=[], metavar="FILE", help=scores)
    add("--data", nargs="+", default=[], metavar="SET:SPLIT", help="data of each of the files, in the same order")
    add("--protocol", metavar="NAME[,NAME]", help="protocols of the scores (default: those of the config)")
    add("--push", metavar="USER/NAME", help="upload the folder to this repository on the Hugging Face hub")
    add("--private", action="store_true", help="make the repository private if it is new")
    add_data_root(parser)
    add_model_options(parser)


def main(args: argparse.Namespace) -> int:
    from refseg.evaluation.protocols import get_protocol
    from refseg.inference.hub import push_folder
    from refseg.inference.loading import load_model
    from refseg.inference.model_folder import CARD, save_model
    from refseg.publish.run import measure, pairs

    scored = pairs(args.predictions, args.data)
    if args.half and scored:
        raise UsageError(
            "--half changes the weights, so the predictions are not theirs. Publish them first, make predictions with "
            f"`refseg test {args.out} --predictions FILE`, then add the scores with `refseg publish {args.out} --out "
            f"{args.out} --predictions FILE --data SET:SPLIT`"
        )
    card = Path(args.out, CARD)
    changes = [scored, args.half, args.license, args.weights, args.cfg_options]
    if not (args.push and card.is_file() and Path(args.model).resolve() == card.parent.resolve() and not any(changes)):
        with data_root(args.data_root):
            loaded = load_model(args.model, args.weights, device="cpu", cfg_options=args.cfg_options)
            evaluator = loaded.cfg.get("test_evaluator") or {}
            names = names_in(args.protocol) if args.protocol else evaluator.get("protocols", ("refseg",))
            results = measure(loaded, scored, [get_protocol(name) for name in names])
            save_model(loaded, args.out, half=args.half, license=args.license, results=results)
    size = sum(file.stat().st_size for file in card.parent.rglob("*") if file.is_file())
    print(f"{card.parent}: {size:,} bytes. The model card is {card}")
    if args.push:
        message = f"Upload {Path(args.out).name}"
        address = push_folder(
            card.parent, args.push, private=args.private or None, revision=None, message=message, token=None
        )
        print(f"uploaded: {address}")
    return 0
