"""The golden numbers: five samples on a 10 x 10 grid, boxes as (x, y, width, height).

1. P 0,0,5,4  G 1,0,5,4               I 16  U 24
2. P 0,0,4,5  G 0,0,2,10  rejected    I 10  U 30
3. P 0,0,5,1  no target   rejected
4. P 0,0,4,2  no target
5. P = G = 2,2,5,5                    I 25  U 25
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from refseg.errors import ConfigError, UsageError
from refseg.evaluation.overlap import areas_of_rles, box_iou, match_boxes
from refseg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from refseg.evaluation.rows import Row, Rows

SAMPLES = {
    1: ((0, 0, 5, 4), (1, 0, 5, 4), False),
    2: ((0, 0, 4, 5), (0, 0, 2, 10), True),
    3: ((0, 0, 5, 1), None, True),
    4: ((0, 0, 4, 2), None, False),
    5: ((2, 2, 5, 5), (2, 2, 5, 5), False),
}


def rle(box: tuple[int, int, int, int] | None) -> dict:
    pixels = np.zeros((10, 10), np.uint8, order="F")
    if box is not None:
        x, y, width, height = box
        pixels[y : y + height, x : x + width] = 1
    return coco_mask.encode(pixels)


def row(number: int, **changes: object) -> Row:
    predicted, target, rejected = SAMPLES[number]
    areas = areas_of_rles(rle(predicted), rle(target))
    fields = dict(
        expression_id=str(number), image_id=str(number), object_id="o", intersection=areas.intersection,
        predicted=areas.predicted, target=areas.target, has_target=target is not None,
        no_target_prob=0.9 if rejected else 0.1, num_targets=int(target is not None), num_words=2,
        target_area=areas.target, image_area=100,
    )  # fmt: skip
    return Row(**{**fields, **changes})


GOLDEN = Rows.of(row(number) for number in SAMPLES)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # IoU 2/3, 0, 1, 0, 1. Intersections 16 + 25; unions 24 + 30 (raw) + 0 + 8 + 25 = 87.
        ("gres", {"gIoU": 53.3333, "cIoU": 47.1264, "T-acc": 66.6667, "N-acc": 50, "Pr@0.7": 33.3333,
                  "Pr@0.8": 33.3333, "Pr@0.9": 33.3333}),
        # The emptied mask of sample 2 leaves its target's 20 pixels: 77.
        ("deris", {"gIoU": 53.3333, "cIoU": 53.2468, "T-acc": 66.6667, "N-acc": 50}),
        # Sample 2 is scored as it is: IoU 2/3, 1/3, 1, 0, 1, and (16 + 10 + 25) / 87.
        ("gsva", {"gIoU": 60.0, "cIoU": 58.6207, "T-acc": 66.6667, "N-acc": 50}),
        # The 8 pixels of sample 4, which is no-target and accepted, are in no union: 51 / 79.
        ("gsva-refzom", {"gIoU": 60.0, "cIoU": 64.5570, "T-acc": 66.6667, "N-acc": 50}),
        # Not one pixel: neither 3 nor 4. IoU 2/3, 1/3, 1; 51 / 79.
        ("refzom", {"mIoU": 66.6667, "oIoU": 64.5570, "Acc": 0.0}),
        # IoU 2/3, 0, 1; 41 / (24 + 20 + 25).
        ("refzom-score", {"mIoU": 55.5556, "oIoU": 59.4203, "Acc": 50.0}),
        # As DeRIS in gIoU and cIoU; oIoU and mIoU over the three with a target.
        ("refseg", {"gIoU": 53.3333, "cIoU": 53.2468, "oIoU": 59.4203, "mIoU": 55.5556, "Pr@0.5": 66.6667,
                    "N-acc": 50, "T-acc": 66.6667}),
        # All five as they are: IoU 2/3, 1/3, 0, 0, 1; 51 / (24 + 30 + 5 + 8 + 25).
        ("lavt", {"oIoU": 55.4348, "mIoU": 40.0, "Pr@0.5": 40.0, "Pr@0.7": 20.0}),
    ],
)  # fmt: skip
def test_golden_numbers(protocol: str, expected: dict[str, float]) -> None:
    scores = get_protocol(protocol).score(GOLDEN)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=5e-5), name


def test_golden_numbers_of_r_refcoco() -> None:
    """Objects {1, 3, 4} and {5, 3}, by DeRIS's rule: 3 is rejected, so its mask is empty. mIoU (2/3 + 1) / 2; oIoU
    41 / 49; mRR (1/2 + 1) / 2; rIoU (16 / (24 + 8) + 1) / 2."""
    groups = [(1, "a"), (3, "a"), (4, "a"), (5, "b"), (3, "b")]
    rows = Rows.of(row(number, image_id="i", object_id=name) for number, name in groups)
    scores = get_protocol("rrefcoco").score(rows)
    assert scores == pytest.approx({"mIoU": 83.3333, "oIoU": 83.6735, "mRR": 75.0, "rIoU": 75.0}, abs=5e-5)


def test_objects_are_per_image() -> None:
    """Object (i, o) has samples 1 and 4, and (j, o) has 5 and 3, so mRR is (0 + 1) / 2."""
    rows = Rows.of(row(number, image_id=image) for number, image in ((1, "i"), (4, "i"), (5, "j"), (3, "j")))
    scores = get_protocol("rrefcoco").score(rows)
    assert scores["mRR"] == 50.0 and scores["rIoU"] == pytest.approx(100 * (16 / 32 + 1) / 2)


def test_objects_without_negatives_or_positives() -> None:
    """Published code divides by zero here. Such objects do not count in mRR, or in mIoU."""
    rows = Rows.of([row(5, object_id="a"), row(4, object_id="b")])
    assert get_protocol("rrefcoco").score(rows) == {"mIoU": 100, "oIoU": 100, "mRR": 0, "rIoU": 100}


def test_golden_boxes() -> None:
    """The boxes overlap by 8 x 8.5 = 68, their union is 132, and the box around both is 12 x 11.5."""
    a, b = np.array([[0, 0, 10, 10]]), np.array([[2, 1.5, 10, 10]])
    assert box_iou(a, b)[0, 0] == pytest.approx(68 / 132)
    assert box_iou(a, b, generalized=True)[0, 0] == pytest.approx(68 / 132 - (138 - 132) / 138)
    assert round(box_iou(a, b)[0, 0], 4) == 0.5152 and round(box_iou(a, b, generalized=True)[0, 0], 4) == 0.4717
    assert match_boxes(a, b, generalized=False) == (1, 1, 1) and match_boxes(a, b, generalized=True) == (0, 1, 1)


def test_greedy_matching() -> None:
    """IoU is 1/2 for a-x and 9/11 for a-y and b-x. The best pairs come first, so both match. A third box does not."""
    a, b = [0, 0, 20, 10], [0, 0, 10, 10]
    x, y = [0, 0, 10, 11], [0, 0, 20, 11]
    assert match_boxes(np.array([a, b]), np.array([x, y]), generalized=False) == (2, 2, 2)
    three = match_boxes(np.array([a, b, [50, 50, 5, 5]]), np.array([x, y]), generalized=False)
    assert three == (2, 3, 2)
    nothing = np.zeros((0, 4))
    assert match_boxes(nothing, nothing, generalized=True) == (0, 0, 0)
    assert match_boxes(nothing, np.array([a]), generalized=True) == (0, 0, 1)


def test_f1_and_correlation_of_rejections() -> None:
    """Two of three phrases without a target are rejected, and one of five with a target. Without one of the two kinds,
    both metrics are undefined."""
    cases = [(False, 0.9)] * 2 + [(False, 0.1)] + [(True, 0.9)] + [(True, 0.1)] * 4
    rows = Rows.of(row(5, predicted=5, has_target=target, no_target_prob=prob) for target, prob in cases)
    scores = get_protocol("refseg").score(rows)
    assert scores["N-F1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert scores["N-MCC"] == pytest.approx(100 * (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))
    assert not {"N-F1", "N-MCC"} & set(get_protocol("refseg").score(rows[rows.has_target]))


def test_auc_stands_beside_n_acc() -> None:
    """One of two phrases without a target has a higher probability than both with a target, the other than neither."""
    rows = Rows.of(
        row(5, has_target=has_target, no_target_prob=prob)
        for has_target, prob in ((True, 0.3), (True, 0.2), (False, 0.9), (False, 0.1))
    )
    assert get_protocol("gres").score(rows)["AUC"] == 50
    assert get_protocol("refseg").score(rows)["AUC"] == 50
    assert "AUC" not in get_protocol("refseg").with_no_target(rule="area").score(rows)
    unknown = Rows.of(row(5, has_target=has_target, no_target_prob=math.nan) for has_target in (True, False))
    assert "AUC" not in get_protocol("gres").score(unknown)


def test_grec() -> None:
    """Rows: perfect; one box too many; no target and no box; no target but a box."""
    counts = [(1, 1, 1), (1, 2, 1), (0, 0, 0), (0, 1, 0)]
    rows = Rows.of(row(5, boxes_matched=m, boxes_predicted=p, boxes_target=t, has_target=t > 0) for m, p, t in counts)
    assert get_protocol("grec").score(rows) == {"Pr@(F1=1)": 50, "N-acc": 50, "T-acc": 100}
    assert get_protocol("rec").score(rows[np.array([0, 3])]) == {"Acc@0.5": 50}


def test_ref_l4() -> None:
    """IoU 0.5 is not above 0.5, and 0.8 is above six of ten IoUs. The third expression has two targets."""
    rows = Rows.of([row(5, box_iou=0.5), row(5, box_iou=0.8), row(5, box_iou=1.0, num_targets=2)])
    expected = {"Acc@0.5": 50, "Acc@0.75": 50, "Acc@0.9": 0, "mAcc": 30}
    assert get_protocol("ref-l4").score(rows) == pytest.approx(expected)


def test_finecops() -> None:
    """Rows: a hit that is rejected; a miss; and three without a target: a box, a box that is rejected, and no box."""
    answers = [(True, 1, 1, 0.9), (True, 0, 1, 0.1), (False, 0, 1, 0.1), (False, 0, 1, 0.9), (False, 0, 0, 0.1)]
    rows = Rows.of(
        row(5, has_target=target, num_targets=int(target), boxes_matched=m, boxes_predicted=p, no_target_prob=prob)
        for target, m, p, prob in answers
    )
    found = get_protocol("finecops").score(rows)
    expected = {"Acc@0.5": 50, "N-acc": 200 / 3, "T-acc": 50}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert get_protocol("finecops").worth_of(rows).tolist() == [1, 0, 0, 1, 1]


def test_precision_strict_or_not() -> None:
    """An IoU of exactly 1/2 counts in Pr@0.5 for LAVT, but not for CGFormer. Decimal thresholds are exact."""
    half = Rows.of([row(1, intersection=10, predicted=10, target=20)])
    assert get_protocol("lavt").score(half)["Pr@0.5"] == 100 and get_protocol("cgformer").score(half)["Pr@0.5"] == 0
    four_fifths = Rows.of([row(1, intersection=8, predicted=8, target=10)])
    assert get_protocol("lavt").score(four_fifths)["Pr@0.8"] == 100


def test_sums_are_exact() -> None:
    """float32 is exact up to 2^24, and 1,000 masks of a large image have more than 2^32 pixels."""
    rows = Rows.of(row(1, intersection=2**24 + 1, predicted=2**24 + 1, target=2**24 + 2) for _ in range(1000))
    assert get_protocol("lavt").score(rows)["oIoU"] == 100 * (2**24 + 1) / (2**24 + 2)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_empty_and_one_sided_rows(protocol: Protocol) -> None:
    assert protocol.score(Rows.of([])) == {}
    assert "N-acc" not in protocol.score(GOLDEN[GOLDEN.has_target])
    assert "T-acc" not in protocol.score(GOLDEN[~GOLDEN.has_target])
    described = protocol.describe()
    assert described["name"] == protocol.name and described["view"]["threshold"] == 0.5


def test_changed_rule_changes_name() -> None:
    gres = get_protocol("gres")
    assert gres.with_no_target(threshold=0.5) is gres
    assert gres.with_no_target(threshold=0.7).name == "gres+head>0.7"
    area = gres.with_no_target(rule="area")
    assert area.name == "gres+area<50px" and area.no_target.rejected(GOLDEN).all()
    assert not gres.with_no_target(rule="none").no_target.rejected(GOLDEN).any()
    assert get_protocol("refseg").with_no_target(threshold=0.7).name == "refseg+head-or-empty>0.7"
    with pytest.raises(UsageError, match="did you mean gres"):
        get_protocol("gress")


def test_empty_mask_rejects() -> None:
    """Only in protocol refseg. Rows: rejected by the head; masked; empty; and empty without a probability. An empty
    mask counts as a rejection in T-acc too."""
    rows = Rows.of(
        row(4, expression_id=str(i), predicted=pixels, no_target_prob=prob)
        for i, (pixels, prob) in enumerate([(8, 0.9), (8, 0.1), (0, 0.1), (0, math.nan)])
    )
    assert get_protocol("refseg").score(rows)["N-acc"] == 75 and get_protocol("refseg").score(rows)["gIoU"] == 75
    assert get_protocol("gres").score(rows)["N-acc"] == 25
    missed = Rows.of([row(1, intersection=0, predicted=0)])
    assert get_protocol("refseg").score(missed)["T-acc"] == 0 and get_protocol("gres").score(missed)["T-acc"] == 100
    assert get_protocol("refseg").score(missed)["gIoU"] == get_protocol("gres").score(missed)["gIoU"] == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(rule="hed"), "unknown rule 'hed'. Valid rules: head, head-or-empty, area, none"),
        (dict(treshold=0.3), "unknown key 'treshold'. Valid keys: rule, threshold, min_area"),
        (dict(threshold=50), r"threshold must be in \[0, 1\], got 50"),
        (dict(rule="area", min_area=-1), "min_area must be at least 0"),
        (dict(min_area=9), "min_area applies only to rule 'area', and the rule of gres is 'head'"),
    ],
)
def test_invalid_no_target_rules(changes: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        get_protocol("gres").with_no_target(**changes)


def test_protocol_without_no_target_rule_rejects_changes() -> None:
    assert get_protocol("lavt").with_no_target() is get_protocol("lavt")
    with pytest.raises(UsageError, match="protocol lavt has no rule for 'nothing here'"):
        get_protocol("lavt").with_no_target(rule="area")


def test_rec_scores_only_single_targets() -> None:
    """Rows have one target, two targets and none. Only the first one counts."""
    rows = Rows.of([row(5, boxes_matched=1), row(5, boxes_matched=1, num_targets=2), row(4)])
    assert get_protocol("rec").score(rows) == {"Acc@0.5": 100.0}


def test_cautions() -> None:
    """Samples 3 and 4 have no target. Every sample is an object of its own."""
    cautions = {name: [c(GOLDEN, 2) for c in protocol.cautions] for name, protocol in PROTOCOLS.items()}
    assert cautions["lavt"] == cautions["cgformer"] and "2 expressions without a target" in cautions["lavt"][0]
    assert "2 expressions with no target" in cautions["rec"][0]
    assert "no object has expressions with a target" in cautions["rrefcoco-original"][0]
    assert "may vanish" in cautions["rrefcoco"][1] and "may vanish" in cautions["refzom"][0]
    assert cautions["grec"] == [] and cautions["refseg"] == cautions["gres"] == cautions["deris"] == [""]
    without_pixels = Rows.of([row(1), row(5, target=0)])
    assert "1 targets have no pixels" in PROTOCOLS["gres"].cautions[0](without_pixels, 0)
    one_object = Rows.of(row(number, image_id="i") for number in SAMPLES)
    assert [c(one_object, 0) for c in PROTOCOLS["rrefcoco"].cautions] == ["", ""]
    with_target = GOLDEN[GOLDEN.has_target]
    assert [c(with_target, 0) for name in ("lavt", "rec") for c in PROTOCOLS[name].cautions] == ["", ""]
