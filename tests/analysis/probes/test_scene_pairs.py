"""Changed meanings of RefShapes. An independent parser reads the truth back from the words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.analysis.probes.measure import KINDS
from refseg.analysis.probes.scene_pairs import (
    changed_meaning,
    edits,
    mirrored,
    nearest_wording,
    pairs_of_scenes,
    preset_of,
)
from refseg.datasets.annotations import open_annotations
from refseg.datasets.masks import decode
from refseg.errors import DataError
from refseg.refshapes.meaning import Match, Meaning, Most, Ordinal, Phrase, Place, Relative
from refseg.refshapes.presets import PRESETS, make_image
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import Background, Scene, Shape
from refshapes_reader import read

LEFT_RIGHT, ABOVE_BELOW = ("left", "right"), ("top", "bottom")
STAR = Match("star")


@pytest.mark.parametrize(
    ("head", "axis", "wanted"),
    [
        (Most(STAR, "left"), LEFT_RIGHT, Most(STAR, "right")),
        (Most(STAR, "large"), LEFT_RIGHT, None),
        (Place(STAR, "top left"), LEFT_RIGHT, Place(STAR, "top right")),
        (Place(STAR, "top left"), ABOVE_BELOW, Place(STAR, "bottom left")),
        (Ordinal(STAR, 2, "bottom"), ABOVE_BELOW, Ordinal(STAR, 2, "top")),
        (Relative(STAR, "behind", STAR), ABOVE_BELOW, None),
        (Relative(STAR, "top", STAR), ABOVE_BELOW, Relative(STAR, "bottom", STAR)),
        (STAR, LEFT_RIGHT, None),
    ],
)
def test_mirrored(head, axis, wanted) -> None:
    assert mirrored(head, axis) == wanted


def _scene(*rows: tuple[str, str, int]) -> Scene:
    """Make a scene of shapes (kind, color, x) in a row."""
    shapes = [Shape(i, kind, color, "small", "plain", x * 16, 768, 128, 0) for i, (kind, color, x) in enumerate(rows)]
    return Scene(96, 96, Background(128, 0, 0, 0), tuple(shapes))


def _change(head, kind: str, scene: Scene, count: int | None = 1, **options) -> set[tuple[int, ...]]:
    """Return the referents of the changed meanings of 30 streams."""
    expression = Meaning((Phrase(head, count),))
    allows = options.get("allows", lambda _: True)
    found = [changed_meaning(expression, kind, scene, Stream(seed), allows) for seed in range(30)]
    return {changed.judge(scene).ids for changed in found if changed is not None}


def test_changed_meaning() -> None:
    """The scene has a red star, a blue star and a red circle, from left to right."""
    scene = _scene(("star", "red", 10), ("star", "blue", 48), ("circle", "red", 86))
    assert _change(Most(STAR, "left"), "left-right", scene) == {(1,)}
    assert _change(Match("star", "red"), "color", scene) == {(1,)}
    assert _change(Match("star", "red"), "negation", scene) == {(1,), (2,)}, "a star not red, a red thing not a star"
    assert _change(Match("star", without=("color", "red")), "negation", scene) == {(0,)}
    assert _change(Match("star"), "number", scene, None) == {(0,), (1,)}, "the leftmost, the rightmost"
    assert _change(Most(STAR, "left"), "number", scene) == {(0, 1)}
    assert _change(Match("circle", "red"), "absent", scene) == {()}
    assert _change(Most(STAR, "left"), "above-below", scene) == set()
    assert _change(Match("star", "red"), "color", scene, allows=lambda _: False) == set()


def test_change_number_drops_a_phrase() -> None:
    """ "the red star and the circle" loses one of them."""
    scene = _scene(("star", "red", 10), ("star", "blue", 48), ("circle", "red", 86))
    both = Meaning((Phrase(Match("star", "red")), Phrase(Match("circle"))))
    found = {changed_meaning(both, "number", scene, Stream(s), lambda _: True).judge(scene).ids for s in range(20)}
    assert found == {(0,), (2,)}


def test_edits() -> None:
    pairs = ("a b", "a b"), ("a b c", "a x c"), ("", "a b"), ("a b", "b c")
    assert [edits(a.split(), b.split()) for a, b in pairs] == [0, 1, 2, 2]


def test_nearest_wording() -> None:
    text = "leftmost violet box"
    assert nearest_wording(Meaning((Phrase(Most(Match("square", "purple"), "right")),)), text, Stream(0)) == (
        "rightmost violet box"
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.sampled_from(["mini", "base", "hard"]))
def test_changed_phrases_mean_their_truth(index: int, preset: str) -> None:
    """Every changed phrase, parsed again, means its truth, which differs from the original truth."""
    sample = make_image(PRESETS[preset], "val", index)
    for number, expression in enumerate(sample.expressions):
        for kind in KINDS if expression.referents else ():
            allows = PRESETS[preset].rule("val").allows
            changed = changed_meaning(expression.meaning, kind, sample.scene, Stream(number), allows)
            if changed is None:
                continue
            ids, _ = read(nearest_wording(changed, expression.text, Stream(number)), sample.scene)
            assert tuple(sorted(ids)) == changed.judge(sample.scene).ids != expression.referents
            assert bool(ids) == (kind != "absent")


def test_pairs_of_scenes(refshapes_tiny: Path) -> None:
    """On all images of train: truths match the file, every kind occurs, and the pairs are reproducible."""
    file = refshapes_tiny / "refshapes.jsonl"
    preset = preset_of(file)
    assert preset is PRESETS["tiny"] and preset_of(refshapes_tiny / "refcoco" / "refs(unc).p") is None
    rows = {row["expression_id"]: row for row in map(json.loads, file.read_text().splitlines())}
    store = open_annotations(format="jsonl", file=str(file))
    records = [store.record(i) for i in range(len(store)) if "train_" in store.image_path(i)]
    pairs = [pair for record in records for pair in pairs_of_scenes(preset, record)]
    assert pairs == [pair for record in records for pair in pairs_of_scenes(preset, record)]
    assert set(Counter(pair.kind for pair in pairs)) == set(KINDS) and len(pairs) > 50
    for pair in pairs:
        assert pair.text == rows[pair.expression_id]["text"] != pair.changed
        targets = [decode(rle) for rle in rows[pair.expression_id]["targets"]]
        assert np.array_equal(np.any(targets, axis=0), decode(pair.truth))
        assert decode(pair.changed_truth).any() == (pair.kind != "absent")


def test_changed_folders(refshapes_tiny: Path, tmp_path: Path) -> None:
    """Another generator version has no preset, and an edited text is an error."""
    meta = json.loads((refshapes_tiny / "meta.json").read_text())
    file = tmp_path / "refshapes.jsonl"
    assert preset_of(file) is None
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"generator_version": 0}))
    assert preset_of(file) is None
    (tmp_path / "meta.json").write_text("[1]")
    with pytest.raises(DataError, match=r"meta\.json is damaged"):
        preset_of(file)
    store = open_annotations(format="jsonl", file=str(refshapes_tiny / "refshapes.jsonl"))
    record = store.record(0)
    record.expressions[0].text = "something else"
    with pytest.raises(DataError, match=r"'something else'.*is not what RefShapes tiny says of train_000000"):
        list(pairs_of_scenes(PRESETS["tiny"], record))
    record.image_path = "images/photo.jpg"
    with pytest.raises(DataError, match="no image of RefShapes tiny"):
        list(pairs_of_scenes(PRESETS["tiny"], record))
