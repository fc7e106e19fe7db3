"""The page of `refseg compare`: one HTML file without scripts, which asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.evaluation.compare import CLEARLY, Comparison, headline
from refseg.visualization.cases import data_uri
from refseg.visualization.overlay import (
    EMPTY_MASK,
    GROUND_TRUTH_COLOUR,
    NOTHING_HERE,
    ORANGE,
    PURPLE,
    Colour,
    mask_panel,
)
from refseg.visualization.report import page, table
from refseg.visualization.text import markup_text as _text

COLOURS: tuple[Colour, Colour] = (ORANGE, PURPLE)  # of A's and B's outlines
_BLANK = 205  # grey of a picture whose image is missing
# The report's style sheet knows two pictures a case; here there are three.
_WIDE = "grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr))"
_THREE = "grid-template-columns: repeat(3, minmax(0, 1fr))"


@dataclass(frozen=True)
class AnswerPicture:
    """`mask` (H, W) bool, raw; `rejected`: by the protocol's rule; `worth`: its IoU, by the protocol."""

    mask: np.ndarray
    rejected: bool
    worth: float

    @property
    def words(self) -> str:
        if self.rejected:
            return NOTHING_HERE
        return f"{self.mask.mean():.1%} of the image" if self.mask.any() else EMPTY_MASK


@dataclass(frozen=True)
class Disagreement:
    """One expression. `image` (H, W, 3) uint8, or None with the reason in `image_problem`."""

    expression_id: str
    text: str
    skill: str
    image: np.ndarray | None
    truth: np.ndarray
    answers: tuple[AnswerPicture, AnswerPicture]
    image_problem: str = ""


def render_comparison(
    comparison: Comparison,
    *,
    names: tuple[str, str],
    facts: dict[str, str],
    cases: Sequence[Disagreement],
    notes: Sequence[str] = (),
) -> str:
    """`facts`: data and files, by name. `notes`: what a reader must know to use the numbers."""
    sections = {
        "Summary": _summary(comparison, names, facts, notes),
        "Metrics": table(
            metric_lines(comparison, names), caption=f"Percent, by protocol {comparison.protocol.name}; {_HOW_SURE}"
        ),
        "Breakdowns": _breakdowns(comparison, names),
        "Disagreements": _cases(comparison, names, cases),
    }
    return page(f"{names[0]} against {names[1]}", {heading: html for heading, html in sections.items() if html})


_HOW_SURE = (
    "interval of 95 % of the difference from paired resampling of images, p from swapping the two within images; "
    "p is not corrected for the number of metrics"
)


COLUMNS = frozenset({"metric", "difference", "95 % interval", "p"})  # beside the two names


def metric_lines(comparison: Comparison, names: tuple[str, str]) -> list[dict[str, Any]]:
    """A line per metric, as text where a sign or a bracket is needed."""
    return [
        {
            "metric": name,
            names[0]: f"{result.a:.2f}",
            names[1]: f"{result.b:.2f}",
            "difference": f"{result.difference:+.2f}",
            "95 % interval": "-" if result.low is None else f"[{result.low:+.2f}, {result.high:+.2f}]",
            "p": f"{result.p_value:.4f}",
        }
        for name, result in comparison.metrics.items()
    ]


def group_lines(comparison: Comparison, by: str, names: tuple[str, str]) -> list[dict[str, Any]]:
    """A breakdown's lines, with the headline metrics of both."""
    chosen = headline(list(comparison.metrics))
    lines = []
    for line in comparison.breakdowns[by]:
        out = {by: line[by], "expressions": line["expressions"]}
        for metric in chosen:
            a, b = line.get(metric, (None, None))
            out[f"{metric} {names[0]}"] = "-" if a is None else f"{a:.2f}"
            out[f"{metric} {names[1]}"] = "-" if b is None else f"{b:.2f}"
            out[f"{metric} difference"] = "-" if a is None else f"{b - a:+.2f}"
        lines.append(out)
    return lines


