from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.readers import read_jsonl
from refseg.datasets.store import from_annotations
from refseg.errors import DataError
from refseg.evaluation import scorer
from refseg.evaluation.measure import nearest_source, resize_rle
from refseg.evaluation.prediction_file import Answer, parts_of, read_predictions, write_predictions
from refseg.evaluation.protocols import PROTOCOLS, View, get_protocol
from refseg.evaluation.scorer import TruthIndex, score_predictions
from refseg.instance import Instance
from refseg.records import AnnotatedInstance, Annotations, Expression, Record

REFSEG, GRES, DERIS = (get_protocol(name) for name in ("refseg", "gres", "deris"))
VIEWS = {p.view.for_masks(): p for p in PROTOCOLS.values() if p.view.boxes is None}


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def index(records: Sequence[Record], root: Path | str = ".") -> TruthIndex:
    store = from_annotations(Annotations(list(records)))
    return TruthIndex(store, np.ones(store.num_expressions, bool), root)


def square(x: int, y: int, side: int) -> list[float]:
    return [float(v) for v in (x, y, x + side, y, x + side, y + side, x, y + side)]


def simple(num_images: int = 1, per_image: int = 1, size: tuple[int, int] = (8, 10)) -> list[Record]:
    """Ids are i:k; even expressions refer to a 4 x 4 square, odd ones to nothing."""
    return [
        Record(
            f"im{i}",
            f"{i}.jpg",
            size,
            [AnnotatedInstance("0", [square(2, 2, 4)], "dog")],
            [Expression(f"{i}:{k}", "the dog", (0,) if k % 2 == 0 else ()) for k in range(per_image)],
        )
        for i in range(num_images)
    ]


def full(expression_id: str, size: tuple[int, int] = (8, 10), **more: Any) -> Answer:
    return Answer(expression_id, encode(np.ones(size)), **more)


# Against plain arrays -------------------------------------------------------------------------------------------------


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Record, list[np.ndarray]]:
    """An image with up to 3 instances (polygons of one or two rings, which may overlap, or RLEs), expressions that
    refer to any of them, and a mask for each expression."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    instances = []
    for number in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            rings = [
                rng.uniform(-3, 43, 2 * int(rng.integers(3, 7))).round(2).tolist() for _ in range(rng.integers(1, 3))
            ]
            instances.append(AnnotatedInstance(str(number), rings))
        else:
            instances.append(AnnotatedInstance(str(number), encode(rng.random((height, width)) < rng.random())))
    choices = st.lists(st.integers(0, len(instances) - 1), unique=True)
    expressions = [Expression(str(k), "x", tuple(draw(choices))) for k in range(draw(st.integers(1, 3)))]
    masks = [rng.random((height, width)) < rng.choice([0, 0.1, 0.5, 1]) for _ in expressions]
    return Record("i", "i.jpg", (height, width), instances, expressions), masks


def plain_resize(mask: np.ndarray, size: tuple[int, int], rule: str = "pillow") -> np.ndarray:
    if rule == "cv2":
        return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    image = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image).astype(bool)


def plain_instance(segmentation: Any, size: tuple[int, int], exclude: bool) -> np.ndarray:
    if isinstance(segmentation, dict):
        return coco_mask.decode(segmentation).astype(bool)
    times = sum(coco_mask.decode(rle).astype(int) for rle in coco_mask.frPyObjects(segmentation, *size))
    return times == 1 if exclude else times > 0


def plain_target(record: Record, expression: Expression, view: View, grid: tuple[int, int]) -> np.ndarray:
    height, width = record.size
    out = np.zeros(grid, bool)
    if view.target_by == "input":
        for i in expression.referents:
            segmentation = record.instances[i].segmentation
            scale = np.array([grid[1] / width, grid[0] / height])
            rings = [(np.reshape(ring, (-1, 2)) * scale).ravel().tolist() for ring in segmentation]
            out |= plain_instance(rings, grid, view.overlap == "exclude")
        return out
    whole = np.zeros(record.size, bool)
    for i in expression.referents:
        whole |= plain_instance(record.instances[i].segmentation, record.size, view.overlap == "exclude")
    return plain_resize(whole, grid, view.target_resize)


@pytest.mark.parametrize("on_grid", [False, True])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scene=scenes())
def test_rle_scores_match_arrays(on_grid: bool, scene: tuple[Record, list[np.ndarray]]) -> None:
    """For every view, with masks of the original size and of the protocol's grid."""
    record, masks = scene
    polygons_only = all(isinstance(instance.segmentation, list) for instance in record.instances)
    for view, protocol in VIEWS.items():
        if view.target_by == "input" and not polygons_only:
            continue
        grids = [view.grid_of(bool(e.referents), record.size) for e in record.expressions]
        resized = [plain_resize(mask, grid) for mask, grid in zip(masks, grids, strict=True)]
        given = resized if on_grid else masks
        rows = [Answer(e.expression_id, encode(mask)) for e, mask in zip(record.expressions, given, strict=True)]
        result = score_predictions(rows, index([record]), [protocol]).rows[protocol.name]
        targets = [plain_target(record, e, view, grid) for e, grid in zip(record.expressions, grids, strict=True)]
        expected = [(p & t, p, t, p | t) for p, t in zip(resized, targets, strict=True)]
        sums = np.array([[np.count_nonzero(part) for part in parts] for parts in expected])
        np.testing.assert_array_equal(
            np.stack([result.intersection, result.predicted, result.target, result.union], 1), sums
        )


