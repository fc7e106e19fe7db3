"""`refseg data stats`: count images, phrases, words, targets, and sizes of a JSONL file."""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from refseg.datasets.masks import to_rle
from refseg.datasets.readers import read_jsonl
from refseg.datasets.readers.checks import plain_text
from refseg.errors import DataError
from refseg.paths import data_path
from refseg.records import Annotations
from refseg.terminal import aligned, printable, write_whole

WORD = re.compile(r"\w+(?:['’-]\w+)*")
NUM_WORDS = 20  # most frequent words that are shown
# Upper ends of groups, and their names
MASK_SHARES = {0.001: "< 0.1 %", 0.01: "0.1-1 %", 0.05: "1-5 %", 0.2: "5-20 %", 2.0: "> 20 %"}
TARGETS = {0: "0", 1: "1", 2: "2", 3: "3", 5: "4-5", 10: "6-10", float("inf"): "> 10"}
PHRASE_WORDS = {1: "1", 2: "2", 3: "3", 5: "4-5", 8: "6-8", 12: "9-12", 20: "13-20", float("inf"): "> 20"}
SIDES = {256: "<= 256", 512: "257-512", 1024: "513-1024", 2048: "1025-2048", float("inf"): "> 2048"}


@dataclass
class Stats:
    """Counts of a data set.

    Args:
        splits: Counts by split: images, and phrases by their number of targets.
        words: Number of each word.
        phrase_words: Number of words of each phrase.
        targets: Number of targets of each phrase.
        sides: Longer side of each image in pixels.
        sizes: Number of images of each size (height, width).
        mask_shares: Share of its image that each object covers.
        num_images: Images.
        num_distinct: Different phrases, without regard to case and spaces.
        problems: Rows and masks that cannot be used.
    """

    splits: dict[str, Counter] = field(default_factory=dict)
    words: Counter = field(default_factory=Counter)
    phrase_words: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)
    mask_shares: list[float] = field(default_factory=list)
    num_images: int = 0
    num_distinct: int = 0
    problems: list[str] = field(default_factory=list)


def main(args: argparse.Namespace) -> int:
    file = data_path(args.file)
    stats = count(read_jsonl(file=file), file.parent)
    if not stats.targets:
        raise DataError(f"{file} has no usable rows. `refseg data check {file}` lists the problems")
    print("\n".join(report_lines(stats, str(file))))
    if args.html:
        write_whole(args.html, page(stats, str(file)))
        print(f"\npage: {args.html}")
    return 0


def count(annotations: Annotations, base: Path) -> Stats:
    """Count what the annotations hold. `base` is the folder of their paths."""
    stats = Stats(problems=[str(problem) for problem in annotations.problems])
    distinct: set[str] = set()
    for record in annotations.records:
        if not record.expressions:
            continue
        stats.num_images += 1
        stats.sizes[record.size] += 1
        stats.sides.append(max(record.size))
        for split in {expression.split or "" for expression in record.expressions}:
            stats.splits.setdefault(split, Counter())["images"] += 1
        for expression in record.expressions:
            number = len(expression.referents)
            words = WORD.findall(expression.text.casefold())
            of_split = stats.splits[expression.split or ""]
            of_split.update({"phrases": 1, "words": len(words), ("none", "one", "several")[min(number, 2)]: 1})
            stats.words.update(words)
            stats.phrase_words.append(len(words))
            stats.targets.append(number)
            distinct.add(plain_text(expression.text))
        for instance in record.instances:
            value = instance.segmentation
            try:
                rle = to_rle(str(base / value) if isinstance(value, str) else value, record.size)
            except (DataError, ValueError) as error:
                stats.problems.append(f"{record.image_path}: {error}")
                continue
            stats.mask_shares.append(int(coco_mask.area(rle)) / (record.size[0] * record.size[1]))
    stats.num_distinct = len(distinct)
    return stats


def grouped(values: Sequence[float], groups: dict[float, str]) -> dict[str, int]:
    """Return the number of values in each group, without empty groups at the ends."""
    counts = Counter(next(name for end, name in groups.items() if value <= end) for value in values)
    names = list(groups.values())
    filled = [index for index, name in enumerate(names) if counts[name]]
    return {name: counts[name] for name in names[filled[0] : filled[-1] + 1]} if filled else {}


