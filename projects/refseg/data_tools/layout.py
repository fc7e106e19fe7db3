"""`refseg data layout`: which files each known set needs, where they are expected, and which of them are there."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from refseg.datasets.catalog import IMAGE_FOLDERS, SETS, KnownSet, get_set
from refseg.paths import data_path

FOUND, MISSING = "found  ", "missing"
SWIN = "https://github.com/microsoft/Swin-Transformer (its model hub; timm's and transformers' files are read too)"
BEIT3 = "https://github.com/microsoft/unilm/tree/master/beit3"
WEIGHTS = {  # file or folder -> what uses it, and its source
    "data/weights/swin_base_patch4_window12_384_22k.pth": ("configs with swinb", SWIN),
    "data/weights/swin_large_patch4_window12_384_22k.pth": ("instalign_swinl", SWIN),
    "data/weights/swin_tiny_patch4_window7_224.pth": ("rela_swint", SWIN),
    "data/weights/beit3_base_patch16_224.pth": ("configs with beit3b", BEIT3),
    "data/weights/beit3.spm": ("their tokenizer", BEIT3),
    "data/weights/bert-base-uncased": (
        "text of configs with swinb",
        "the hub: hf download bert-base-uncased --local-dir data/weights/bert-base-uncased",
    ),
    "data/weights/roberta-base": (
        "instalign_swinb_roberta",
        "the hub: hf download roberta-base --local-dir data/weights/roberta-base",
    ),
}
WIDTH = 110


def main(args: argparse.Namespace) -> int:
    chosen = [get_set(name) for name in args.sets] or list(SETS.values())
    print(f"data root: {data_path('data')} (another one: --data-root, or $REFSEG_DATA)\n")
    print("\n".join(tree(chosen)))
    for known in chosen:
        print()
        print("\n".join(details(known) if args.sets else summary(known)))
    if not args.sets:
        print("\n" + "\n".join(weights()))
        print("\nMore about one of them: refseg data layout SET. Then: refseg data check")
    return 0


def tree(chosen: Iterable[KnownSet]) -> list[str]:
    """The expected files of all of them, each once, marked."""
    chosen = list(chosen)
    lines = ["data/"]
    folders = {known.folder: [one for one in chosen if one.folder == known.folder] for known in chosen}
    for folder, members in folders.items():
        lines.append(f"  {folder}/")
        names = [f"{Path(known.refs).name}" for known in members] + ["instances.json"]
        lines += [f"    {mark(f'data/{folder}/{name}')}  {name}" for name in names]
    lines.append("  images/")
    for path in dict.fromkeys(known.image_root for known in chosen):
        lines.append(f"    {mark(path)}  {Path(path).name}/{_number_of_files(path)}")
    return lines


def weights() -> Iterator[str]:
    """Yield a line or two about each file of pretrained weights: whether it is there, what uses it, its source."""
    yield "weights (`refseg doctor CONFIG` says which of them a config needs)"
    for path, (used_by, source) in WEIGHTS.items():
        yield f"  {mark(path)}  {path}: {used_by}"
        yield f"           from {source}"


def mark(path: str) -> str:
    return FOUND if data_path(path).exists() else MISSING


def _number_of_files(path: str) -> str:
    folder, expected = data_path(path), IMAGE_FOLDERS[path].files
    if not folder.is_dir():
        return ""
    with os.scandir(folder) as entries:
        number = sum(1 for _ in entries)
    return f"  {number:,} files" + (f" (the whole download has {expected:,})" if expected else "")


def summary(known: KnownSet) -> list[str]:
    there = all(data_path(path).exists() for path in (*list(known.annotations.values())[1:], known.image_root))
    return [f"{known.name}: {known.title}, {'complete' if there else 'not complete'}", f"  from {known.source}"]


def details(known: KnownSet) -> list[str]:
    splits = [
        f"{split} {', '.join(f'{n:,} {what}' for what, n in vars(counts).items() if n is not None)}"
        for split, counts in known.counts.items()
    ]
    facts = {
        "annotations": known.source + (f"; rename {known.renamed}" if known.renamed else ""),
        "images": IMAGE_FOLDERS[known.image_root].source,
        "licence": f"annotations: {known.license}. Images: {IMAGE_FOLDERS[known.image_root].terms}",
        "splits": "; ".join(splits) + ("" if known.verified else " (unverified)") if splits else "no counts known",
        "split by": known.split_by or "not known",
        "used for": known.protocol,
        "in a config": f"annotations={_as_call(known)}, image_root={known.image_root!r}",
    }
    lines = [f"{known.name}: {known.title}"]
    for name, text in facts.items():
        lines += _wrapped(f"  {name:12}", text)
    for note in known.notes:
        lines += _wrapped("  note        ", note)
    return lines


def _as_call(known: KnownSet) -> str:
    return f"dict({', '.join(f'{key}={value!r}' for key, value in known.annotations.items())})"


def _wrapped(head: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        head + text,
        WIDTH,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