def tally_line(comparison: Comparison, names: tuple[str, str]) -> str:
    tally = comparison.tally()
    return (
        f"{comparison.what} higher by {CLEARLY:g} or more: {names[0]} on {tally['a']:,} expressions, {names[1]} on "
        f"{tally['b']:,}, neither on {tally['neither']:,}"
    )


def _summary(comparison: Comparison, names: tuple[str, str], facts: dict[str, str], notes: Sequence[str]) -> str:
    told = {
        "protocol": f"{comparison.protocol.name}: {comparison.protocol.title}",
        "expressions": f"{len(comparison.rows_a):,}",
        **facts,
    }
    items = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in told.items())
    listed = "".join(f"<li>{_text(note)}</li>" for note in notes)
    told_besides = f'<ul class="soft">{listed}</ul>' if notes else ""
    return f'<dl class="facts">{items}</dl><p>{_text(tally_line(comparison, names))}.</p>{told_besides}'


def _breakdowns(comparison: Comparison, names: tuple[str, str]) -> str:
    tables = [
        f"<div><h3>by {_text(by)}</h3>{table(group_lines(comparison, by, names), caption='percent')}</div>"
        for by, lines in comparison.breakdowns.items()
        if lines
    ]
    return f'<div class="tables">{"".join(tables)}</div>' if tables else ""


def _cases(comparison: Comparison, names: tuple[str, str], cases: Sequence[Disagreement]) -> str:
    differing = len(comparison.by_disagreement())
    if not differing:
        return f'<p class="soft">There is no expression on which the two differ in {comparison.what}.</p>'
    intro = (
        f"{len(cases):,} of the {differing:,} expressions on which the two differ in {comparison.what}, the largest "
        "difference first. They are the extremes, so they say nothing about how often. Where there is no target, 1 is "
        "a right answer."
    )
    missing = [case for case in cases if case.image is None]
    note = ""
    if missing:
        note = (
            f"<p><strong>{len(missing):,} of the images cannot be shown</strong>; their masks lie on grey. The first: "
            f"{_text(missing[0].image_problem)}</p>"
        )
    cards = "".join(_card(case, names, comparison.what) for case in cases)
    return f'<p class="soft">{_text(intro)}</p>{note}<div class="cases" style="{_WIDE}">{cards}</div>'


def _card(case: Disagreement, names: tuple[str, str], what: str) -> str:
    height, width = case.truth.shape
    image = np.full((height, width, 3), _BLANK, np.uint8) if case.image is None else case.image
    figures = []
    for name, answer, colour in zip(names, case.answers, COLOURS, strict=True):
        picture = mask_panel(image, answer.mask, colour=colour, rejected=answer.rejected, empty=EMPTY_MASK)
        figures.append(_figure(picture, f"{name}: {what} {answer.worth:.2f}", f"{name}: {answer.words}"))
    truth = mask_panel(image, case.truth, colour=GROUND_TRUTH_COLOUR)
    figures.append(
        _figure(truth, "Ground truth", "Ground truth" if case.truth.any() else f"Ground truth: {NOTHING_HERE}")
    )
    tags = [f"expression {case.expression_id}", *([f"skill: {case.skill}"] if case.skill else [])]
    if case.image is None:
        tags.append("image missing")
    return (
        f'<article class="case"><p class="phrase">“<bdi>{_text(case.text)}</bdi>”</p>'
        f'<div class="pair" style="{_THREE}">{"".join(figures)}</div>'
        f'<p class="tags">{_text(" · ".join(tags))}</p></article>\n'
    )


def _figure(picture: np.ndarray, label: str, alt: str) -> str:
    height, width = picture.shape[:2]
    image = f'<img src="{data_uri(picture)}" width="{width}" height="{height}" alt="{_text(alt)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{_text(label)}</figcaption></figure>"