def split_table(stats: Stats) -> list[dict[str, Any]]:
    """Return a row for each split, and one for all if there are several."""
    table = []
    for name in sorted(stats.splits, key=lambda name: (name != "train", name != "val", name)):
        counts = stats.splits[name]
        numbers = {key: counts[key] for key in ("images", "phrases", "none", "one", "several", "words")}
        table.append({"split": name or "(no split)", **numbers})
    if len(table) > 1:
        total = {key: sum(row[key] for row in table) for key in table[0] if key != "split"}
        table.append({"split": "all", **total, "images": stats.num_images})
    names = {"none": "no target", "one": "one target", "several": "several targets"}
    return [{names.get(key, key): value for key, value in row.items()} for row in table]


def facts(stats: Stats) -> dict[str, str]:
    """Return the numbers that describe the whole set, by name."""
    lengths, shares = stats.phrase_words, stats.mask_shares
    sizes = [f"{width} x {height} ({number:,})" for (height, width), number in stats.sizes.most_common(3)]
    result = {
        "images": f"{stats.num_images:,}",
        "phrases": f"{len(stats.targets):,} ({stats.num_distinct:,} different)",
        "phrases per image": f"{len(stats.targets) / stats.num_images:.1f}",
        "words per phrase": f"{statistics.mean(lengths):.1f} (at most {max(lengths)})",
        "different words": f"{len(stats.words):,}",
        "targets per phrase": f"{statistics.mean(stats.targets):.2f} (at most {max(stats.targets)})",
        "phrases without target": f"{stats.targets.count(0) / len(stats.targets):.1%}",
        "objects": f"{len(shares):,}",
    }
    if shares:
        small, median, large = (f"{share:.2%}" for share in (min(shares), statistics.median(shares), max(shares)))
        result["object's share of the image"] = f"median {median} ({small} to {large})"
    sides = f"{min(stats.sides):,} to {max(stats.sides):,} pixels"
    return result | {"longer side of images": sides, "most frequent sizes": ", ".join(sizes)}


def charts(stats: Stats) -> dict[str, dict[str, int]]:
    """Return counts by group for each chart."""
    return {
        "Targets per phrase": grouped(stats.targets, TARGETS),
        "Words per phrase": grouped(stats.phrase_words, PHRASE_WORDS),
        "Object's share of its image": grouped(stats.mask_shares, MASK_SHARES),
        "Longer side of images (pixels)": grouped(stats.sides, SIDES),
    }


def report_lines(stats: Stats, title: str) -> list[str]:
    """Return the page for a terminal."""
    table = split_table(stats)
    lines = [title, ""]
    lines += aligned(
        [[*table[0], ""], *([*(f"{v:,}" if isinstance(v, int) else v for v in r.values()), ""] for r in table)]
    )
    width = max(map(len, facts(stats)))
    lines += ["", *(f"{name:{width}}  {value}" for name, value in facts(stats).items())]
    for name, counts in charts(stats).items():
        if len(counts) > 1:
            lines += ["", name, *_bars(counts)]
    words = stats.words.most_common(NUM_WORDS)
    if words:
        lines += [
            "",
            "Most frequent words",
            "  " + printable(", ".join(f"{word} {number:,}" for word, number in words)),
        ]
    if stats.problems:
        lines += ["", _problem_line(stats)]
    return lines


def _bars(counts: dict[str, int], width: int = 40) -> list[str]:
    """Draw counts as bars of text."""
    most = max(counts.values())
    cells = [["  " + name, f"{number:,}", "#" * round(width * number / most)] for name, number in counts.items()]
    return aligned(cells)


def _problem_line(stats: Stats) -> str:
    number = len(stats.problems)
    return f"not counted: {number:,} rows or masks that cannot be used (first: {printable(stats.problems[0])})"


def page(stats: Stats, title: str) -> str:
    """Return the page as HTML."""
    from refseg.report.page import render
    from refseg.report.plots import bars_svg

    return render(
        "stats.html",
        title=f"Statistics of {title}",
        facts=facts(stats),
        splits=split_table(stats),
        plots=[bars_svg(counts, title=name) for name, counts in charts(stats).items() if len(counts) > 1],
        words=[{"word": word, "number": number} for word, number in stats.words.most_common(3 * NUM_WORDS)],
        problem=_problem_line(stats) if stats.problems else "",
    )
