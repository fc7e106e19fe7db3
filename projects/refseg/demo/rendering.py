"""HTML, summaries, and downloads for the answers on the web page."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageDraw

from refseg.demo.page import Asked, Opened
from refseg.inference.clicks import ClickedMask, Clicks
from refseg.inference.predict import counted, output_names, phrase_files
from refseg.inference.results import ImageAnswer, PhraseAnswer, picture_png
from refseg.report.page import data_uri, numbered_html, phrase_html, phrase_style
from refseg.visualization.answers import ONE_OF_FEW
from refseg.visualization.overlay import fit_for_display
from refseg.visualization.word_bars import INSTANCE_COLORS

ON, BESIDE = (0, 114, 178), (213, 94, 0)  # colors of clicks on the object and beside it

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8") + phrase_style(".refseg")
_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def answers_html(answer: ImageAnswer) -> str:
    """Return a card per phrase: the answer, the picture, and the words of each object."""
    return _TEMPLATES.get_template("answers.html").render(
        answer=answer,
        phrase_summary=phrase_summary,
        phrase_html=phrase_html,
        numbered_html=numbered_html,
        data_uri=data_uri,
        display=ONE_OF_FEW,
        colors=INSTANCE_COLORS,
    )


def phrase_summary(phrase: PhraseAnswer) -> str:
    """Return the answer to a phrase as a sentence."""
    return f"{phrase.in_words[:1].upper()}{phrase.in_words[1:]}."


def mask_choices(answer: ImageAnswer) -> list[tuple[str, str]]:
    """Return the names of the masks that clicks can correct, with their values (see `check_mask`)."""
    choices = []
    for k, phrase in enumerate(answer):
        choices.append((f"{k + 1}. \u201c{phrase.text}\u201d", str(k)))
        choices += [(f"{k + 1}. object {i + 1}", f"{k}:{i}") for i in range(len(phrase.instances))]
    return choices


def click_picture(answer: ImageAnswer, number: int, instance: int | None, corner: tuple[int, int] | None) -> np.ndarray:
    """Draw the answer to a phrase with the clicks of one of its masks: (h, w, 3). `corner` is of a box to come."""
    phrase = answer[number]
    image = answer.view(ONE_OF_FEW)
    if phrase.nothing_here:
        picture = fit_for_display(image, np.zeros((0, *image.shape[:2]), bool), ONE_OF_FEW)[0]
    else:
        picture = answer.panel(number, ONE_OF_FEW)
    source = phrase.source if instance is None else phrase.instances[instance].source
    clicks = source.clicks if isinstance(source, ClickedMask) else Clicks()
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    scale = picture.shape[0] / answer.size[0], picture.shape[1] / answer.size[1]
    radius = max(6, min(picture.shape[:2]) // 50)
    # The box, or its first corner
    if clicks.box is not None:
        edges = [value * scale[1 - k % 2] for k, value in enumerate(clicks.box)]
        draw.rectangle(edges, outline=(255, 255, 255), width=4)
        draw.rectangle(edges, outline=ON, width=2)
    if corner is not None:
        x, y = (corner[0] + 0.5) * scale[1], (corner[1] + 0.5) * scale[0]
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=ON, outline=(255, 255, 255), width=2)
    # Points with a plus or a minus
    for column, row, positive in clicks.points:
        x, y = (column + 0.5) * scale[1], (row + 0.5) * scale[0]
        draw.circle((x, y), radius, fill=ON if positive else BESIDE, outline=(255, 255, 255), width=2)
        draw.line((x - radius / 2, y, x + radius / 2, y), fill=(255, 255, 255), width=2)
        if positive:
            draw.line((x, y - radius / 2, x, y + radius / 2), fill=(255, 255, 255), width=2)
    return np.asarray(canvas)


def image_summary(opened: Opened) -> str:
    """Return the name and size of an uploaded image, and the time it took to encode."""
    height, width = opened.full_size
    text = f"{opened.session.source.name}: {width} x {height} pixels"
    if opened.size != opened.full_size:
        text += f", reduced to {opened.size[1]} x {opened.size[0]} (also the size of its masks)"
    text = f"{text}; {_encoding_summary(opened)}."
    return f"{text} Note: {opened.session.note}." if opened.session.note else text


def time_summary(asked: Asked) -> str:
    """Return the time that an answer took, and whether the image was encoded for it."""
    parts = ", ".join(f"{name} {_format_seconds(seconds)}" for name, seconds in asked.answer.seconds.items())
    text = f"{counted(len(asked.answer), 'phrase')} in {_format_seconds(asked.seconds)} ({parts})"
    if asked.answer.num_cut:
        text += f"; {counted(asked.answer.num_cut, 'phrase')} too long for the model and truncated"
    text = f"{text}; {_encoding_summary(asked.opened)}."
    return f"{text} Note: {asked.answer.note}." if asked.answer.note else text


def _encoding_summary(opened: Opened) -> str:
    if not opened.session.inferencer.shares_images:
        return "this model encodes the image again for each phrase"
    return f"image encoded in {_format_seconds(opened.seconds)}" if opened.seconds else "the image was already encoded"


def _format_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def write_downloads(answer: ImageAnswer, folder: Path) -> tuple[Path, Path]:
    """Write the masks and the JSON of an answer.

    The zip file holds K_PHRASE.png, the mask of phrase K in white on black, and K_PHRASE_objectN.png for each object.

    Returns:
        The paths of NAME_masks.zip and NAME.json.
    """
    name = output_names([answer.name])[answer.name]
    zip_file, json_file = folder / f"{name}_masks.zip", folder / f"{name}.json"
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_STORED) as archive:  # PNG is already compressed
        for file, phrase in zip(phrase_files(Path(), [phrase.text for phrase in answer]), answer, strict=True):
            archive.writestr(str(file), phrase.png())
            for number, instance in enumerate(phrase.instances, start=1):
                archive.writestr(f"{file.stem}_object{number}.png", picture_png(instance.mask, optimize=True))
    json_file.write_text(json.dumps(answer.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
    return zip_file, json_file
