"""HTML, summaries, and downloads for the answers on the web page."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from jinja2 import Environment

from refseg.demo.page import Asked, Opened
from refseg.inference.predict import counted, output_names, phrase_files
from refseg.inference.results import ImageAnswer, PhraseAnswer, picture_png
from refseg.report.page import data_uri, numbered_html, phrase_html, phrase_style
from refseg.visualization.answers import ONE_OF_FEW
from refseg.visualization.word_bars import INSTANCE_COLORS

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

# A card per phrase. It has no picture if nothing was found, and no table of words if the model does not measure them.
CARDS = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""
<div class="refseg">
{% for phrase in answer %}
<article>
<h3>\u201c<bdi>{{ phrase_html(phrase.text, phrase.owners)|safe }}</bdi>\u201d</h3>
{% if phrase.nothing_here %}
<p class="nothing" role="status">{{ phrase_summary(phrase) }}</p>
{% else %}
{% set picture = answer.panel(loop.index0, ONE_OF_FEW) %}
<p>{{ phrase_summary(phrase) }}</p>
<img src="{{ data_uri(picture) }}" width="{{ picture.shape[1] }}" height="{{ picture.shape[0] }}"
  alt="\u201c{{ phrase.text }}\u201d: {{ phrase_summary(phrase) }}">
{% if phrase.instances %}
<p>{{ numbered_html(phrase.instances|map(attribute="phrase")|list,
  phrase.instances|map(attribute="score")|list)|safe }}</p>
{% endif %}
{% if phrase.aligned and phrase.instances|selectattr("words")|list %}
<details><summary>Words of each object</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Words of each object"><table>
<thead><tr><th scope="col">object</th><th scope="col">score</th>
{% for word in phrase.text.split() %}
<th scope="col"><bdi>{{ word }}</bdi></th>
{% endfor %}
</tr></thead>
<tbody>
{% for instance in phrase.instances %}
{% if instance.words %}
<tr><th scope="row"><span class="chip" style="background: rgb{{ COLORS[loop.index0 % COLORS|length] }}"></span>
{{ loop.index }}</th><td>{{ "%.2f"|format(instance.score) }}</td>
{% set top = (instance.words|max) or 1.0 %}
{% for weight in instance.words %}
{% set percent = "%.0f"|format(45 * ([weight, 0.0]|max) / top) %}
<td style="background: rgb(0 114 178 / {{ percent }}%)">{{ "%.2f"|format(weight) }}</td>
{% endfor %}
</tr>
{% endif %}
{% endfor %}
</tbody></table></div></details>
{% endif %}
{% endif %}
</article>
{% endfor %}
</div>
""")


def answers_html(answer: ImageAnswer) -> str:
    """Return a card per phrase: the answer, the picture, and the words of each object."""
    return CARDS.render(
        answer=answer,
        phrase_summary=phrase_summary,
        phrase_html=phrase_html,
        numbered_html=numbered_html,
        data_uri=data_uri,
        ONE_OF_FEW=ONE_OF_FEW,
        COLORS=INSTANCE_COLORS,
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
    return f"{text}; {_encoding_summary(opened)}."


def time_summary(asked: Asked) -> str:
    """Return the time that an answer took, and whether the image was encoded for it."""
    parts = ", ".join(f"{name} {_format_seconds(seconds)}" for name, seconds in asked.answer.seconds.items())
    text = f"{counted(len(asked.answer), 'phrase')} in {_format_seconds(asked.seconds)} ({parts})"
    if asked.answer.num_cut:
        text += f"; {counted(asked.answer.num_cut, 'phrase')} too long for the model and truncated"
    return f"{text}; {_encoding_summary(asked.opened)}."


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