@st.composite
def runs_with_zeros(draw: st.DrawFn, pixels: int) -> list[int]:
    cuts = sorted(draw(st.lists(st.integers(0, pixels), max_size=8)))
    return np.diff([0, *cuts, pixels]).tolist()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), size=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_runs_of_zero(data: st.DataObject, size: tuple[int, int]) -> None:
    """pycocotools takes a run of 0 for the end of a mask. Masks with such runs must be scored like plain arrays, on the
    original grid and on another one."""
    target, predicted = data.draw(runs_with_zeros(size[0] * size[1])), data.draw(runs_with_zeros(size[0] * size[1]))
    masks = [np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F") for runs in (predicted, target)]
    with tempfile.TemporaryDirectory() as folder:
        truth, answers = Path(folder, "data.jsonl"), Path(folder, "p.jsonl")
        targets = [{"size": size, "counts": target}]
        truth.write_text(json.dumps({"image": "i", "size": size, "text": "x", "targets": targets, "expression_id": 1}))
        answers.write_text(json.dumps({"expression_id": 1, "mask": {"size": size, "counts": predicted}}))
        result = score_predictions(read_predictions(answers), index(read_jsonl(file=truth).records), [REFSEG, DERIS])
    for name, grid in (("refseg", size), ("deris", (384, 384))):
        p, t = plain_resize(masks[0], grid), plain_resize(masks[1], grid, get_protocol(name).view.target_resize)
        rows = result.rows[name]
        sums = [rows.intersection[0], rows.predicted[0], rows.target[0]]
        assert sums == [np.count_nonzero(p & t), np.count_nonzero(p), np.count_nonzero(t)]


@pytest.mark.parametrize("rule", ["pillow", "cv2"])
@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    new=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    density=st.sampled_from([0, 0.05, 0.5, 0.95, 1]),
    seed=st.integers(0, 2**32),
)
def test_resize_rle_matches_pixels(
    rule: str, size: tuple[int, int], new: tuple[int, int], density: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(size) < density
    assert resize_rle(encode(mask), new, rule) == encode(plain_resize(mask, new, rule))


@pytest.mark.parametrize("rule", ["pillow", "cv2"])
def test_resize_rle_to_published_grids(rule: str) -> None:
    mask = np.random.default_rng(0).random((427, 640)) < 0.5
    for grid in ((480, 480), (384, 384), (640, 427)):
        assert resize_rle(encode(mask), grid, rule) == encode(plain_resize(mask, grid, rule))


def test_nearest_source() -> None:
    """Pillow takes the pixel at the center, floor((x + 0.5) * scale), cv2 the one at the corner, floor(x * scale). With
    a factor that is a whole number they agree."""
    for new in (320, 384, 480):
        for length in (*range(1, 700, 3), 1024, 1333):
            corners = np.floor(np.arange(new) * (1 / (new / length))).astype(int)  # cv2 inverts the factor first
            assert np.array_equal(nearest_source(length, new, "cv2"), np.minimum(corners, length - 1)), (length, new)
            centers = (np.arange(new) + 0.5) * length / new
            away = np.abs(nearest_source(length, new, "pillow") + 0.5 - centers)
            assert away.max() <= 0.5 + 1e-9, (length, new)  # on a border between two pixels either is the nearest
    assert np.array_equal(nearest_source(96, 384, "cv2"), nearest_source(96, 384, "pillow"))
    assert nearest_source(640, 384, "cv2")[:6].tolist() == [0, 1, 3, 5, 6, 8]
    assert nearest_source(640, 384, "pillow")[:6].tolist() == [0, 2, 4, 5, 7, 9]


@pytest.mark.parametrize(
    ("protocol", "metric", "expected"),
    [("deris", "gIoU", 24 / 35), ("refzom-score", "mIoU", 24 / 35), ("lavt", "mIoU", 1), ("refzom", "mIoU", 1)],
)
@pytest.mark.parametrize("on_grid", [False, True])
def test_golden_target_on_grid(protocol: str, metric: str, expected: float, on_grid: bool) -> None:
    """A target of columns and rows 101 to 108. On 384 x 384 cv2 gives columns 61 to 65 (floor(5 x / 3) in 101..108) and
    rows 81 to 87 (floor(5 y / 4)), 35 pixels. By centers it is columns 61 to 64 and rows 81 to 86, 24 pixels, which a
    perfect prediction has: it is resized by centers. LAVT and DMMI resize the target by centers too."""
    record = Record(
        "i", "i.jpg", (480, 640), [AnnotatedInstance("0", [square(101, 101, 8)])], [Expression("e", "the square", (0,))]
    )
    mask = np.zeros((480, 640), np.uint8)
    mask[101:109, 101:109] = 1
    chosen = get_protocol(protocol)
    answer = plain_resize(mask, chosen.view.grid) if on_grid else mask
    rows = score_predictions([Answer("e", encode(answer))], index([record]), [chosen]).rows[protocol]
    assert chosen.score(rows)[metric] == pytest.approx(100 * expected)
    if chosen.view.grid == (384, 384):
        assert (rows.intersection[0], rows.predicted[0], rows.target[0]) == (24, 24, 35)


# Missing, extra and mis-sized predictions -----------------------------------------------------------------------------


def test_rows_follow_ground_truth_order() -> None:
    """There are more images than the cache holds, in random order."""
    records = simple(scorer.CACHED_IMAGES + 9, 3)
    rows = [full(e.expression_id, no_target_prob=i / 999) for i, r in enumerate(records) for e in r.expressions]
    in_order = score_predictions(rows, index(records), [REFSEG]).rows["refseg"]
    mixed = random.Random(0).sample(rows, len(rows))
    result = score_predictions(iter(mixed), index(records), [REFSEG]).rows["refseg"]
    assert result.expression_id.tolist() == [row.expression_id for row in rows]
    assert result.image_id.tolist() == [f"im{i}" for i in range(len(records)) for _ in range(3)]
    for name, column in in_order.columns.items():
        np.testing.assert_array_equal(result.columns[name], column)
        assert result.columns[name].dtype == column.dtype
    assert result.intersection.tolist()[:3] == [16, 0, 16] and set(result.predicted) == {80}
    assert result.categories.tolist()[:2] == ["dog", ""] and result.target_area.tolist()[:2] == [16, 0]


def test_error_lists_every_misfit() -> None:
    records = simple(13)
    rows = [full("0:0"), full("0:0"), full("x"), full("1:0", (3, 4)), full("y"), full("x")]
    with pytest.raises(DataError) as error:
        score_predictions(rows, index(records), [REFSEG, GRES])
    lines = str(error.value).splitlines()
    assert "--allow-partial" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "11 expressions without a prediction: " + ", ".join(f"{i}:0" for i in range(2, 12)) + ", ...",
        "1 prediction for an expression that has one already: 0:0",
        "3 predictions for no expression of the data: x, y, x",
        "1 answer without a mask of a size that fits refseg: 1:0 (3 x 4, not 8 x 10)",
        "1 answer without a mask of a size that fits gres: 1:0 (3 x 4, not 8 x 10 or 480 x 480)",
        "--absent-is-nothing counts expressions without a prediction as answered with 'nothing here'",
    ]


