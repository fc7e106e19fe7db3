"""The page of `refseg compare`. This module prepares the data; `templates/compare.html` lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.evaluation.compare import CLEARLY, Comparison, headline
from refseg.report.page import figure_of, render
from refseg.visualization.overlay import (
    EMPTY_MASK,
    GROUND_TRUTH_COLOR,
    NOTHING_HERE,
    ORANGE,
    PURPLE,
    Color,
    mask_panel,
)

COLORS: tuple[Color, Color] = (ORANGE, PURPLE)  # of A's and B's outlines
COLUMNS = frozenset({"metric", "difference", "95 % interval", "p"})  # of `metric_lines`, beside the two names


@dataclass(frozen=True)
class AnswerPicture:
    """One answer.

    Args:
        mask: (H, W) bool, as predicted.
        rejected: The model answers "nothing here", by the protocol's rules.
        worth: The IoU, by the protocol's rules.
    """

    mask: np.ndarray
    rejected: bool
    worth: float


@dataclass(frozen=True)
class Disagreement:
    """One expression with two answers.

    Args:
        expression_id: Name of the expression in its data set.
        text: The expression.
        skill: Its tag `skill`, or "".
        image: (H, W, 3) uint8. It is gray if the file cannot be read.
        truth: (H, W) bool: the merged mask of the referents.
        answers: The answers of A and B.
        image_problem: Reason why the image cannot be read.
    """

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
    """Render the comparison as one HTML page.

    Args:
        comparison: The measured comparison.
        names: Names of the two models.
        facts: Data and files, by name.
        cases: Expressions to show, the largest difference first.
        notes: Facts that a reader must know to use the numbers.
    """
    protocol = comparison.protocol
    counted = {"protocol": f"{protocol.name}: {protocol.title}", "expressions": f"{len(comparison.rows_a):,}"}
    return render(
        "compare.html",
        title=f"{names[0]} against {names[1]}",
        facts=counted | facts,
        tally=tally_line(comparison, names),
        notes=notes,
        protocol=protocol.name,
        metrics=metric_lines(comparison, names),
        breakdowns={f"by {by}": group_lines(comparison, by, names) for by in comparison.breakdowns},
        measure=comparison.what,
        num_differing=len(comparison.by_disagreement()),
        problems=[case.image_problem for case in cases if case.image_problem],
        cards=[_card(case, names, comparison.what) for case in cases],
    )


def metric_lines(comparison: Comparison, names: tuple[str, str]) -> list[dict[str, Any]]:
    """Return one line per metric. Numbers are text, because some need a sign or brackets."""
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
    """Return the lines of a breakdown, with the headline metrics of both models."""
    lines = []
    for line in comparison.breakdowns[by]:
        out = {by: line[by], "expressions": line["expressions"]}
        for metric in headline(list(comparison.metrics)):
            a, b = line.get(metric, (None, None))
            out[f"{metric} {names[0]}"] = "-" if a is None else f"{a:.2f}"
            out[f"{metric} {names[1]}"] = "-" if b is None else f"{b:.2f}"
            out[f"{metric} difference"] = "-" if a is None else f"{b - a:+.2f}"
        lines.append(out)
    return lines


def tally_line(comparison: Comparison, names: tuple[str, str]) -> str:
    """Count the expressions on which each model is clearly better."""
    tally = comparison.tally()
    return (
        f"{comparison.what} higher by {CLEARLY:g} or more: {names[0]} on {tally['a']:,} expressions, {names[1]} on "
        f"{tally['b']:,}, neither on {tally['neither']:,}"
    )


def _card(case: Disagreement, names: tuple[str, str], measure: str) -> dict[str, Any]:
    """Return the contents of one card: the phrase, both answers beside the ground truth, and tags."""
    pictures = []
    for name, answer, color in zip(names, case.answers, COLORS, strict=True):
        picture = mask_panel(case.image, answer.mask, color=color, rejected=answer.rejected, empty=EMPTY_MASK)
        words = f"{answer.mask.mean():.1%} of the image" if answer.mask.any() else EMPTY_MASK
        alt = f"{name}: {NOTHING_HERE if answer.rejected else words}"
        pictures.append(figure_of(picture, label=f"{name}: {measure} {answer.worth:.2f}", alt=alt))
    truth = mask_panel(case.image, case.truth, color=GROUND_TRUTH_COLOR)
    alt = "Ground truth" if case.truth.any() else f"Ground truth: {NOTHING_HERE}"
    pictures.append(figure_of(truth, label="Ground truth", alt=alt))
    tags = [f"expression {case.expression_id}"]
    tags += [f"skill: {case.skill}"] if case.skill else []
    tags += ["image missing"] if case.image_problem else []
    return {"phrase": case.text, "pictures": pictures, "tags": " \u00b7 ".join(tags)}
