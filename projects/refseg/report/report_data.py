"""Turn a prediction file into a report: results by protocol, objects hit, calibration, and examples.

The file is read twice: once to measure every row, and once to fetch the few rows that are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refseg.analysis.calibration import no_target_report
from refseg.analysis.objects import ObjectTable
from refseg.datasets.masks import decode
from refseg.evaluation import terms
from refseg.evaluation.alignment import align_predictions, alignment_scores
from refseg.evaluation.breakdowns import tag_columns, with_columns
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
from refseg.report.examples import (
    RIGHT_IOU,
    Candidate,
    Example,
    choose_examples,
    chosen_rows,
    image_or_gray,
    mask_at,
)
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


def score_run(path: str | Path, data: Data, settings: Settings) -> Report:
    """Score a prediction file on its data and return a report without a title, curves, and other facts about the run.

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
    # Third pass, over the instances' words: they are shown only if they point better than chance
    if any(one.words for case in cases for one in case.instances):
        alignment = alignment_scores(align_predictions(rows(), truths))
        if not beats_chance(alignment):
            cases = [replace(case, instances=[replace(one, words=None) for one in case.instances]) for case in cases]
            reason = "the data does not say which words are right."
            if alignment["matched"]:
                reason = (
                    f"their alignment does not beat chance (the top word is right for {alignment['pointing']:.1f} % of "
                    f"the instances, by chance for {alignment['pointing_chance']:.1f} %)."
                )
            problems.append(f"The words of instances are not shown: {reason}")
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
    return Report(
        summary=summary,
        results=results,
        no_target=no_target_report(first_rows, first),
        hits=objects.hits(first_rows, first.no_target.rejected(first_rows), first.worth_of(first_rows)),
        instances=objects.calibration(),
        cases=cases,
        notes=[*notes_of(settings.protocols, scores, description, min_score=settings.min_score), *problems],
    )


def make_examples(
    rows: Callable[[], Iterable[Answer]],
    truths: TruthIndex,
    scored: Rows,
    protocol: Protocol,
    objects: ObjectTable,
    per_group: int,
) -> tuple[list[Example], list[str]]:
    """Make the examples, as thumbnails to be kept in memory, and a note on images that cannot be shown.

    Answers without a mask are skipped.
    """
    # IoU by the protocol's rules; of masks if the protocol is about boxes
    rejected = protocol.no_target.rejected(scored)
    scores_masks = protocol.view.boxes is None and protocol.view.instances is None
    ious = protocol.worth_of(scored) if scores_masks else terms.worth(scored, rejected, empties=True)
    # Choice of the expressions
    candidates = []
    for i, name in enumerate(scored.expression_id):
        position = truths.position[name]
        if objects.seen[position]:
            found_all = objects.found_all[position] if objects.tells_instances else ious[i] >= RIGHT_IOU
            candidates.append(
                Candidate(
                    expression_id=str(name),
                    iou=float(ious[i]),
                    no_target=bool(scored.num_targets[i] == 0),
                    rejected=bool(rejected[i]),
                    several=bool(scored.num_targets[i] > 1),
                    found_all=bool(found_all and not rejected[i]),
                )
            )
    choices = choose_examples(candidates, per_group=per_group)
    # Their rows, in a second pass over the file
    answers = chosen_rows(rows(), {one.expression_id for members in choices.values() for one in members})
    cases, problems = [], []
    view = View(crowds=protocol.view.crowds)
    for group, members in choices.items():
        for choice in members:
            answer, position = answers[choice.expression_id], truths.position[choice.expression_id]
            truth, expression = truths.truth(position), truths.expression(position)
            size = truth.record.size
            image, problem = image_or_gray(truth.record.image_path, size)
            problems += [problem] if problem else []
            # All masks, reduced together with the image. Weights that do not fit the words are left out.
            instances = [one for one in answer.raw_instances or () if tuple(one.rle["size"]) == tuple(size)]
            masks = [mask_at(answer.raw_rle, size), decode(truth.mask(expression, view, size))]
            image, small = fit_for_display(image, np.stack([*masks, *(one.mask for one in instances)]), REDUCED)
            num_words = len(expression.text.split())
            case = Example(
                image=image,
                text=expression.text,
                predicted=small[0],
                ground_truth=small[1],
                iou=choice.iou,
                rejected=choice.rejected,
                expression_id=choice.expression_id,
                tags={"skill": expression.tags["skill"]} if expression.tags.get("skill") else {},
                group=group,
                instances=[
                    Instance(mask, one.score, one.words if one.words and len(one.words) == num_words else None)
                    for mask, one in zip(small[2:], instances, strict=True)
                ],
            )
            cases.append(case)
    if problems:
        problems = [f"{len(problems):,} of the images of examples cannot be shown, the first: {problems[0]}"]
    return cases, problems
