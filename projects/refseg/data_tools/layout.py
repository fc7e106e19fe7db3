"""`refseg data layout`: list the files of each known set, their places, and their sources."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from refseg.datasets.catalog import IMAGE_FOLDERS, SETS, Target, get_set
from refseg.paths import data_path

FOUND, MISSING = "found  ", "missing"
SWIN = "https://github.com/microsoft/Swin-Transformer (its model hub; files of timm and transformers work too)"
BEIT3 = "https://github.com/microsoft/unilm/tree/master/beit3"
MASK2FORMER = "https://github.com/facebookresearch/Mask2Former (its model zoo, instance segmentation on COCO)"
WEIGHTS = {  # file or folder -> what uses it, source
    "data/weights/swin_base_patch4_window12_384_22k.pth": ("configs with swinb", SWIN),
    "data/weights/swin_large_patch4_window12_384_22k.pth": ("instalign_swinl_grefcoco", SWIN),
    "data/weights/swin_tiny_patch4_window7_224.pth": ("rela_swint_grefcoco", SWIN),
    "data/weights/beit3_base_patch16_224.pth": ("configs with beit3b", BEIT3),
    "data/weights/beit3_large_patch16_224.pth": ("configs with beit3l", BEIT3),
    "data/weights/beit3.spm": ("tokenizer of BEiT-3", BEIT3),
    "data/weights/mask2former_swins_coco_instance.pkl": ("configs with deris_beit3b", MASK2FORMER),
    "data/weights/mask2former_swinb_coco_instance.pkl": (
        "configs with deris_beit3l, instalign_swinb_from_mask2former",
        MASK2FORMER,
    ),
    "data/weights/bert-base-uncased": (
        "text of configs with swinb",
        "the hub: hf download bert-base-uncased --local-dir data/weights/bert-base-uncased",
    ),
    "data/weights/roberta-base": (
        "instalign_swinb_roberta_grefcoco",
        "the hub: hf download roberta-base --local-dir data/weights/roberta-base",
    ),
}
WIDTH = 110


def main(args: argparse.Namespace) -> int:
    chosen = [get_set(name) for name in args.sets] or list(SETS.values())
    print(f"data root: {data_path('data')} (set another one with --data-root or $REFSEG_DATA)\n")
    print("\n".join(tree(chosen)))
    for known in chosen:
        print()
        if args.sets:
            print("\n".join(details(known)))
            continue
        paths = [value for key, value in known.annotations.items() if key != "format"] + [known.image_root]
        complete = all(data_path(path).exists() for path in paths)
        print(f"{known.name}: {known.title}, {'complete' if complete else 'not complete'}\n  from {known.source}")
    if not args.sets:
        print("\nweights (`refseg doctor CONFIG` lists those that a config needs)")
        for path, (used_by, source) in WEIGHTS.items():
            print(f"  {mark(path)}  {path}: {used_by}\n           from {source}")
        print("\nMore about a set: refseg data layout SET. Then run: refseg data check")
    return 0


def tree(chosen: Sequence[Target]) -> list[str]:
    """Return the expected files of some sets as a tree, each marked as found or missing."""
    lines = ["data/"]
    for folder in dict.fromkeys(known.folder for known in chosen):
        lines.append(f"  {folder}/")
        names = [Path(known.refs).name for known in chosen if known.folder == folder] + ["instances.json"]
        lines += [f"    {mark(f'data/{folder}/{name}')}  {name}" for name in names]
    lines.append("  images/")
    for path in dict.fromkeys(known.image_root for known in chosen):
        line, expected = f"    {mark(path)}  {Path(path).name}/", IMAGE_FOLDERS[path].files
        if data_path(path).is_dir():
            line += f"  {len(os.listdir(data_path(path))):,} files"
            line += f" (the whole download has {expected:,})" if expected else ""
        lines.append(line)
    return lines


def mark(path: str) -> str:
    return FOUND if data_path(path).exists() else MISSING


def details(known: Target) -> list[str]:
    splits = [
        f"{split} {', '.join(f'{n:,} {what}' for what, n in vars(counts).items() if n is not None)}"
        for split, counts in known.counts.items()
    ]
    annotations = ", ".join(f"{key}={value!r}" for key, value in known.annotations.items())
    facts = {
        "annotations": known.source + (f"; rename {known.renamed}" if known.renamed else ""),
        "images": IMAGE_FOLDERS[known.image_root].source,
        "license": f"annotations: {known.license}. Images: {IMAGE_FOLDERS[known.image_root].terms}",
        "splits": "; ".join(splits) + ("" if known.verified else " (unverified)") if splits else "no counts known",
        "split by": known.split_by or "unknown",
        "used for": known.protocol,
        "in a config": f"annotations=dict({annotations}), image_root={known.image_root!r}",
    }
    lines = [f"{known.name}: {known.title}"]
    for name, text in [*facts.items(), *(("note", note) for note in known.notes)]:
        head = f"  {name:12}"
        lines += textwrap.wrap(
            head + text, WIDTH, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
        )
    return lines
