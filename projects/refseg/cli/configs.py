"""`refseg configs`: list the configs that ship with refseg, their methods and their data sets."""

from __future__ import annotations

import argparse

from refseg.config_check import method_and_data
from refseg.errors import UserError
from refseg.paths import shipped_configs

EXAMPLES = """
refseg configs
refseg configs instalign grefcoco
refseg configs vipa --ablations
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only configs whose line has all these words")
    parser.add_argument("--ablations", action="store_true", help="include the papers' ablations")


def main(args: argparse.Namespace) -> int:
    lines = []
    for name, file in shipped_configs().items():
        if args.ablations or "/ablations/" not in name:
            line = (name, *method_and_data(file))
            if all(any(word.lower() in cell.lower() for cell in line) for word in args.words):
                lines.append(line)
    if not lines:
        raise UserError(f"no config matches {' '.join(args.words)!r}. `refseg configs --ablations` lists all")
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for name, method, data in lines:
        print(f"{name:{widths[0]}}  {method:{widths[1]}}  {data}")
    return 0
