"""One sample as a piece of HTML: its picture, its phrases, its tokens. All text from outside goes through `_text`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from refseg.datasets.tokenizers import TextTokenizer
from refseg.records import Record
from refseg.report.page import figure
from refseg.report.text import markup_text as _text
from refseg.structures import Sample
from refseg.visualization.captions import load_font
from refseg.visualization.overlay import NOTHING_HERE, PALETTE, Color, fit_for_display, outline_width, overlay_masks

MAX_TAG = 60  # letters of a tag's value
TINT = 0.1  # no more: "the red square" must still look red
_CHIP = "border-radius:3px;padding:0 6px;margin-right:4px"


def sample_card(sample: Sample, *, item: int, tokenizer: TextTokenizer | None) -> str:
    meta = sample.meta
    image = figure(
        draw_sample(sample), label=f"Input {item}", alt=f"Input {item} with its masks: {len(meta.texts)} phrases"
    )
    phrases = "".join(_phrase(sample, row, tokenizer) for row in range(len(meta.texts)))
    return f'<article class="case">{image}{phrases}{_facts(sample, item)}</article>\n'


def error_card(record: Record, message: str, *, item: int) -> str:
    texts = "".join(f"<p>“<bdi>{_text(expression.text)}</bdi>”</p>" for expression in record.expressions)
    return (
        f'<article class="case"><p class="phrase"><span class="mark wrong">cannot be read</span></p>'
        f'<p>{_text(message)}</p>{texts}<p class="tags">item {item} · image {_text(record.image_id)} · '
        f"{_text(record.image_path)}</p></article>\n"
    )


# The picture ----------------------------------------------------------------------------------------------------------


def colour_of(instance: int) -> Color:
    return PALETTE[instance % len(PALETTE)]


def draw_sample(sample: Sample) -> np.ndarray:
    """(H, W, 3): the input with each instance's mask, box and number."""
    image = np.ascontiguousarray(sample.image.numpy().transpose(1, 2, 0))
    masks = sample.instance_masks.numpy().astype(bool)
    shown, shown_masks = fit_for_display(image, masks)
    colours = [colour_of(index) for index in range(len(masks))] or [PALETTE[0]]
    canvas = Image.fromarray(overlay_masks(shown, shown_masks, colors=colours, alpha=TINT))
    draw = ImageDraw.Draw(canvas)
    scale = np.array([shown.shape[1] / image.shape[1], shown.shape[0] / image.shape[0]] * 2)
    line = max(2, round(outline_width(*shown.shape[:2]) / 2))
    for index, box in enumerate(_boxes(sample)):
        corners = tuple((box * scale).tolist())
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline=(0, 0, 0), width=line + 1)
            draw.rectangle(corners, outline=colour_of(index), width=line)
    for index, mask in enumerate(shown_masks):
        if mask.any():
            _number(draw, index, mask)
    return np.asarray(canvas)


def _boxes(sample: Sample) -> np.ndarray:
    boxes = getattr(sample, "instance_boxes", None)
    return np.zeros((0, 4)) if boxes is None else boxes.numpy().astype(np.float64)


def _number(draw: ImageDraw.ImageDraw, index: int, mask: np.ndarray) -> None:
    """The instance's number on the pixel of its mask that lies nearest to the mask's middle."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    x, y = int(columns[nearest]), int(rows[nearest])
    font = load_font(13)
    left, top, right, bottom = draw.textbbox((x, y), str(index + 1), font=font, anchor="mm")
    draw.rounded_rectangle(
        (left - 4, top - 3, right + 4, bottom + 3), radius=3, fill=colour_of(index), outline=(0, 0, 0)
    )
    draw.text((x, y), str(index + 1), font=font, anchor="mm", fill=ink_on(colour_of(index)))


def ink_on(colour: Color) -> Color:
    """Black or white, whichever is easier to read on the colour."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)


# The words ------------------------------------------------------------------------------------------------------------


def _phrase(sample: Sample, row: int, tokenizer: TextTokenizer | None) -> str:
    """A phrase with the instances that it refers to, its tokens and its tags."""
    instances = sample.referents[row].nonzero().flatten().tolist()
    marks = "".join(_chip(index, empty=not bool(sample.instance_masks[index].any())) for index in instances)
    if not instances:
        marks = f'<span style="border:1px dashed;{_CHIP}">{_text(NOTHING_HERE)}</span> '
    tags = sample.meta.tags[row] if row < len(sample.meta.tags) else {}
    shown = " · ".join(f"{name}: {_short(value)}" for name, value in tags.items())
    tag_line = f'<p class="tags" style="margin-top:0">{_text(shown)}</p>' if shown else ""
    return (
        f"<p>{marks}“<bdi>{_text(sample.meta.texts[row])}</bdi>”</p>"
        f'<p class="tags" style="margin-top:0">{token_words(sample.token_ids[row], sample.meta.texts[row], tokenizer)}'
        f"</p>{tag_line}"
    )


def _chip(index: int, *, empty: bool) -> str:
    colour, ink = (f"rgb({','.join(map(str, value))})" for value in (colour_of(index), ink_on(colour_of(index))))
    style = f"background:{colour};color:{ink};border:1px solid #000;{_CHIP}"
    return f'<span style="{style}">{index + 1}{" (empty mask)" if empty else ""}</span> '


def token_words(ids: Sequence[int], text: str, tokenizer: TextTokenizer | None) -> str:
    """The tokens as words; those that the limit cut off are struck through and named."""
    if tokenizer is None or not hasattr(tokenizer, "tokenizer"):
        return _text(f"{len(ids)} tokens: {' '.join(map(str, ids))}")
    words = tokenizer.tokenizer.convert_ids_to_tokens(list(ids))
    unknown = tokenizer.tokenizer.unk_token
    shown = " ".join(f"<strong>{_text(word)}</strong>" if word == unknown else _text(word) for word in words)
    count = sum(word == unknown for word in words)
    notes = f"; {count} unknown to the tokenizer" if unknown and count else ""
    cut = cut_tokens(list(ids), tokenizer.tokenizer(text)["input_ids"])
    if cut:
        lost = " ".join(_text(word) for word in tokenizer.tokenizer.convert_ids_to_tokens(cut))
        return f"{len(ids)} tokens: {shown}{notes}; <strong>cut off:</strong> <s>{lost}</s>"
    return f"{len(ids)} tokens: {shown}{notes}"


def cut_tokens(kept: list[int], whole: list[int]) -> list[int]:
    """The ids of the whole text that the kept ones lack; a kept end token may follow the cut."""
    if len(kept) >= len(whole):
        return []
    same = next((i for i, (a, b) in enumerate(zip(kept, whole, strict=False)) if a != b), len(kept))
    return whole[same : len(whole) - (len(kept) - same)]


def _facts(sample: Sample, item: int) -> str:
    meta = sample.meta
    height, width = meta.original_size
    facts = [
        f"item {item}",
        f"image {meta.image_id}",
        f"{width} × {height} → {sample.image.shape[2]} × {sample.image.shape[1]}",
        f"expressions {', '.join(meta.expression_ids)}",
        meta.image_path,
    ]
    return f'<p class="tags">{_text(" · ".join(facts))}</p>'


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_TAG else f"{text[:MAX_TAG]}…"
