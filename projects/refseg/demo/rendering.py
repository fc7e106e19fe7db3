"""Answers as the page shows them and gives them away: HTML, a zip of masks, JSON."""

from __future__ import annotations

import io
import json
import zipfile
from html import escape
from pathlib import Path

from refseg.demo.page import Asked, Opened
from refseg.inference.predict import counted, output_names, phrase_files
from refseg.inference.results import FoundInstance, ImageAnswer, PhraseResult, mask_png
from refseg.report.page import data_uri, numbered_html, phrase_html, phrase_style
from refseg.visualization.answers import ONE_OF_FEW
from refseg.visualization.instances import INSTANCE_COLOURS

STYLE = """
#timing .html-container, #answers .html-container { padding: 10px 0; }
.refseg { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px;
  align-items: start; --rim: #6e6e6e; }
.refseg article { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px; min-width: 0; }
.refseg h3 { margin: 0 0 6px; font-size: 1.05rem; overflow-wrap: anywhere; }
.refseg p { margin: 0 0 10px; overflow-wrap: anywhere; }
.refseg img + p { margin: 10px 0 0; }
.refseg img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.refseg .nothing { padding: 6px 10px; border-left: 4px solid #0072b2; background: var(--background-fill-secondary); }
.refseg details { margin-top: 10px; }
.refseg summary { cursor: pointer; }
.refseg .scroll { overflow-x: auto; }
.refseg table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0 0; }
.refseg th, .refseg td { padding: 3px 9px; text-align: right; border: 1px solid var(--border-color-primary); }
.refseg thead th { font-weight: 500; }
.refseg .chip { display: inline-block; width: .8em; height: .8em; border: 1px solid #6e6e6e; border-radius: 50%; }
""" + phrase_style(".refseg")


def answers_html(answer: ImageAnswer) -> str:
    """A card for each phrase: what was found, the picture, and what each object takes from the words."""
    return f'<div class="refseg">{"".join(_card(answer, number) for number in range(len(answer)))}</div>'


def _card(answer: ImageAnswer, number: int) -> str:
    phrase = answer[number]
    head = f"<h3>\u201c<bdi>{phrase_html(phrase.text, phrase.owners)}</bdi>\u201d</h3>"
    told = told_of(phrase)
    if phrase.nothing_here:  # the image is beside the cards: there is nothing to show in it
        return f'<article>{head}<p class="nothing" role="status">{escape(told)}</p></article>'
    picture = answer.panel(number, ONE_OF_FEW)
    height, width = picture.shape[:2]
    alt = escape(f"\u201c{phrase.text}\u201d: {told}")
    found = phrase.instances
    objects = f"<p>{numbered_html([one.phrase for one in found], [one.score for one in found])}</p>" if found else ""
    return (
        f'<article>{head}<p>{escape(told)}</p><img src="{data_uri(picture)}" width="{width}" height="{height}" '
        f'alt="{alt}">{objects}{words_table(phrase)}</article>'
    )


def told_of(phrase: PhraseResult) -> str:
    """An answer in a sentence."""
    return f"{phrase.in_words[:1].upper()}{phrase.in_words[1:]}."


def words_table(phrase: PhraseResult) -> str:
    """The weight of each word for each object; nothing where the weights were not measured to find the right words."""
    rows = [(k, one) for k, one in enumerate(phrase.instances) if one.words and phrase.aligned]
    if not rows:
        return ""
    head = "".join(f'<th scope="col"><bdi>{escape(word)}</bdi></th>' for word in phrase.text.split())
    body = "".join(_words_row(k, one) for k, one in rows)
    return (
        "<details><summary>Words of each object</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Words of each object"><table><thead><tr>'
        f'<th scope="col">object</th><th scope="col">score</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )


def _words_row(number: int, one: FoundInstance) -> str:
    colour = INSTANCE_COLOURS[number % len(INSTANCE_COLOURS)]
    weights = one.words or ()
    top = max(weights) or 1.0
    cells = "".join(
        f'<td style="background: rgb(0 114 178 / {45 * max(0.0, weight) / top:.0f}%)">{weight:.2f}</td>'
        for weight in weights
    )
    return (
        f'<tr><th scope="row"><span class="chip" style="background: rgb{colour}"></span> {number + 1}</th>'
        f"<td>{one.score:.2f}</td>{cells}</tr>"
    )


def told_of_image(opened: Opened) -> str:
    """For people who just uploaded it."""
    height, width = opened.full_size
    text = f"{opened.session.source.name}: {width} x {height} pixels"
    if opened.size != opened.full_size:
        text += f", reduced to {opened.size[1]} x {opened.size[0]}: masks have that size"
    return f"{text}; {_opening(opened)}."


def told_of_time(asked: Asked) -> str:
    """What the answer cost, and whether the image had to be encoded for it."""
    parts = ", ".join(f"{name} {_milliseconds(seconds)}" for name, seconds in asked.answer.seconds.items())
    text = f"{counted(len(asked.answer), 'phrase')} in {_milliseconds(asked.seconds)} ({parts})"
    if asked.answer.num_cut:
        text += f"; {asked.answer.num_cut} of them longer than the model reads, and cut"
    return f"{text}; {_opening(asked.opened)}."


def _opening(opened: Opened) -> str:
    if not opened.session.inferencer.shares_images:
        return "this model reads the image anew for each phrase"
    return f"image encoded in {_milliseconds(opened.seconds)}" if opened.seconds else "the image was encoded before"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def masks_zip(answer: ImageAnswer) -> bytes:
    """K_PHRASE.png: the mask of phrase K, white on black, and K_PHRASE_objectN.png: its objects one by one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for file, phrase in zip(phrase_files(Path(), [phrase.text for phrase in answer]), answer, strict=True):
            archive.writestr(str(file), phrase.png())
            for number, one in enumerate(phrase.instances, start=1):
                archive.writestr(f"{file.stem}_object{number}.png", mask_png(one.mask))
    return buffer.getvalue()


def write_downloads(answer: ImageAnswer, folder: Path) -> tuple[Path, Path]:
    """NAME_masks.zip and NAME.json in a folder."""
    name = output_names([answer.name])[answer.name]
    masks, told = folder / f"{name}_masks.zip", folder / f"{name}.json"
    masks.write_bytes(masks_zip(answer))
    told.write_text(json.dumps(answer.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
    return masks, told
