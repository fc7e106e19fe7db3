"""Turn a prediction file into the data of a report: results by protocol, objects hit, calibration, and examples.

The file is read twice: once to measure every row, and once to fetch the few rows that are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from refseg.analysis.calibration import no_target_report
from refseg.analysis.objects import ObjectTable
from refseg.datasets.masks import decode
from refseg.evaluation import terms
from refseg.evaluation.alignment import align_predictions, alignment_scores
from refseg.evaluation.breakdowns import tag_columns, with_columns
from refseg.evaluation.measure import Truth
from refseg.evaluation.notes import header_line, notes_of
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import (
    Data,
    TruthIndex,
    answers_of,
    describe_predictions,
    result_of,
    score_predictions,
)
from refseg.evaluation.statistics import beats_chance
from refseg.instance import Instance
from refseg.records import Expression
from refseg.report.examples import Example, choose_examples, chosen_rows, image_or_gray, mask_at
from refseg.report.report import Report
from refseg.visualization.overlay import Display, fit_for_display

BY = ("skill", "length", "targets", "size")
RESAMPLES = 1000
PER_GROUP = 12  # examples
REDUCED = Display(0, 320)  # the largest pictures that a page needs; small images are not enlarged


@dataclass(frozen=True)
class Settings:
    """Settings of `score_run`.

    Args:
        protocols: Protocols to score by. The first one is the headline.
        groups: Breakdowns.
        per_group: Number of examples in each group.
        resamples: Number of resamples of images, for intervals.
        min_score: As `refseg score --min-score`.
        allow_partial: As `refseg score --allow-partial`.
        absent_is_nothing: As `refseg score --absent-is-nothing`.
    """

    protocols: Sequence[Protocol]
    groups: Sequence[str] = BY
    per_group: int = PER_GROUP
    resamples: int = RESAMPLES
    min_score: float | None = None
    allow_partial: bool = False
    absent_is_nothing: bool = False


@dataclass(frozen=True)
class Scored:
    """Data of one prediction file. The fields are those of `Report`; `summary` names the data and the file's origin."""

    summary: dict[str, str]
    results: list[dict[str, Any]]
    no_target: dict[str, Any]
    hits: dict[str, list[dict[str, Any]]]
    instances: dict[str, Any] | None
    cases: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, *, title: str, summary: dict[str, str], **more: Any) -> Report:
        """Return the report, with more facts in its summary and more parts."""
        parts = {name: getattr(self, name) for name in ("results", "no_target", "hits", "instances", "cases", "notes")}
        return Report(title=title, summary={**self.summary, **summary}, **parts, **more)


def score_run(path: str | Path, data: Data, settings: Settings) -> Scored:
    """Score a prediction file on its data and collect what a report shows.

    Args:
        path: Prediction file, of any kind that `refseg score` reads.
        data: The data that the predictions answer.
        settings: Protocols, breakdowns and numbers of examples.
    """
    truths, first = data.truths, settings.protocols[0]
    columns = tag_columns(truths, settings.groups)
    description = describe_predictions(Path(path), min_score=settings.min_score)
    objects = ObjectTable(truths)
    with tqdm(total=2 * len(truths), unit=" rows", desc="report", mininterval=0.5, dynamic_ncols=True) as bar:

        def rows() -> Iterator[Answer]:
            for row in answers_of(
                path, truths, min_score=settings.min_score, absent_is_nothing=settings.absent_is_nothing
            ):
                yield row
                bar.update()

        # First pass: measure every row
        scores = score_predictions(
            objects.watch(rows()), truths, settings.protocols, allow_partial=settings.allow_partial
        )
        scores = replace(scores, rows={name: with_columns(r, truths, columns) for name, r in scores.rows.items()})
        results = [
            result_of(p, scores.rows[p.name], scores.counts[p.name], settings.resamples, settings.groups)
            for p in settings.protocols
        ]
        # Second pass: fetch the examples
        first_rows = scores.rows[first.name]
        cases, problems = make_examples(rows, truths, first_rows, first, objects, settings.per_group)
        bar.update(bar.total - bar.n)
    if any(one.words for case in cases for one in case.instances):
        cases, word_notes = keep_measured_words(cases, rows(), truths)
        problems += word_notes
    # Facts about the data and the file
    described, counts = data.describe(), scores.counts[first.name]
    summary = {
        "data set": "/".join(Path(described["set"]).parts[-2:]),
        "split": ", ".join(described["split"] or ["all"]),
        "expressions": f"{counts.scored:,} of {counts.expected:,}, of {described['images']:,} images",
        "predictions": description["file"],
    }
    if description["header"]:
        summary["made with"] = header_line(description["header"])
    return Scored(
        summary=summary,
        results=results,
        no_target=no_target_report(first_rows, first),
        hits=objects.hits(first_rows, first.no_target.rejected(first_rows), first.worth_of(first_rows)),
        instances=objects.calibration(),
        cases=cases,
        notes=[*notes_of(settings.protocols, scores, description, min_score=settings.min_score), *problems],
    )


