"""Rules on words, on examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refseg.analysis.probes.measure import KINDS
from refseg.analysis.probes.rule_pairs import change_text, name_absent, pairs_by_rule
from refseg.evaluation.measure import Truth
from refseg.records import AnnotatedInstance, Expression, Record


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("left-right", "man on left", "man on right"),
        ("left-right", "Left of the rightmost car", "Right of the leftmost car"),
        ("left-right", "dog right next to the bed", "dog right next to the bed"),
        ("left-right", "bright leftover", "bright leftover"),
        ("above-below", "top bunk, above the lower one", "bottom bunk, below the upper one"),
        ("number", "second man, not the first", "third man, not the second"),
        ("negation", "the bus that is not red", "the bus is red"),
        ("negation", "man not wearing a hat", "man wearing a hat"),
        ("negation", "woman with a hat", "woman without a hat"),
        ("negation", "pizza without olives", "pizza with olives"),
        ("negation", "boy wearing red", "boy not wearing red"),
        ("negation", "red bus", "red bus"),
    ],
)
def test_rules(kind: str, text: str, wanted: str) -> None:
    assert change_text(kind, text, 0) == wanted


@given(st.text(max_size=60), st.integers(0, 2**32))
def test_rules_accept_any_text(text: str, seed: int) -> None:
    for kind in KINDS:
        assert isinstance(change_text(kind, text, seed), str)


def test_colors_differ_by_seed_and_are_new() -> None:
    found = {change_text("color", "Red car beside the blue van", seed) for seed in range(30)}
    assert len(found) == 9 and not any(text.startswith(("red", "Red", "blue")) for text in found)
    assert all(text.endswith("car beside the blue van") for text in found)
    assert "gray" not in {change_text("color", "grey cat", seed).split()[0] for seed in range(30)}
    assert change_text("color", "the cat", 3) == "the cat"


def test_name_absent() -> None:
    assert name_absent("dogs by the hotdog stand", "dog", ["cat"], 0) == "cat by the hotdog stand"
    assert name_absent("the guy in front", "person", ["bus", "guy"], 0) == "the bus in front"
    assert name_absent("the guy in front", "car", ["bus"], 0) == "the guy in front"
    assert name_absent("dog", "dog", [], 7) == "dog"


def box(x: int) -> dict:
    pixels = np.zeros((10, 10), np.uint8, order="F")
    pixels[:, x : x + 3] = 1
    return coco_mask.encode(pixels)


def test_pairs_by_rule() -> None:
    """The image has two dogs. "right dog" is one of its expressions, so the truth of the changed "left dog" is known.
    So is the truth for a cat, which the image lacks. Changed phrases with the same target are left out."""
    instances = [AnnotatedInstance("0", box(0), "dog"), AnnotatedInstance("1", box(6), "dog")]
    left, right = Expression("l", "left dog", (0,)), Expression("r", "Right dog!", (1,))
    nothing = Expression("n", "left bus", ())
    first, second = Expression("f", "first dog", (0,)), Expression("s", "second dog", (0,))
    record = Record("i", "i.png", (10, 10), instances, [])
    truth = Truth(record)
    everything = [left, right, nothing, first, second]
    pairs = list(pairs_by_rule(truth, [left, nothing, first], everything, ["dog", "cat"]))
    assert [(pair.kind, pair.text, pair.changed) for pair in pairs] == [
        ("left-right", "left dog", "right dog"),
        ("absent", "left dog", "left cat"),
        ("absent", "first dog", "first cat"),
    ], "second dog is another name of the first one's target"
    assert pairs[0].changed_truth == box(6) and coco_mask.area(pairs[1].changed_truth) == 0
    (unknown,) = [p for p in pairs_by_rule(truth, [first], [first], []) if p.kind == "number"]
    assert unknown.changed == "second dog" and unknown.changed_truth is None
    instances[1].category = None
    assert not [p for p in pairs_by_rule(truth, [left], [left], ["cat"]) if p.kind == "absent"], "who knows what it is"