def test_allow_partial_counts_misfits() -> None:
    """The first of two predictions for 0:0 counts. A mask on the grid of gres does not fit refseg."""
    rows = [full("0:0"), Answer("0:0", encode(np.zeros((8, 10)))), full("x"), full("1:0", (480, 480))]
    result = score_predictions(rows, index(simple(4)), [REFSEG, GRES], allow_partial=True)
    counts = dict(expected=4, missing=2, duplicate=1, extra=1, mask_objects=0)
    assert result.counts["refseg"] == scorer.PredictionCounts(**counts, scored=1, mis_sized=1, resized=0)
    assert result.counts["gres"] == scorer.PredictionCounts(**counts, scored=2, mis_sized=0, resized=1)
    assert result.rows["refseg"].expression_id.tolist() == ["0:0"] and result.rows["refseg"].predicted.tolist() == [80]
    assert result.rows["gres"].predicted.tolist() == [480 * 480] * 2


def test_nothing_to_score_raises() -> None:
    with pytest.raises(
        DataError, match=r"no prediction can be scored by refseg: of 2 .* 2 are missing \(0:0, 1:0\).*\(x\)"
    ):
        score_predictions([full("x")], index(simple(2)), [REFSEG], allow_partial=True)


def test_only_chosen_expressions_count() -> None:
    store = from_annotations(Annotations(simple(2, 2)))
    truths = TruthIndex(store, np.array([False, True, True, False]), ".")
    result = score_predictions([full("1:0"), full("0:1")], truths, [REFSEG])
    assert result.rows["refseg"].expression_id.tolist() == ["0:1", "1:0"] and result.counts["refseg"].expected == 2
    with pytest.raises(DataError, match="1 prediction for no expression of the data: 0:0"):
        score_predictions([full("1:0"), full("0:1"), full("0:0")], truths, [REFSEG])
    record = simple(1)[0]
    with pytest.raises(DataError, match="share an id"):
        index([record, replace(record, image_id="other")])


