"""Phrases in HTML, as text in any script: what `glosses` says of words, for the report and the web page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from refseg.report.text import markup_text as _text
from refseg.visualization.instances import INSTANCE_COLORS
from refseg.visualization.word_bars import Owners, bars, numbers


def phrase_html(text: str, owners: Sequence[Owners]) -> str:
    """The phrase; a word that belongs to instances stands on a bar for each. Neighbours that belong to the same are one
    run, with the numbers below its first word. Bars and numbers are for eyes: `numbered` says the same."""
    if not any(owners):
        return _text(text)
    runs = []
    for owned, pairs in groupby(zip(owners, text.split(), strict=True), key=itemgetter(0)):
        words = [_text(word) for _, word in pairs]
        if owned:
            words = [_word(word, owned, first=i == 0, last=i == len(words) - 1) for i, word in enumerate(words)]
        runs.append(f'<span class="run">{" ".join(words)}</span>' if owned else " ".join(words))
    return " ".join(runs)


def _word(word: str, owners: Owners, *, first: bool, last: bool) -> str:
    lines = "".join(f'<i class="bar hue-{colour}"></i>' for colour in bars(owners, len(INSTANCE_COLORS)))
    label = _text(numbers(owners)) if first else ""
    gloss = f'<span aria-hidden="true">{lines}<small>{label}</small></span>'
    return f'<span class="word{"" if last else " joined"}">{word}{gloss}</span>'


def numbered(phrases: Sequence[str], scores: Sequence[float]) -> str:
    """Such as "1: red star (0.93) · 2: blue circle (0.88)"; an instance without words has its number alone."""
    pairs = enumerate(zip(phrases, scores, strict=True), start=1)
    return " \u00b7 ".join(
        f"{number}{': ' if phrase else ''}{phrase} ({score:.2f})" for number, (phrase, score) in pairs
    )


def numbered_html(phrases: Sequence[str], scores: Sequence[float]) -> str:
    return numbered([f"<bdi>{_text(phrase)}</bdi>" if phrase else "" for phrase in phrases], scores)


def phrase_style(scope: str = "") -> str:
    """The style sheet's part for `phrase_html`, of what is below a selector. `--rim` is the colour around bars."""
    hues = "\n".join(f"{scope} .hue-{k} {{ background: rgb{colour}; }}" for k, colour in enumerate(INSTANCE_COLORS))
    return f"""
{scope} .run, {scope} .word {{ display: inline-block; vertical-align: top; max-width: 100%; }}
{scope} .bar {{ display: block; height: 7px; margin-bottom: 1px; border: solid var(--rim); border-width: 1px 0; }}
{scope} .joined .bar {{ margin-inline-end: -.4em; }}
{scope} .word small {{ display: block; min-height: 1.25em; font-size: .75rem; font-weight: 400; line-height: 1.25;
  white-space: nowrap; user-select: none; }}
{hues}
"""
