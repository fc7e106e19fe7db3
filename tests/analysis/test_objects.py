"""Objects that answers hit, by hand on boxes of 10 x 10 pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refseg.analysis.objects import ObjectTable, covered
from refseg.datasets.annotations import open_annotations
from refseg.evaluation.prediction_file import Answer
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import TruthIndex, score_predictions
from refseg.instance import Instance

SIZE = (40, 40)
BOXES = ((0, 0), (20, 0), (0, 20), (20, 20))  # left, top


def rle(*boxes: tuple[int, int, int, int]) -> dict:
    pixels = np.zeros(SIZE, np.uint8, order="F")
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = 1
    return coco_mask.encode(pixels)


def boxes(*which: int, width: int = 10) -> dict:
    return rle(*((*BOXES[i], width, 10) for i in which))


def test_covered() -> None:
    """Half of an object is enough. A full mask hits every object but an empty one."""
    objects = [boxes(0), boxes(1), rle()]
    assert covered(rle((5, 0, 19, 10)), objects).tolist() == [True, False, False]
    assert covered(rle((0, 0, 40, 40)), objects).tolist() == [True, True, False]
    assert covered(rle(), objects).tolist() == [False] * 3 and covered(boxes(0), []).tolist() == []


@pytest.fixture
def truths(tmp_path: Path) -> TruthIndex:
    """One image with four objects. 'a' to 'f' refer to the first two, 'g' and 'h' to nothing, and 'z' to the others."""

    def row(name: str, targets: list[int]) -> dict:
        told = [{"size": list(SIZE), "counts": boxes(i)["counts"].decode()} for i in targets]
        return {
            "expression_id": name,
            "image": "a.png",
            "size": list(SIZE),
            "text": name,
            "targets": told or None,
            "instance_ids": targets,
        }

    lines = [*(row(name, [0, 1]) for name in "abcdef"), row("g", []), row("h", []), row("z", [2, 3])]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = open_annotations(format="jsonl", file=str(file))
    return TruthIndex(store, np.ones(store.num_expressions, bool), tmp_path)


def test_hits(truths: TruthIndex) -> None:
    """Seven expressions with targets hit all, some, one more, another only, none, nothing (rejected), and all of them.
    Two without targets hit one object and nothing."""
    answers = {
        "a": (boxes(0, 1), 0.0),
        "b": (boxes(1), 0.0),
        "c": (boxes(0, 1, 2), 0.0),
        "d": (boxes(3), 0.0),
        "e": (rle((12, 12, 5, 5)), 0.0),
        "f": (boxes(0, 1), 0.9),
        "g": (boxes(2), 0.1),
        "h": (rle(), 0.1),
        "z": (boxes(2, 3), 0.0),
    }
    table = ObjectTable(truths)
    rows = [Answer(name, mask, prob) for name, (mask, prob) in answers.items()]
    protocol = get_protocol("refseg")
    found = score_predictions(table.watch(rows), truths, [protocol]).rows["refseg"]
    hits = table.hits(found, protocol.no_target.rejected(found), protocol.worth_of(found))
    with_target, without = hits["with a target"], hits["without a target"]
    assert [line["expressions"] for line in with_target] == [2, 1, 1, 1, 1, 1]
    assert [line["worth"] for line in with_target] == pytest.approx([1.0, 0.5, 2 / 3, 0.0, 0.0, 0.0])
    assert [line["expressions"] for line in without] == [1, 0, 0, 1] and without[0]["percent"] == 50.0
    assert table.calibration() is None, "no answer has instances"


def test_instance_calibration(truths: TruthIndex) -> None:
    """Only one of two instances on a referent counts. `found_all` means both referents and nothing else."""

    def instance(box: int, score: float) -> Instance:
        return Instance(boxes(box), score)

    table = ObjectTable(truths)
    answers = {
        "a": [instance(0, 0.9), instance(0, 0.8), instance(1, 0.7)],
        "b": [instance(1, 0.6), instance(0, 0.5)],
        "g": [instance(0, 0.4)],  # no target: its score is not counted
    }
    rows = [Answer(name, boxes(0, 1), None, None, instances) for name, instances in answers.items()]
    again = Answer("a", boxes(0), None, None, [instance(3, 0.1)])
    assert list(table.watch([*rows, again])) == [*rows, again]
    assert sorted(zip(table.scores, table.matched, strict=True))[:3] == [(0.5, True), (0.6, True), (0.7, True)]
    assert sum(table.matched) == 4 and len(table.matched) == 5
    assert [bool(table.found_all[truths.position[name]]) for name in "ab"] == [False, True]
    found = table.calibration(num_bins=2)
    assert found["instances"] == 5 and found["matched"] == 4 and math.isclose(found["ECE"], abs(0.7 - 0.8))
    table.scores[0] = 7.0
    assert table.calibration() is None, "logits are no probabilities"