# Examples -------------------------------------------------------------------------------------------------------------


def make_examples(
    rows: Callable[[], Iterable[Answer]],
    truths: TruthIndex,
    scored: Rows,
    protocol: Protocol,
    objects: ObjectTable,
    per_group: int,
) -> tuple[list[Example], list[str]]:
    """Make the examples, small enough to be kept in memory, and notes on images that cannot be shown.

    Answers without a mask are skipped.
    """
    # IoU by the protocol's rules; of masks if the protocol is about boxes
    if protocol.view.boxes is None:
        ious = protocol.worth_of(scored)
    else:
        ious = terms.worth(scored, protocol.no_target.rejected(scored), empties=True)
    # Choice of the rows
    positions = np.array([truths.position[name] for name in scored.expression_id], np.int64)
    choices = choose_examples(
        [
            {
                "expression_id": str(name),
                "iou": float(iou),
                "no_target": bool(num_targets == 0),
                "rejected": bool(rejected),
                "several": bool(num_targets > 1),
                "found_all": bool(objects.found_all[position]),
            }
            for name, iou, num_targets, rejected, position in zip(
                scored.expression_id,
                ious,
                scored.num_targets,
                protocol.no_target.rejected(scored),
                positions,
                strict=True,
            )
            if objects.seen[position]
        ],
        per_group=per_group,
        found_all=(lambda row: row["found_all"] and not row["rejected"]) if objects.tells_instances else None,
    )
    # Their rows, in a second pass over the file
    chosen = [(group, choice) for group, members in choices.items() for choice in members]
    answers = chosen_rows(rows(), {choice["expression_id"] for _, choice in chosen})
    cases, problems = [], []
    view = View(crowds=protocol.view.crowds)
    for group, choice in chosen:
        position = truths.position[choice["expression_id"]]
        answer = answers[choice["expression_id"]]
        case, problem = make_example(answer, truths.truth(position), truths.expression(position), view, choice, group)
        cases.append(case)
        problems += [problem] if problem else []
    if problems:
        problems = [f"{len(problems):,} of the images of examples cannot be shown, the first: {problems[0]}"]
    return cases, problems


def keep_measured_words(
    cases: list[Example], rows: Iterable[Answer], truths: TruthIndex
) -> tuple[list[Example], list[str]]:
    """Return the examples, without the instances' words unless these point better than chance, and a note."""
    scores = alignment_scores(align_predictions(rows, truths))
    if beats_chance(scores):
        return cases, []
    cases = [replace(case, instances=[replace(one, words=None) for one in case.instances]) for case in cases]
    if not scores["matched"]:
        return cases, ["The words of instances are not shown: the data does not say which words are right."]
    pointing, chance = scores["pointing"], scores["pointing_chance"]
    return cases, [
        "The words of instances are not shown: their alignment does not beat chance (the top word is right for "
        f"{pointing:.1f} % of the instances, by chance for {chance:.1f} %)."
    ]


def make_example(
    row: Answer, truth: Truth, expression: Expression, view: View, choice: Mapping[str, Any], group: str
) -> tuple[Example, str]:
    """Make one example, reduced to a thumbnail. Also return the reason if its image is gray, or ""."""
    size = truth.record.size
    image, problem = image_or_gray(truth.record.image_path, size)
    instances = [one for one in row.raw_instances or () if tuple(one.rle["size"]) == tuple(size)]
    masks = [mask_at(row.raw_rle, size), decode(truth.mask(expression, view, size))]
    masks += [one.mask for one in instances]
    image, small = fit_for_display(image, np.stack(masks), REDUCED)
    num_words = len(expression.text.split())
    weights = [one.words if one.words and len(one.words) == num_words else None for one in instances]
    case = Example(
        image=image,
        text=expression.text,
        predicted=small[0],
        ground_truth=small[1],
        iou=choice["iou"],
        rejected=choice["rejected"],
        expression_id=choice["expression_id"],
        tags={"skill": expression.tags["skill"]} if expression.tags.get("skill") else {},
        group=group,
        instances=[
            Instance(mask, one.score, words) for mask, one, words in zip(small[2:], instances, weights, strict=True)
        ],
    )
    return case, problem
