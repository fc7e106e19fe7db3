"""The page of `refseg compare`. This module prepares the data; `templates/compare.html` lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from refseg.datasets.masks import decode
from refseg.evaluation.compare import CLEARLY, Comparison, headline
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.protocols import View
from refseg.evaluation.scorer import TruthIndex
from refseg.report.examples import chosen_rows, image_or_gray, mask_at
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
# Titles of columns and facts that stand beside the two names
COLUMNS = frozenset({"metric", "difference", "95 % interval", "p", "data", "protocol", "expressions"})


def render_comparison(
    comparison: Comparison,
    *,
    names: tuple[str, str],
    facts: dict[str, str],
    cards: Sequence[dict[str, Any]],
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Render the comparison as one HTML page.

    Args:
        comparison: The measured comparison.
        names: Names of the two models.
        facts: Data and files, by name.
        cards: Expressions to show, as `disagreement_cards` returns them.
        problems: Reasons why images of the cards cannot be read.
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
        problems=problems,
        cards=cards,
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


def disagreement_cards(
    comparison: Comparison,
    truths: TruthIndex,
    rows: Sequence[Iterable[Answer]],
    *,
    names: tuple[str, str],
    limit: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a card for each of the largest disagreements, and the reasons why images cannot be read.

    A card has the phrase, both answers beside the ground truth, and tags. Images that cannot be read are gray.

    Args:
        comparison: The measured comparison.
        truths: Ground truth of the expressions.
        rows: All rows of A and all rows of B, in a second pass over the files.
        names: Names of the two models.
        limit: Maximum number of cards.
    """
    order = comparison.by_disagreement()[:limit]
    ids = [str(comparison.rows_a.expression_id[i]) for i in order]
    protocol, worth = comparison.protocol, (comparison.worth_a, comparison.worth_b)
    rejected = [protocol.no_target.rejected(scored) for scored in (comparison.rows_a, comparison.rows_b)]
    answers = [chosen_rows(of_file, set(ids)) for of_file in rows]
    cards, problems = [], []
    for i, expression_id in zip(order, ids, strict=True):
        position = truths.position[expression_id]
        expression, truth = truths.expression(position), truths.truth(position)
        size = truth.record.size
        image, problem = image_or_gray(truth.record.image_path, size)
        # Both answers
        pictures = []
        for k, color in enumerate(COLORS):
            mask, nothing = mask_at(answers[k][expression_id].raw_rle, size), bool(rejected[k][i])
            picture = mask_panel(image, mask, color=color, rejected=nothing, empty=EMPTY_MASK)
            words = f"{mask.mean():.1%} of the image" if mask.any() else EMPTY_MASK
            label = f"{names[k]}: {comparison.what} {worth[k][i]:.2f}"
            pictures.append(figure_of(picture, label=label, alt=f"{names[k]}: {NOTHING_HERE if nothing else words}"))
        # The ground truth
        target = decode(truth.mask(expression, View(crowds=protocol.view.crowds), size))
        alt = "Ground truth" if target.any() else f"Ground truth: {NOTHING_HERE}"
        picture = mask_panel(image, target, color=GROUND_TRUTH_COLOR)
        pictures.append(figure_of(picture, label="Ground truth", alt=alt))
        tags = [f"expression {expression_id}"]
        tags += [f"skill: {expression.tags['skill']}"] if expression.tags.get("skill") else []
        tags += ["image missing"] if problem else []
        problems += [problem] if problem else []
        cards.append({"phrase": expression.text, "pictures": pictures, "tags": " \u00b7 ".join(tags)})
    return cards, problems
