"""Phrases that refer to nothing: each rule makes one only if the data prove it false."""

from __future__ import annotations

import numpy as np
import pytest

from refseg.datasets.hard_negatives import Evidence, Kinds, from_elsewhere, kind_of, swapped
from refseg.records import AnnotatedInstance, Expression, Record


def image(phrases: dict[str, tuple[int, ...]], *, boxes: list | None = None, categories: list | None = None) -> Record:
    """Return an image of 100 x 100 pixels with these phrases and their referents."""
    count = 1 + max((index for refers in phrases.values() for index in refers), default=-1)
    boxes, categories = boxes or [None] * count, categories or [None] * count
    instances = [AnnotatedInstance(str(i), [], categories[i], boxes[i]) for i in range(count)]
    expressions = [Expression(str(k), text, refers) for k, (text, refers) in enumerate(phrases.items())]
    return Record("1", "1.jpg", (100, 100), instances, expressions)


def made(record: Record, text: str, *others: Record) -> set[str]:
    """Return all phrases that the rules make of a phrase."""
    evidence = Evidence(record)
    kinds = Kinds([evidence, *map(Evidence, others)], [])
    expression = next(one for one in record.expressions if one.text == text)
    found = {swapped(expression, evidence, kinds, np.random.default_rng(seed)) for seed in range(200)}
    return found - {""}


CUPS = {"the red cup": (0,), "a cup": (0,), "the blue cup": (1,), "the cup with a handle": (1,)}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the striped cup on the table", "cup"),
        ("man holding a cup", "man"),
        ("both dogs", "dog"),
        ("the plain one", ""),
        ("the thing that is plain", ""),
        ("dogs and cats", ""),
        ("two women", "woman"),
    ],
)
def test_kind_of_a_phrase(text: str, kind: str) -> None:
    assert kind_of(text) == kind


class TestColor:
    def test_a_color_that_no_such_object_has(self) -> None:
        texts = made(image(CUPS), "the red cup")
        assert texts
        assert "the blue cup" not in texts and "the red cup" not in texts
        assert all(text.startswith("the ") and text.endswith(" cup") for text in texts)

    def test_an_object_of_unknown_color_proves_nothing(self) -> None:
        assert not made(image({**CUPS, "the cup at the back": (2,)}), "the red cup")

    def test_two_colors_are_not_changed(self) -> None:
        assert not made(image({**CUPS, "the red cup beside the blue cup": (0,)}), "the red cup beside the blue cup")


class TestNumber:
    def test_more_than_there_are(self) -> None:
        dogs = {"two dogs": (0, 1), "left dog": (0,), "right dog": (1,), "the dog": (0,)}
        assert made(image(dogs), "two dogs") == {"three dogs", "four dogs", "five dogs", "six dogs"}

    def test_one_more_object_of_unknown_kind(self) -> None:
        dogs = {"two dogs": (0, 1), "left dog": (0,), "right dog": (1,), "the one behind": (2,)}
        assert not made(image(dogs), "two dogs")


class TestSide:
    @pytest.mark.parametrize(("box", "found"), [((5, 5, 30, 30), True), ((40, 5, 30, 30), False)])
    def test_the_only_object_in_one_half(self, box: tuple, found: bool) -> None:
        cup = image({"the cup on the left": (0,), "the cup": (0,)}, boxes=[box])
        assert made(cup, "the cup on the left") == ({"the cup on the right"} if found else set())

    def test_box_of_a_polygon(self) -> None:
        cup = image({"the cup on the left": (0,), "the cup": (0,)})
        cup.instances[0].segmentation = [[5, 5, 35, 5, 35, 35]]
        assert made(cup, "the cup on the left") == {"the cup on the right"}

    def test_two_objects(self) -> None:
        cups = {"the cup on the left": (0,), "the cup": (0,), "the other cup": (1,)}
        assert not made(image(cups, boxes=[(5, 5, 30, 30), (60, 5, 30, 30)]), "the cup on the left")


class TestKind:
    DOGS = image({"the dog": (0,), "dog": (0,), "a brown dog": (0,)})

    def test_a_kind_that_the_image_lacks(self) -> None:
        assert "the dog" in made(image({"the cup": (0,), "cup": (0,)}), "the cup", self.DOGS)

    def test_names_of_one_object_are_not_swapped(self) -> None:
        guy = image({"the man": (0,), "the guy": (0,), "man": (0,), "guy": (0,)})
        assert not made(image({"the man": (0,), "man": (0,)}), "the man", guy)

    def test_negations_and_lists_stay(self) -> None:
        cups = {"the cup that is not red": (0,), "cup": (0,), "the cup": (0,), "the cup and the plate": (0,)}
        for text in ("the cup that is not red", "the cup and the plate"):
            assert not made(image(cups), text, self.DOGS)

    def test_phrases_of_other_images(self) -> None:
        evidence = Evidence(image(CUPS))
        kinds = Kinds([evidence, Evidence(self.DOGS)], [])
        assert from_elsewhere("the brown dog", evidence, kinds)
        assert not from_elsewhere("the dog beside a cup", evidence, kinds)  # there is a cup
        assert not from_elsewhere("the large one", evidence, kinds)  # names nothing


def test_categories_name_kinds_too() -> None:
    record = image({"the red one": (0,)}, categories=["cup"])
    assert Evidence(record).kinds == [{"cup"}]
    assert Kinds([Evidence(record)], ["cup", "dog"]).absent(Evidence(record)) == ["dog"]