def test_protocols_share_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols share measurements if the target's overlap, crowds and grid agree, like rrefcoco-original with
    cgformer, and deris with refzom-score."""
    calls: list[View] = []
    plain = scorer.measure

    def counted(answer: Any, truth: Any, expression: Any, view: View) -> Any:
        calls.append(view)
        return plain(answer, truth, expression, view)

    monkeypatch.setattr(scorer, "measure", counted)
    names = ["refseg", "gsva", "rrefcoco-original", "cgformer", "deris", "refzom-score"]
    result = score_predictions([full("0:0")], index(simple()), [get_protocol(name) for name in names])
    assert len(calls) == 4 and list(result.rows) == names
    assert result.rows["refseg"] is not None and result.counts["deris"].resized == 1


def test_mask_images_below_image_root(tmp_path: Path) -> None:
    mask = np.zeros((8, 10), np.uint8)
    mask[1:3] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (record,) = simple()
    record.instances[0].segmentation = "masks/a.png"
    result = score_predictions([full("0:0")], index([record], tmp_path), [REFSEG])
    assert result.rows["refseg"].intersection.tolist() == [20]


def test_box_protocols() -> None:
    """A good box with a low score is a miss for GREC and a hit for REC. Without boxes, the mask's box counts."""
    rows = [
        full("0:0", boxes=[[2, 2, 4, 4, 0.6]]),
        Answer("1:0", encode(np.pad(np.ones((4, 4)), ((2, 2), (2, 4))))),
    ]
    protocols = [get_protocol("rec"), get_protocol("grec")]
    result = score_predictions(rows, index(simple(2)), protocols)
    assert result.rows["rec"].boxes_matched.tolist() == [1, 1] and result.rows["grec"].boxes_matched.tolist() == [0, 1]
    assert result.counts["rec"].mask_objects == 1


def square_mask(x: int, y: int, size: tuple[int, int] = (8, 10)) -> dict:
    """4 x 4 pixels."""
    pixels = np.zeros(size)
    pixels[y : y + 4, x : x + 4] = 1
    return encode(pixels)


def two_squares() -> list[Record]:
    """One expression for the squares (0, 0, 4, 4) and (6, 4, 4, 4), one for nothing."""
    instances = [AnnotatedInstance("0", [square(0, 0, 4)]), AnnotatedInstance("1", [square(6, 4, 4)])]
    expressions = [Expression("both", "both", (0, 1)), Expression("none", "none", ())]
    return [Record("i", "i.jpg", (8, 10), instances, expressions)]


