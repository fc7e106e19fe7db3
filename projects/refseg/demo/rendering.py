"""HTML, summaries, and downloads for the answers on the web page."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from refseg.demo.page import Asked, Opened
from refseg.inference.predict import counted, output_names, phrase_files
from refseg.inference.results import ImageAnswer, PhraseAnswer, picture_png
from refseg.report.page import data_uri, numbered_html, phrase_html, phrase_style
from refseg.visualization.answers import ONE_OF_FEW
from refseg.visualization.word_bars import INSTANCE_COLORS

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
