"""`refseg data WHAT`: find, check, browse, convert and generate data. The work is done in `refseg.data_tools`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refseg.cli.main import with_examples
from refseg.cli.options import add_cfg_options, add_data_root
from refseg.data_tools.formats import FORMATS, WRITTEN
from refseg.datasets.targets import data_root

SET = (
    "a name from `refseg data layout`, a JSONL file, a JSON file in SeqTR's layout, or a folder made by "
    "`refseg data refshapes`"
)

EXAMPLES = """
refseg data layout
refseg data check refcoco
refseg data refshapes --preset mini --out data/refshapes_mini
"""


def _layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", nargs="*", metavar="SET", help="names of data sets (default: a summary of all)")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"{SET} (default: all in the data root)")
    parser.add_argument(
        "--images",
        choices=["quick", "all", "none"],
        default="quick",
        help="quick: check the start and end of each file, and decode it if these look wrong; all: decode every image; "
        "none: skip images (default: quick)",
    )
    parser.add_argument("--all", action="store_true", help="print every finding, instead of the first 10 of each kind")
    parser.add_argument("--json", metavar="FILE", help="also write all findings to this file")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: chosen by the work)")


def _leaks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--train", nargs="+", required=True, metavar="SET[:SPLIT]", help="training data (default split: train)")
    add(
        "--test",
        nargs="+",
        required=True,
        metavar="SET[:SPLIT]",
        help="evaluation data (default: all but train)",
    )
    add("--fail", action="store_true", help="exit with 1 if any image is shared")
    add("--by-content", action="store_true", help="decode all images and compare their pixels (slow)")


def _browse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file, name of one that ships with refseg, or JSONL file")
    parser.add_argument(
        "--loader", choices=["train", "val", "test"], default="train", help="of a config (default: train)"
    )
    parser.add_argument("--num", type=int, default=24, metavar="N", help="number of random samples (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples and augmentation (default: 0)")
    parser.add_argument("--epoch", type=int, default=0, help="epoch, which changes the augmentation (default: 0)")
    parser.add_argument("--out", default="browse.html", metavar="FILE", help="page to write (default: browse.html)")
    add_cfg_options(parser)


def _import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="FILE_OR_DIR", help="file or folder of a labeling tool")
    add("--format", choices=["auto", *FORMATS], default="auto", help="format of the source (default: auto)")
    add("--images", metavar="DIR", help="folder that names of images are relative to (default: the folder of the file)")
    _add_out(parser)
    add(
        "--per",
        choices=["auto", "category", "instance"],
        default="auto",
        help="auto: use the annotators' phrases, or work like category if there are none; category: one row per image "
        "and category, which refers to all its instances; instance: one row per instance, or per text if several "
        "instances share it (default: auto)",
    )
    add("--text", default="{category}", help="text of a row, with {category} and {count} (default: '{category}')")
    many = "text of a row with several instances, such as 'all {category}s' (default: as --text)"
    add("--text-many", metavar="TEXT", help=many)
    add(
        "--text-field",
        metavar="NAME",
        help="COCO only: take phrases from this field of the annotations, such as caption or attributes.expression, "
        "instead of phrases or attributes.phrases. A list gives one row per text. Annotations without the field are "
        "skipped",
    )
    add("--no-target", type=int, default=0, metavar="N", help="rows per image of absent categories (default: 0)")
    add("--seed", type=int, default=0, help="random seed of --no-target (default: 0)")
    add("--split", metavar="NAME", help="split of every row, such as train")


def _from_coco(parser: argparse.ArgumentParser) -> None:
    _import(parser)
    parser.set_defaults(format="coco")


def _export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="JSONL file")
    add("--to", choices=WRITTEN, required=True, help="format to write")
    add("--out", required=True, metavar="FILE_OR_DIR", help="file to write; for labelme and yolo, a new folder")
    add("--split", metavar="NAME", help="only rows of this split (default: all rows)")
    add("--image-prefix", default="", metavar="URL", help="Label Studio: prefix of the names of images")
    add("--overwrite", action="store_true", help="replace an existing file")


def _split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="JSONL file")
    add("--val", type=float, default=0.1, metavar="SHARE", help="share of the images in val (default: 0.1)")
    add("--test", type=float, default=0.0, metavar="SHARE", help="share of the images in test (default: 0, no split)")
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    _add_out(parser)


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSONL files")
    parser.add_argument(
        "--keep",
        choices=["first", "both"],
        help="if an image has a phrase twice with different targets: keep the first row, or both (default: an error)",
    )
    _add_out(parser)


def _stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="JSONL file")
    parser.add_argument("--html", metavar="FILE", help="also write a page with charts")


def _add_out(parser: argparse.ArgumentParser) -> None:
    help = "JSONL file to write; its paths are relative to it"
    parser.add_argument("--out", required=True, metavar="FILE", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _refshapes(parser: argparse.ArgumentParser) -> None:
    from refseg.refshapes.presets import PRESETS

    parser.add_argument("--preset", default="mini", help=f"one of: {', '.join(sorted(PRESETS))} (default: mini)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: data/refshapes_<preset>)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per usable core)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier run")


@dataclass(frozen=True)
class _Command:
    module: str  # its main(args) does the work
    add_arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    examples: str
    description: str = ""
    has_root: bool = True


COMMANDS = {
    "layout": _Command(
        "refseg.data_tools.layout",
        _layout,
        "list the files that each data set needs, which are present, and where they come from",
        "refseg data layout\nrefseg data layout refcoco grefcoco",
        "List the files that each known data set needs, which of them are present, and where they come from. refseg "
        "downloads none of them: get them from their authors, under their terms, and put them at these places.",
    ),
    "check": _Command(
        "refseg.data_tools.check",
        _check,
        "check that data sets are complete and undamaged",
        "refseg data check refcoco\nrefseg data check my.jsonl --images all",
        "Check that files can be read, splits have the published counts, every entry can be used, images are present, "
        "complete and of the annotated size, masks are not empty, boxes are inside their images, and splits share no "
        "image. A defect makes the exit code 1. A warning does not.",
    ),
    "leaks": _Command(
        "refseg.data_tools.leaks",
        _leaks,
        "find training images that are also in test sets",
        "refseg data leaks --train refcocog:train --test refcoco:val,testA",
        "Count the training images that also occur in test sets, and print the filter that excludes them. SET is "
        f"{SET}. SET:SPLIT or SET:SPLIT,SPLIT selects splits. Images are the same if their COCO ids agree, or else "
        "their file names and sizes.",
    ),
    "browse": _Command(
        "refseg.data_tools.browse",
        _browse,
        "write a page of samples as the model sees them, after augmentation",
        "refseg data browse instalign_tiny_refshapes --num 12\nrefseg data browse my.jsonl",
        "Write one HTML file with random samples of a config's data set as the model sees them: image, masks, boxes, "
        "phrases, tokens, and the instances that each phrase refers to. Of a JSONL file, it shows the images as they "
        "are, with all their phrases and tags.",
    ),
    "import": _Command(
        "refseg.data_tools.import_data",
        _import,
        "convert files of labeling tools to a JSONL file",
        "refseg data import project.json --images photos --out my.jsonl\n"
        "refseg data import yolo_folder --out my.jsonl --text 'the {category}' --no-target 2",
        "Read COCO (also from CVAT), Label Studio, labelme, YOLO segmentation, SA-Co, or a benchmark (ReasonSeg, "
        "GSEval, PhraseCut, RefSegRS, RISBench, PBench, Ref-L4, FineCops-Ref), and write a JSONL file. The format is "
        "recognized from the content. Phrases are those of the annotators, or else names of categories. Objects of "
        "one image with the same phrase become one row that refers to all of them. "
        "docs/data.md says where each tool has its phrases.",
        has_root=False,
    ),
    "from-coco": _Command(
        "refseg.data_tools.import_data",
        _from_coco,
        "the same as `refseg data import --format coco`",
        "refseg data from-coco instances.json --images photos --out my.jsonl --split train",
        has_root=False,
    ),
    "export": _Command(
        "refseg.data_tools.export_data",
        _export,
        "convert a JSONL file to files of labeling tools",
        "refseg data export my.jsonl --to label-studio --out tasks.json\n"
        "refseg data export my.jsonl --to yolo --out yolo_folder",
        "Write a JSONL file as COCO, Label Studio, labelme, YOLO segmentation, or SA-Co. Masks stay the same. Tags and "
        "ids are not written, and splits only in YOLO.",
        has_root=False,
    ),
    "split": _Command(
        "refseg.data_tools.split",
        _split,
        "divide a JSONL file into train, val, and test by image",
        "refseg data split my.jsonl --val 0.1 --test 0.1 --seed 0 --out my_split.jsonl",
        "Write the rows again with a split for each. All rows of an image are in the same split, and so are copies of "
        "an image file. The numbers of phrases with no target, one, and several follow the shares as well as the "
        "images allow. Each split has at least one image.",
        has_root=False,
    ),
    "merge": _Command(
        "refseg.data_tools.merge",
        _merge,
        "join JSONL files without duplicate rows",
        "refseg data merge a.jsonl b.jsonl --out both.jsonl",
        "Join JSONL files. Paths become relative to the new file, and equal images get one path. A row with the image, "
        "phrase, and targets of an earlier one is dropped. The same phrase with different targets is an error, unless "
        "--keep says what to do.",
        has_root=False,
    ),
    "stats": _Command(
        "refseg.data_tools.stats",
        _stats,
        "count images, phrases, words, targets, and sizes of a JSONL file",
        "refseg data stats my.jsonl --html stats.html",
    ),
    "refshapes": _Command(
        "refseg.refshapes.generate",
        _refshapes,
        "generate the RefShapes benchmark",
        "refseg data refshapes --preset mini --out data/refshapes_mini",
        has_root=False,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, command in COMMANDS.items():
        text = with_examples(command.description or command.summary, command.examples)
        sub = commands.add_parser(name, help=command.summary, description=text, formatter_class=parser.formatter_class)
        command.add_arguments(sub)
        if command.has_root:
            add_data_root(sub)


def main(args: argparse.Namespace) -> int:
    module = importlib.import_module(COMMANDS[args.what].module)
    with data_root(getattr(args, "data_root", None)):
        return module.main(args) or 0