def test_boxes_of_instances() -> None:
    """The box around the union fits neither square, but the boxes of the instances do. Instances with a score below 0.7
    and instances without pixels do not count."""
    instances = [Instance(square_mask(0, 0), 0.9), Instance(square_mask(6, 4), 0.8)]
    union = coco_mask.merge([one.rle for one in instances])
    empty = Instance(encode(np.zeros((8, 10))), 0.95)
    nothing = Answer("none", encode(np.zeros((8, 10))), raw_instances=[Instance(union, 0.6), empty])
    protocol = get_protocol("grec")
    result = score_predictions([Answer("both", union, raw_instances=[*instances, empty]), nothing],
                              index(two_squares()), [protocol])  # fmt: skip
    assert protocol.score(result.rows["grec"])["Pr@(F1=1)"] == 100 and result.counts["grec"].mask_objects == 0
    of_union = score_predictions([Answer("both", union), nothing], index(two_squares()), [protocol])
    assert protocol.score(of_union.rows["grec"])["Pr@(F1=1)"] == 50 and of_union.counts["grec"].mask_objects == 1
    no_instance = score_predictions([Answer("both", union, raw_instances=[]), nothing], index(two_squares()),
                                    [protocol])  # fmt: skip
    assert no_instance.rows["grec"].boxes_predicted.tolist() == [0, 0]


def test_boxes_without_area() -> None:
    """GREC has no box at all, and REC takes the best box that has an area."""
    rows = [
        full("both", boxes=[[0, 0, 4, 4, 0.9], [6, 4, 4, 4, 0.9], [3, 3, 0, 5, 1.0]]),
        full("none", boxes=[[0, 0, 0, 0, 0.9]]),
    ]
    protocols = [get_protocol("grec"), get_protocol("rec")]
    result = score_predictions(rows, index(two_squares()), protocols).rows
    assert protocols[0].score(result["grec"]) == {"Pr@(F1=1)": 100, "N-acc": 100, "T-acc": 100}
    assert result["rec"].boxes_matched.tolist() == [1, 0]


def test_boxes_without_masks() -> None:
    """Box protocols need no mask, and mask protocols do."""
    rows = [Answer("0:0", None, boxes=[[2, 2, 4, 4, 0.9]])]
    result = score_predictions(rows, index(simple()), [get_protocol("rec")])
    assert result.rows["rec"].boxes_matched.tolist() == [1] and result.counts["rec"].resized == 0
    with pytest.raises(DataError, match=r"1 answer without a mask of a size that fits refseg: 0:0 \(no mask\)"):
        score_predictions(rows, index(simple()), [REFSEG])


def test_instances_of_another_size() -> None:
    """They are an error for box protocols only."""
    row = full("0:0", raw_instances=[Instance(square_mask(0, 0, (16, 20)), 0.9)])
    assert score_predictions([row], index(simple()), [REFSEG]).counts["refseg"].scored == 1
    with pytest.raises(DataError, match=r"0:0 \(instances\[0\] is 16 x 20, but the image is 8 x 10\)"):
        score_predictions([row], index(simple()), [get_protocol("rec")])


def test_missing_no_target_expressions_hint() -> None:
    message = r"1 expression without a prediction, all of which refer to nothing: 0:1\n.*--absent-is-nothing.*--drop-no"
    with pytest.raises(DataError, match=message):
        score_predictions([full("0:0")], index(simple(1, 2)), [REFSEG])
    with pytest.raises(DataError, match="1 expression without a prediction: 0:0"):
        score_predictions([full("0:1")], index(simple(1, 2)), [REFSEG])


# Crowd regions --------------------------------------------------------------------------------------------------------


def crowded(*referents: tuple[int, ...]) -> Record:
    """8 x 10: instance 0 is a 4 x 4 square, instance 1 a crowd of 2 x 4 pixels beside it."""
    instances = [
        AnnotatedInstance("0", [square(0, 0, 4)]),
        AnnotatedInstance("1", [[6.0, 0, 8, 0, 8, 4, 6, 4]], box=(6, 0, 2, 4), is_crowd=True),
    ]
    return Record("i", "i.jpg", (8, 10), instances, [Expression(str(k), "all", r) for k, r in enumerate(referents)])


def the_square(expression_id: str, **more: Any) -> Answer:
    mask = np.zeros((8, 10))
    mask[:4, :4] = 1
    return Answer(expression_id, encode(mask), no_target_prob=0.0, **more)


