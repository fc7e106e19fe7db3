"""The arguments of `refseg data WHAT`; what does the work is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from refseg.datasets.commands.targets import data_root

PACKAGE = "refseg.datasets.commands"
SET = (
    "a name as `refseg data layout` lists them, a JSONL file, a JSON file in SeqTR's layout, or a folder made by "
    "`refseg data refshapes`"
)


def _layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", nargs="*", metavar="SET", help="names of data sets (default: all, in short)")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"{SET} (default: all that the data root has)")
    parser.add_argument(
        "--images",
        choices=["quick", "all", "none"],
        default="quick",
        help="quick: header and end of each file, and the whole file where these look wrong; all: decode every image; "
        "none: leave image files out (default: quick)",
    )
    parser.add_argument("--all", action="store_true", help="print every finding, not the first 10 of each kind")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file too")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as it pays to have)")


def _leaks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--train", nargs="+", required=True, metavar="SET[:SPLIT]", help="what is trained on (default split: train)")
    add("--test", nargs="+", required=True, metavar="SET[:SPLIT]", help="what is evaluated on (default: all but train)")
    add("--fail", action="store_true", help="end with 1 if any image is shared")
    add("--by-content", action="store_true", help="decode all images and compare their pixels (slow)")


def _browse(parser: argparse.ArgumentParser) -> None:
    from refseg.compat import dict_action

    parser.add_argument("config", help="config file, or the name of one that ships with refseg")
    parser.add_argument("--loader", choices=["train", "val", "test"], default="train", help="whose data set (train)")
    parser.add_argument("--num", type=int, default=24, metavar="N", help="number of items, drawn at random (24)")
    parser.add_argument("--seed", type=int, default=0, help="draws the items, and what is random about them (0)")
    parser.add_argument("--epoch", type=int, default=0, help="the epoch to look at: each augments anew (0)")
    parser.add_argument("--out", default="browse.html", metavar="FILE", help="the page to write (browse.html)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=dict_action(),
        default={},
        metavar="KEY=VALUE",
        help="overrides of config keys",
    )


def _from_coco(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("instances", help="annotation file in COCO's layout (images, annotations, categories)")
    add("--images", required=True, metavar="DIR", help="folder that the file names in it are relative to")
    add("--out", required=True, metavar="FILE", help="JSONL file to write; image paths in it are relative to it")
    add(
        "--per",
        choices=["category", "instance"],
        default="category",
        help="category: a row per image and category, which refers to all instances of it; instance: a row each, or "
        "one for all that have the same text (default: category)",
    )
    add("--text", default="{category}", help="text of a row; {category} and {count} are filled in ('{category}')")
    add(
        "--text-many", metavar="TEXT", help="text where there are several instances, e.g. 'all {category}s' (as --text)"
    )
    add(
        "--text-field",
        metavar="NAME",
        help="with --per instance: take the text from this field of the annotations, e.g. caption, or "
        "attributes.expression of CVAT; a list gives a row for each, and annotations without it are left out",
    )
    add("--no-target", type=int, default=0, metavar="N", help="rows per image that name a category it has none of (0)")
    add("--seed", type=int, default=0, help="draws the categories of --no-target (0)")
    add("--split", metavar="NAME", help="split to write into every row, e.g. train")
    add("--overwrite", action="store_true", help="replace the file if it is there")


def _refshapes(parser: argparse.ArgumentParser) -> None:
    from refseg.datasets.refshapes import cli

    cli.add_arguments(parser)


@dataclass(frozen=True)
class _Command:
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    module: str  # whose main(args) does the work
    description: str = ""
    has_root: bool = True


COMMANDS = {
    "layout": _Command(
        "which files each data set needs, which are there, where they come from",
        _layout,
        f"{PACKAGE}.layout",
        "Shows the files that each known data set needs, which of them are there, and where they come from. refseg "
        "downloads none of them: get them from their authors, under their terms, and put them at these places.",
    ),
    "check": _Command(
        "whether data sets are complete and undamaged",
        _check,
        f"{PACKAGE}.check",
        "Checks that files can be read, splits hold what was published, every entry can be used, images are there, "
        "whole and of the annotated size, masks are not empty, boxes lie in their images, and splits share no image. "
        "Ends with 1 where there is a defect; a warning is something to know of that stops nothing.",
    ),
    "leaks": _Command(
        "training images that are also images of test sets",
        _leaks,
        f"{PACKAGE}.leaks",
        "Counts the training images that also occur in test sets, and prints the filter that leaves them out. SET is "
        f"{SET}; SET:SPLIT or SET:SPLIT,SPLIT names splits. Images are the same when COCO's ids agree, or else file "
        "names and sizes.",
    ),
    "browse": _Command(
        "a page of samples as a model gets them, after augmentation",
        _browse,
        f"{PACKAGE}.browse",
        "Writes one HTML file with random samples of a config's data set as the model gets them: image, masks, boxes, "
        "phrases, tokens, and which phrase refers to what.",
    ),
    "from-coco": _Command(
        "start a JSONL file of your own from a COCO file",
        _from_coco,
        f"{PACKAGE}.from_coco",
        "Writes a JSONL file with category names, or a field of the annotations, as phrases: a start that you edit. "
        "Annotations of one image with the same text become one row that refers to all of them. Crowd regions "
        "(iscrowd = 1) are no targets, unless they have a text of their own or CVAT's attributes; a row whose category "
        "also has such a region in the image is tagged crowd.",
        has_root=False,
    ),
    "refshapes": _Command(
        "generate the RefShapes benchmark", _refshapes, "refseg.datasets.refshapes.cli", has_root=False
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, command in COMMANDS.items():
        sub = what.add_parser(name, help=command.summary, description=command.description or command.summary)
        command.add_arguments(sub)
        if command.has_root:
            sub.add_argument("--data-root", metavar="DIR", help="what `data/...` stands for (default: $REFSEG_DATA)")


def main(args: argparse.Namespace) -> int:
    module = importlib.import_module(COMMANDS[args.what].module)
    with data_root(getattr(args, "data_root", None)):
        return module.main(args) or 0
