"""A prediction file -> what the report of a run says of it: results by protocol, what answers hit, calibration, and
cases to look at.

Two passes over the file: one measures every row, one fetches the few that are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

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
from refseg.evaluation.prediction_file import PredictionRow
from refseg.evaluation.protocols import Protocol, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import (
    Data,
    ScoreResult,
    TruthIndex,
    answers_of,
    describe_predictions,
    result_of,
    score_predictions,
)
from refseg.evaluation.statistics import beats_chance
from refseg.instance import Instance
from refseg.records import Expression
from refseg.report.examples import Example, choose_examples
from refseg.report.report import Report
from refseg.report.rows import chosen_rows, image_or_grey, mask_at
from refseg.visualization.overlay import Display, fit_for_display

BY = ("skill", "length", "targets", "size")
RESAMPLES = 1000
PER_GROUP = 12  # cases
REDUCED = Display(0, 320)  # as large as pictures of a page can need, and no enlarging before them

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """`groups`: ways to break down. `per_group`: cases of each sort."""

    protocols: Sequence[Protocol]
    groups: Sequence[str] = BY
    per_group: int = PER_GROUP
    resamples: int = RESAMPLES
    min_score: float | None = None
    allow_partial: bool = False
    absent_is_nothing: bool = False


@dataclass(frozen=True)
class Scored:
    """Of one prediction file; the fields are those of `Report`. `summary` names the data and what made the file."""

    summary: dict[str, str]
    results: list[dict[str, Any]]
    no_target: dict[str, Any]
    hits: dict[str, list[dict[str, Any]]]
    instances: dict[str, Any] | None
    cases: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, *, title: str, summary: dict[str, str], **more: Any) -> Report:
        """With more facts, and what else a report has."""
        parts = {name: getattr(self, name) for name in ("results", "no_target", "hits", "instances", "cases", "notes")}
        return Report(title=title, summary={**self.summary, **summary}, **parts, **more)


def score_run(path: str | Path, data: Data, settings: Settings) -> Scored:
    columns = tag_columns(data.truths, settings.groups)
    told = describe_predictions(Path(path), min_score=settings.min_score)
    objects = ObjectTable(data.truths)
    first = settings.protocols[0]
    with tqdm(total=2 * len(data.truths), unit=" rows", desc="report", mininterval=0.5, dynamic_ncols=True) as bar:

        def rows() -> Iterator[PredictionRow]:
            answers = answers_of(
                path, data.truths, min_score=settings.min_score, absent_is_nothing=settings.absent_is_nothing
            )
            return _counted(answers, bar)

        found = score_predictions(
            objects.watch(rows()), data.truths, settings.protocols, allow_partial=settings.allow_partial
        )
        found = replace(found, rows={name: with_columns(r, data.truths, columns) for name, r in found.rows.items()})
        results = [
            result_of(p, found.rows[p.name], found.counts[p.name], settings.resamples, settings.groups)
            for p in settings.protocols
        ]
        cases, problems = make_cases(rows, data.truths, found.rows[first.name], first, objects, settings.per_group)
        bar.update(bar.total - bar.n)
    if any(one.words for case in cases for one in case.instances):
        cases, said = keep_measured_words(cases, rows(), data.truths)
        problems += said
    rows_of_first = found.rows[first.name]
    rejected = first.no_target.rejected(rows_of_first)
    return Scored(
        summary=_summary(data, told, found, first),
        results=results,
        no_target=no_target_report(rows_of_first, first),
        hits=objects.hits(rows_of_first, rejected, first.worth_of(rows_of_first)),
        instances=objects.calibration(),
        cases=cases,
        notes=[*notes_of(settings.protocols, found, told, min_score=settings.min_score), *problems],
    )


def _counted(items: Iterable[T], bar: tqdm) -> Iterator[T]:
    for item in items:
        yield item
        bar.update()


def _summary(data: Data, told: dict[str, Any], found: ScoreResult, protocol: Protocol) -> dict[str, str]:
    described, counts = data.describe(), found.counts[protocol.name]
    summary = {
        "data set": "/".join(Path(described["set"]).parts[-2:]),
        "split": ", ".join(described["split"] or ["all"]),
        "expressions": f"{counts.scored:,} of {counts.expected:,}, of {described['images']:,} images",
        "predictions": told["file"],
    }
    return summary | ({"made with": header_line(told["header"])} if told["header"] else {})


# Cases ----------------------------------------------------------------------------------------------------------------


def make_cases(
    rows: Callable[[], Iterable[PredictionRow]],
    truths: TruthIndex,
    scored: Rows,
    protocol: Protocol,
    objects: ObjectTable,
    per_group: int,
) -> tuple[list[Example], list[str]]:
    """The best, the worst, random and no-target expressions and such with several targets, small enough to be kept;
    and what to tell of images that cannot be shown. Answers without a mask are no cases."""
    place = np.array([truths.position[name] for name in scored.expression_id], np.int64)
    choices = choose_examples(
        [
            {
                "expression_id": str(name),
                "iou": float(iou),
                "no_target": bool(num_targets == 0),
                "rejected": bool(refused),
                "several": bool(num_targets > 1),
                "found_all": bool(objects.found_all[at]),
            }
            for name, iou, num_targets, refused, at in zip(
                scored.expression_id,
                iou_of_answers(scored, protocol),
                scored.num_targets,
                protocol.no_target.rejected(scored),
                place,
                strict=True,
            )
            if objects.seen[at]
        ],
        per_group=per_group,
        found_all=(lambda row: row["found_all"] and not row["rejected"]) if objects.tells_instances else None,
    )
    chosen = [(group, choice) for group, members in choices.items() for choice in members]
    answers = chosen_rows(rows(), {choice["expression_id"] for _, choice in chosen})
    cases, problems = [], []
    for group, choice in chosen:
        position = truths.position[choice["expression_id"]]
        answer = answers[choice["expression_id"]]
        view = View(crowds=protocol.view.crowds)
        case, problem = make_case(answer, truths.truth(position), truths.expression(position), view, choice, group)
        cases.append(case)
        problems += [problem] if problem else []
    if problems:
        problems = [f"{len(problems):,} of the images of cases cannot be shown, the first: {problems[0]}"]
    return cases, problems


def keep_measured_words(
    cases: list[Example], rows: Iterable[PredictionRow], truths: TruthIndex
) -> tuple[list[Example], list[str]]:
    """Return the cases, without the instances' words unless these point better than chance, and a note."""
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


def iou_of_answers(scored: Rows, protocol: Protocol) -> np.ndarray:
    """(R,) by the protocol's rules; where these are of boxes, the IoU of masks."""
    if protocol.view.boxes is None:
        return protocol.worth_of(scored)
    return terms.worth(scored, protocol.no_target.rejected(scored), empties=True)


def make_case(
    row: PredictionRow, truth: Truth, expression: Expression, view: View, choice: Mapping[str, Any], group: str
) -> tuple[Example, str]:
    """The case, reduced to a thumbnail, and why its image is grey, if it is."""
    size = truth.record.size
    image, problem = image_or_grey(truth.record.image_path, size)
    instances = [one for one in row.instances or () if tuple(one.rle["size"]) == tuple(size)]
    masks = [mask_at(row.mask, size), decode(truth.mask(expression, view, size))]
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