@pytest.mark.parametrize(
    ("protocol", "target"),
    [
        ("refseg", 16),
        ("gres", 480 * 480 * 16 / 80),
        ("deris", 384 * 384 * 16 / 80),
        ("refzom-score", 384 * 384 * 16 / 80),
        ("gsva", 24),
        ("lavt", 480 * 480 * 24 / 80),
        ("refzom", 480 * 480 * 24 / 80),
        ("grec", 24),
    ],
)
def test_crowds_in_target(protocol: str, target: float) -> None:
    """The expression refers to both instances. Its target has 16 pixels, or 24 with the crowd."""
    rows = score_predictions([the_square("0")], index([crowded((0, 1))]), [get_protocol(protocol)]).rows[protocol]
    assert rows.target.tolist() == pytest.approx([target], rel=0.01) and rows.has_target.tolist() == [True]
    excluded = get_protocol(protocol).view.crowds == "exclude"
    assert rows.num_targets.tolist() == [2] and rows.target_area.tolist() == [16 if excluded else 24]


def test_crowds_change_the_score() -> None:
    """For gres the square is the whole target, for gsva it is 16 of 24 pixels."""
    truths = index([crowded((0, 1))])
    result = score_predictions([the_square("0")], truths, [get_protocol("gres"), get_protocol("gsva")]).rows
    assert get_protocol("gres").score(result["gres"])["gIoU"] == pytest.approx(100)
    assert get_protocol("gsva").score(result["gsva"])["gIoU"] == pytest.approx(100 * 16 / 24)


def test_crowd_only_target() -> None:
    """It counts as a target with IoU 0, and the caution mentions it. The second row is a hit."""
    rows = [the_square("0"), the_square("1")]
    gres = get_protocol("gres")
    result = score_predictions(rows, index([crowded((1,), (0,))]), [gres]).rows["gres"]
    assert result.has_target.all() and result.target.tolist()[0] == 0 and result.target_area.tolist() == [0, 16]
    assert gres.score(result)["gIoU"] == pytest.approx(50) and gres.score(result)["T-acc"] == 100
    assert "N-acc" not in gres.score(result)
    assert "1 targets have no pixels" in gres.cautions[0](result, 0)
    assert gres.cautions[0](result[result.target > 0], 0) == ""


def test_grec_keeps_the_box_of_a_crowd() -> None:
    """As in gRefCOCO's code, F1 = 1 needs both boxes."""
    both = [[0.0, 0, 4, 4, 0.9], [6.0, 0, 2, 4, 0.9]]
    rows = [the_square("0", boxes=both), the_square("1", boxes=both[:1])]
    grec = get_protocol("grec")
    result = score_predictions(rows, index([crowded((0, 1), (0, 1))]), [grec]).rows["grec"]
    assert grec.score(result)["Pr@(F1=1)"] == 50 and result.boxes_target.tolist() == [2, 2]


# Several processes ----------------------------------------------------------------------------------------------------


def test_several_processes_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, duplicate, extra, and mis-sized answers in several parts of a file, then a broken line in a late one."""
    truths = index(simple(60, 2), tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{i}:{k}" for i in range(60) for k in range(2)]
    answers = [Answer(name, encode(rng.random((8, 10)) < 0.5), boxes=[[0, 0, 5, 4, 2.0]]) for name in names[2:]]
    answers[70] = full("36:0", (9, 9))
    answers = [*answers, *answers[:5], full("other"), full("36:0")]
    file = tmp_path / "answers.jsonl"
    write_predictions(file, answers, header={"made": "here"})
    one = scorer.score_file(file, truths, [REFSEG, GRES], absent_is_nothing=True, allow_partial=True)
    assert one.counts["refseg"].duplicate == 6 and one.counts["refseg"].extra == 1 and one.counts["refseg"].absent == 2

    monkeypatch.setattr(scorer, "parts_of", lambda path: parts_of(path, 2000))
    measured: list[int] = []
    options = dict(absent_is_nothing=True, allow_partial=True, workers=2, progress=measured.append)
    with mock.patch.object(scorer, "process_map", wraps=scorer.process_map) as processes:
        two = scorer.score_file(file, truths, [REFSEG, GRES], **options)
    assert processes.call_args.args[2] == 2
    assert len(parts_of(file, 2000)) >= 8 and sum(measured) == len(answers)
    assert (one.counts, one.suspicions) == (two.counts, two.suspicions) and one.suspicions
    for name in ("refseg", "gres"):
        for column, values in one.rows[name].columns.items():
            np.testing.assert_array_equal(values, two.rows[name].columns[column])

    with file.open("a") as out:
        out.write("\nnonsense\n")
    with pytest.raises(DataError, match=rf"answers.jsonl, line {len(answers) + 3}: not JSON"):
        scorer.score_file(file, truths, [REFSEG], **options)
