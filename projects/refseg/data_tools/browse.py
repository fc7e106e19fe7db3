"""`refseg data browse`: one page of samples as the model gets them, so that a wrong augmentation is visible."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from refseg.datasets.dataset import MixedDataset, ReferringDataset
from refseg.datasets.samplers import SampleKey
from refseg.datasets.tokenizers import TextTokenizer
from refseg.errors import ConfigError, DataError, UsageError
from refseg.report.page import figure_of, render
from refseg.structures import Sample
from refseg.terminal import write_whole
from refseg.visualization.captions import load_font
from refseg.visualization.overlay import NOTHING_HERE, PALETTE, Color, fit_for_display, outline_width, overlay_masks

MAX_TAG = 60  # characters of a tag's value
TINT = 0.1  # weak enough that "the red square" still looks red


def main(args: argparse.Namespace) -> int:
    from mmengine.registry import init_default_scope

    from refseg.engine.run import RunOptions, load_config
    from refseg.registry import DATASETS

    if args.num < 1 or args.epoch < 0 or args.seed < 0:
        raise UsageError("--num must be at least 1, --epoch and --seed at least 0")
    if args.config.endswith(".jsonl"):
        init_default_scope("refseg")
        dataset, title = jsonl_dataset(args.config), args.config
    else:
        cfg = load_config(args.config, RunOptions(cfg_options=args.cfg_options))
        loader = cfg.get(f"{args.loader}_dataloader")
        if not loader:
            raise ConfigError(f"the config has no {args.loader}_dataloader")
        init_default_scope(cfg.get("default_scope", "refseg"))
        dataset, title = DATASETS.build(loader.dataset), f"{args.config}: {args.loader}"
    html, num_failed = contact_sheet(dataset, num=args.num, seed=args.seed, epoch=args.epoch, title=title)
    write_whole(args.out, html)
    unreadable = f", {num_failed} unreadable" if num_failed else ""
    print(f"{args.out}: {min(args.num, len(dataset))} of {len(dataset):,} items{unreadable}")
    return 0


def jsonl_dataset(file: str) -> ReferringDataset:
    """Return the images of a JSONL file as they are, each with all its phrases, which have no tokens."""
    pipeline = [dict(type=name) for name in ("LoadImage", "RawText", "PackSample")]
    return ReferringDataset(annotations=dict(format="jsonl", file=file), pipeline=pipeline)


def contact_sheet(
    dataset: ReferringDataset | MixedDataset, *, num: int, seed: int = 0, epoch: int = 0, title: str
) -> tuple[str, int]:
    """Return a page of random items as in one epoch of a run, and the number of items that could not be loaded.

    Args:
        dataset: The data set.
        num: Number of items.
        seed: Seed of the run.
        epoch: The epoch, which changes the augmentation.
        title: Title of the page.
    """
    # Cards of random items
    rng = np.random.default_rng([seed, epoch])
    items = sorted(rng.choice(len(dataset), min(num, len(dataset)), replace=False).tolist())
    cards: list[dict[str, Any]] = []
    for item in items:
        key = SampleKey(item, epoch, seed)
        part, part_key = dataset.locate(key) if isinstance(dataset, MixedDataset) else (dataset, key)
        try:
            cards.append(sample_card(part.make_sample(part_key), item=item, tokenizer=tokenizer_of(part)))
        except DataError as error:
            record = part.record(part_key)
            texts = [expression.text for expression in record.expressions]
            facts = f"item {item} · image {record.image_id} · {record.image_path}"
            cards.append({"error": str(error), "texts": texts, "facts": facts})
    # Introduction: sources and transforms
    lines = [f"{len(items)} of {len(dataset):,} items, seed {seed}, epoch {epoch}."]
    for part in dataset.datasets if isinstance(dataset, MixedDataset) else [dataset]:
        names = ", ".join(type(transform).__name__ for transform in part.transforms)
        annotations = part.metainfo["annotations"]
        source = annotations.get("refs") or annotations.get("file")
        split = part.metainfo["split"]
        lines.append(f"{source}, {'all splits' if split is None else f'split {split}'}: {names}.")
    num_failed = sum("error" in card for card in cards)
    return render("samples.html", title=title, lines=lines, cards=cards, nothing_here=NOTHING_HERE), num_failed


def tokenizer_of(dataset: ReferringDataset) -> Any:
    """Return the tokenizer of the pipeline, or None."""
    tokenizers = (getattr(transform, "tokenizer", None) for transform in dataset.transforms)
    return next((tokenizer for tokenizer in tokenizers if tokenizer is not None), None)


# Cards ----------------------------------------------------------------------------------------------------------------


def sample_card(sample: Sample, *, item: int, tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """Return the contents of a card: the picture, the phrases with their instances, tokens, and tags, and the facts."""
    meta = sample.meta
    phrases = []
    for row, text in enumerate(meta.texts):
        tags = {name: str(value) for name, value in (meta.tags[row] if row < len(meta.tags) else {}).items()}
        instances = [
            {
                "number": index + 1,
                "empty": not bool(sample.instance_masks[index].any()),
                "color": color_of(index),
                "ink": ink_on(color_of(index)),
            }
            for index in sample.referents[row].nonzero().flatten().tolist()
        ]
        phrases.append(
            {
                "text": text,
                "instances": instances,
                "tokens": tokens_of(sample.token_ids[row], text, tokenizer),
                "tags": " · ".join(
                    f"{name}: {value[:MAX_TAG]}{'…' * (len(value) > MAX_TAG)}" for name, value in tags.items()
                ),
            }
        )
    height, width = meta.original_size
    facts = [
        f"item {item}",
        f"image {meta.image_id}",
        f"{width} × {height} → {sample.image.shape[2]} × {sample.image.shape[1]}",
        f"expressions {', '.join(meta.expression_ids)}",
        meta.image_path,
    ]
    alt = f"Input {item} with its masks: {len(meta.texts)} phrases"
    picture = figure_of(draw_sample(sample), label=f"Input {item}", alt=alt)
    return {"picture": picture, "phrases": phrases, "facts": " · ".join(facts)}


def tokens_of(ids: Sequence[int], text: str, tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """Return the tokens of a phrase as words, the unknown ones, and those that the length limit cuts off."""
    if tokenizer is None or not hasattr(tokenizer, "tokenizer"):
        return {"words": list(map(str, ids)), "unknown": None, "num_unknown": 0, "cut": []}
    hf_tokenizer = tokenizer.tokenizer
    words, unknown = hf_tokenizer.convert_ids_to_tokens(list(ids)), hf_tokenizer.unk_token
    cut = hf_tokenizer.convert_ids_to_tokens(cut_tokens(list(ids), hf_tokenizer(text)["input_ids"]))
    num_unknown = words.count(unknown) if unknown else 0
    return {"words": words, "unknown": unknown, "num_unknown": num_unknown, "cut": cut}


def cut_tokens(ids: list[int], full_ids: list[int]) -> list[int]:
    """Return the ids of the full text that are missing from `ids`. An end token may follow the cut."""
    if len(ids) >= len(full_ids):
        return []
    start = next((i for i, (a, b) in enumerate(zip(ids, full_ids, strict=False)) if a != b), len(ids))
    return full_ids[start : len(full_ids) - (len(ids) - start)]


# The picture ----------------------------------------------------------------------------------------------------------


def draw_sample(sample: Sample) -> np.ndarray:
    """Draw the input with each instance's mask, box and number as one picture (H, W, 3)."""
    image = np.ascontiguousarray(sample.image.numpy().transpose(1, 2, 0))
    masks = sample.instance_masks.numpy().astype(bool)
    shown, shown_masks = fit_for_display(image, masks)
    # Masks
    colors = [color_of(index) for index in range(len(masks))] or [PALETTE[0]]
    canvas = Image.fromarray(overlay_masks(shown, shown_masks, colors=colors, alpha=TINT))
    draw = ImageDraw.Draw(canvas)
    # Boxes
    boxes = getattr(sample, "instance_boxes", None)
    scale = np.array([shown.shape[1] / image.shape[1], shown.shape[0] / image.shape[0]] * 2)
    line = max(2, round(outline_width(*shown.shape[:2]) / 2))
    for index, box in enumerate([] if boxes is None else boxes.numpy().astype(np.float64) * scale):
        corners = tuple(box.tolist())
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline=(0, 0, 0), width=line + 1)
            draw.rectangle(corners, outline=color_of(index), width=line)
    # Numbers, each on the pixel of its mask that is nearest to the mask's center
    font = load_font(13)
    for index, mask in enumerate(shown_masks):
        if not mask.any():
            continue
        rows, columns = np.nonzero(mask)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        center, color, number = (int(columns[nearest]), int(rows[nearest])), color_of(index), str(index + 1)
        left, top, right, bottom = draw.textbbox(center, number, font=font, anchor="mm")
        frame = (left - 4, top - 3, right + 4, bottom + 3)
        draw.rounded_rectangle(frame, radius=3, fill=color, outline=(0, 0, 0))
        draw.text(center, number, font=font, anchor="mm", fill=ink_on(color))
    return np.asarray(canvas)


def color_of(instance: int) -> Color:
    return PALETTE[instance % len(PALETTE)]


def ink_on(color: Color) -> Color:
    """Return black or white, whichever is easier to read on the color."""
    red, green, blue = ((value / 255) ** 2.2 for value in color)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)
