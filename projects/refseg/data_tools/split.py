"""`refseg data split`: divide a JSONL file into splits by image."""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refseg.data_tools.rows import check_output, image_keys, read_rows, with_base, write_rows
from refseg.errors import DataError, UsageError
from refseg.terminal import aligned

KINDS = ("none", "one", "several")  # targets of a phrase


def main(args: argparse.Namespace) -> int:
    out = check_output(args.out, args.overwrite)
    shares = {"train": 1 - args.val - args.test, "val": args.val}
    if args.test:
        shares["test"] = args.test
    base = Path(args.file).parent
    rows = list(read_rows(args.file).values())
    keys = image_keys(rows, base)
    splits = split_by_image(rows, shares, args.seed, keys=keys)
    write_rows(out, ({**with_base(row, base, out.parent), "split": s} for row, s in zip(rows, splits, strict=True)))
    replaced = sum(row.get("split") is not None for row in rows)
    if replaced:
        print(f"note: {replaced:,} rows had a split, which is replaced")
    same = len({row["image"] for row in rows}) - len(set(keys))
    if same:
        print(f"note: {same:,} image files are copies of others and stay with them")
    lines = [["split", "images", "rows", *(f"{kind} target{'s' * (kind == 'several')}" for kind in KINDS), ""]]
    for name in shares:
        chosen = [number for number, split in enumerate(splits) if split == name]
        kinds = Counter(kind_of(rows[number]) for number in chosen)
        images = len({keys[number] for number in chosen})
        lines.append([name, f"{images:,}", f"{len(chosen):,}", *(f"{kinds[kind]:,}" for kind in range(3)), ""])
    print("\n".join([f"{out}:", *aligned(lines)]))
    return 0


def kind_of(row: Mapping[str, Any]) -> int:
    """Return the index in KINDS of a row's number of targets."""
    return min(len(row["targets"] or ()), 2)


def split_by_image(
    rows: Sequence[Mapping[str, Any]], shares: Mapping[str, float], seed: int, *, keys: Sequence[str] | None = None
) -> list[str]:
    """Assign each row to a split, so that all rows of an image are in the same one.

    Each split gets its share of the images, and at least one. The numbers of rows without target, with one, and with
    several targets follow the shares as well as the images allow. The result depends on the rows, but not on their
    order.

    Args:
        rows: Rows of a JSONL file, with `image` and `targets`.
        shares: Share of each split. They add up to 1.
        seed: Random seed.
        keys: Key of the image for each row. By default, it is the row's `image`. `rows.image_keys` returns equal keys
            for equal files.

    Returns:
        The name of a split for each row.

    Raises:
        UsageError: A share is not positive, or the shares do not add up to 1.
        DataError: There are fewer images than splits.
    """
    if any(not share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        numbers = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UsageError(f"the shares of splits must be above 0 and add up to 1, not {numbers}. Try --val 0.1")
    keys = [row["image"] for row in rows] if keys is None else keys
    # Rows of each image by number of targets
    counts: dict[str, list[int]] = {}
    for row, key in zip(rows, keys, strict=True):
        counts.setdefault(key, [0] * len(KINDS))[kind_of(row)] += 1
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    if len(counts) < len(shares):
        raise DataError(f"{len(counts)} images are too few for {len(shares)} splits ({', '.join(shares)}).")
    # Number of images of each split: at least one, and the rest goes where most is missing
    images = dict.fromkeys(shares, 1)
    for _ in range(len(counts) - len(shares)):
        images[max(shares, key=lambda name: shares[name] * len(counts) - images[name])] += 1
    # Images that hold much of a kind come first, because they are hard to place
    order = sorted(counts)
    rng = random.Random(seed)
    rng.shuffle(order)
    weights = {
        key: [n / total if total else 0.0 for n, total in zip(counts[key], totals, strict=True)] for key in order
    }
    order.sort(key=lambda key: -max(weights[key]))
    # Each image goes to the split that lacks most of what it holds
    missing = {name: [1.0] * (len(KINDS) + 1) for name in shares}  # of each kind and of images, as shares of the goal
    left = dict(images)
    split_of: dict[str, str] = {}
    for key in order:
        held = [*weights[key], 1 / len(counts)]
        open_splits = [name for name in shares if left[name]]
        rng.shuffle(open_splits)
        need = {name: sum(h * m for h, m in zip(held, missing[name], strict=True)) for name in open_splits}
        best = max(open_splits, key=lambda name: need[name])
        split_of[key] = best
        left[best] -= 1
        goals = [*[shares[best]] * len(KINDS), images[best] / len(counts)]
        missing[best] = [m - h / goal for m, h, goal in zip(missing[best], held, goals, strict=True)]
    return [split_of[key] for key in keys]
