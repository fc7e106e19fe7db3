"""The page of `refseg compare`: one HTML file without scripts, which asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.evaluation.compare import CLEARLY, Comparison, headline
from refseg.report.page import bullets, card, facts, figure, gallery, page, soft, table, titled_tables
from refseg.report.text import markup_text as _text
from refseg.visualization.overlay import (
    EMPTY_MASK,
    GROUND_TRUTH_COLOR,
    NOTHING_HERE,
    ORANGE,
    PURPLE,
    Color,
    mask_panel,
)

COLOURS: tuple[Color, Color] = (ORANGE, PURPLE)  # of A's and B's outlines


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
    """One expression. `image` (H, W, 3) uint8; where the file cannot be read it is grey, and `image_problem` why."""

    expression_id: str
    text: str
    skill: str
    image: np.ndarray
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
        "Breakdowns": titled_tables(
            {f"by {by}": group_lines(comparison, by, names) for by in comparison.breakdowns}, caption="percent"
        ),
        "Disagreements": _cases(comparison, names, cases),
    }
    return page(f"{names[0]} against {names[1]}", sections)


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


def _summary(comparison: Comparison, names: tuple[str, str], more: dict[str, str], notes: Sequence[str]) -> str:
    told = {
        "protocol": f"{comparison.protocol.name}: {comparison.protocol.title}",
        "expressions": f"{len(comparison.rows_a):,}",
        **more,
    }
    return f"{facts(told)}<p>{_text(tally_line(comparison, names))}.</p>{bullets(notes)}"


def _cases(comparison: Comparison, names: tuple[str, str], cases: Sequence[Disagreement]) -> str:
    differing = len(comparison.by_disagreement())
    if not differing:
        return soft(f"There is no expression on which the two differ in {comparison.what}.")
    intro = (
        f"{len(cases):,} of the {differing:,} expressions on which the two differ in {comparison.what}, the largest "
        "difference first. They are the extremes, so they say nothing about how often. Where there is no target, 1 is "
        "a right answer."
    )
    missing = [case for case in cases if case.image_problem]
    note = ""
    if missing:
        note = (
            f"<p><strong>{len(missing):,} of the images cannot be shown</strong>; their masks lie on grey. The first: "
            f"{_text(missing[0].image_problem)}</p>"
        )
    return soft(intro) + note + gallery((_card(case, names, comparison.what) for case in cases), wide=True)


def _card(case: Disagreement, names: tuple[str, str], what: str) -> str:
    figures = []
    for name, answer, colour in zip(names, case.answers, COLOURS, strict=True):
        picture = mask_panel(case.image, answer.mask, color=colour, rejected=answer.rejected, empty=EMPTY_MASK)
        figures.append(figure(picture, label=f"{name}: {what} {answer.worth:.2f}", alt=f"{name}: {answer.words}"))
    truth = mask_panel(case.image, case.truth, color=GROUND_TRUTH_COLOR)
    told = "Ground truth" if case.truth.any() else f"Ground truth: {NOTHING_HERE}"
    figures.append(figure(truth, label="Ground truth", alt=told))
    tags = [f"expression {case.expression_id}", *([f"skill: {case.skill}"] if case.skill else [])]
    if case.image_problem:
        tags.append("image missing")
    return card(phrase_html=_text(case.text), figures=figures, tags=" \u00b7 ".join(tags))
