import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.datasets.selection import (
    Items,
    image_key,
    image_keys,
    in_splits,
    of_categories,
    shipped_categories,
    split_matches,
)
from refseg.datasets.store import RecordStore, from_annotations
from refseg.errors import ConfigError, DataError
from refseg.records import AnnotatedInstance, Annotations, Expression, Record

BOX = [[0.0, 0, 2, 0, 2, 2]]


def store_of(*images: list[Expression], categories: tuple[str | None, ...] = ("cat", "dog", None)) -> RecordStore:
    """Return a store of images that have one instance of each category."""
    instances = [AnnotatedInstance(str(i), BOX, category) for i, category in enumerate(categories)]
    return from_annotations(
        Annotations([Record(str(i), f"{i}.png", (4, 4), instances, list(e)) for i, e in enumerate(images)])
    )


def expression(name: str, *referents: int, split: str = "train", of: str = "") -> Expression:
    return Expression(name, name, referents, split, of or name)


@pytest.mark.parametrize(
    ("asked", "matching"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testA", {"testA", "testAB", "testAC"}),
        ("testB", {"testB", "testAB", "testBC"}),
        ("testC", {"testC", "testBC", "testAC"}),
        ("testAB", {"testAB"}),
        ("test", {"test", "testA", "testB", "testC", "testAB", "testBC", "testAC"}),
    ],
)
def test_splits_match_as_in_refer(asked: str, matching: set[str]) -> None:
    """REFER's getRefIds matches testA, testB and testC by letter, "test" with all test splits, and others by name."""
    tags = ["train", "val", "test", "testA", "testB", "testC", "testAB", "testBC", "testAC", None]
    assert {tag for tag in tags if split_matches(asked, tag)} == matching


def test_expressions_of_splits() -> None:
    store = store_of([expression("a"), expression("b", split="testAB"), expression("c", split="testB")])
    assert in_splits(store, None).tolist() == [True] * 3
    assert in_splits(store, "testA").tolist() == [False, True, False]
    assert in_splits(store, ["train", "testB"]).tolist() == [True] * 3
    with pytest.raises(DataError, match=r"no expression has split 'val' \(available: testAB, testB, train\)"):
        in_splits(store, ["train", "val"])


def test_split_test_is_exact_if_the_set_has_it() -> None:
    """RefShapes has test, testA and testB. RefCOCO has testA and testB only."""
    store = store_of([expression("a", split="test"), expression("b", split="testA")])
    assert in_splits(store, "test").tolist() == [True, False]
    store = store_of([expression("a", split="testA"), expression("b", split="testB"), expression("c")])
    assert in_splits(store, "test").tolist() == [True, True, False]


def test_categories_apply_to_all_referents() -> None:
    store = store_of(
        [expression("cat", 0), expression("dog", 1), expression("both", 0, 1), expression("none")],
        [expression("nameless", 2), expression("cat2", 0)],
    )
    assert of_categories(store, ["cat"]).tolist() == [True, False, False, False, False, True]
    assert of_categories(store, ["cat", "dog"]).tolist() == [True, True, True, False, False, True]
    assert of_categories(store, "unseen").tolist() == of_categories(store, ["cat", "dog"]).tolist()
    with pytest.raises(ConfigError, match="no instance is a 'dgo'; did you mean 'dog'"):
        of_categories(store, ["cat", "dgo"])
    with pytest.raises(DataError, match="no instance has one of the categories"):
        of_categories(store_of([expression("x", 0)], categories=("thing",)), "unseen")
    with pytest.raises(ConfigError, match="'seen', 'unseen' or a list"):
        of_categories(store, "novel")


def test_shipped_seen_and_unseen_categories() -> None:
    seen, unseen = set(shipped_categories("seen")), set(shipped_categories("unseen"))
    assert (len(seen), len(unseen), len(seen & unseen)) == (48, 17, 0)


def test_image_keys_recognize_coco_images_in_any_folder() -> None:
    """COCO's releases share one numbering. Other files are recognized by folder, name and size, because frames of two
    clips may have the same name."""
    size = (4, 6)
    same = ["COCO_train2014_000000000123.jpg", "x/COCO_val2014_000000000123.jpg", "a/val2017/000000000123.jpg"]
    assert {image_key(path, size) for path in same} == {"coco:123"}
    assert image_key("b/a/12.jpg", size) == image_key("a/12.jpg", size) == "a/12.jpg:4x6"
    assert len({image_key(path, s) for path in ("a/1.jpg", "b/1.jpg", "1.jpg") for s in (size, (6, 4))}) == 6
    assert image_key("clip/000000000123.jpg", size) != "coco:123"


def test_keys_of_the_images_of_a_split() -> None:
    store = store_of([expression("a"), expression("b")], [expression("c"), expression("d", split="val")])
    assert image_keys(store, in_splits(store, "val")) == {"1.png:4x4"}
    assert image_keys(store, in_splits(store, None), "x") == {"x/0.png:4x4", "x/1.png:4x4"}


def everything(store: RecordStore, sentences: str, per_image: int | None, epoch: int) -> list[list[int]]:
    items = Items(store, np.ones(store.num_expressions, bool), sentences, per_image)
    return [items.expressions_of(i, seed=3, epoch=epoch).tolist() for i in range(len(items))]


def test_items_of_the_protocols() -> None:
    """Image 0 has object p with 3 sentences and q with 1. Image 1 has another object p with 2.

    LAVT has an item per object: 3. ReLA has an item per sentence: 6. With pairs, image 0 has 2 items and image 1 has 1.
    """
    store = store_of(
        [expression(f"p{i}", of="p") for i in range(3)] + [expression("q")],
        [expression(f"r{i}", of="p") for i in range(2)],
    )
    lavt = everything(store, "one_per_object", 1, epoch=0)
    assert len(lavt) == 3 and all(len(item) == 1 for item in lavt)
    assert sorted(everything(store, "all", 1, epoch=0)) == [[i] for i in range(6)]
    assert [len(item) for item in everything(store, "all", 2, epoch=0)] == [2, 2, 2]
    assert everything(store, "all", None, epoch=0) == [[0, 1, 2, 3], [4, 5]]
    drawn = [tuple(map(tuple, everything(store, "one_per_object", None, epoch=epoch))) for epoch in range(40)]
    assert {first for first, _ in drawn} == {(0, 3), (1, 3), (2, 3)}, "each epoch draws a sentence of p"
    assert drawn == [tuple(map(tuple, everything(store, "one_per_object", None, epoch=e))) for e in range(40)]


@given(
    st.lists(st.lists(st.sampled_from("pqr"), min_size=1, max_size=7), min_size=1, max_size=4),
    st.sampled_from(["all", "one_per_object"]),
    st.none() | st.integers(1, 4),
    st.integers(0, 5),
)
def test_epoch_takes_every_expression_or_object_once(
    images: list, sentences: str, per_image: int | None, epoch: int
) -> None:
    """Each item has expressions of one image, and at most the chosen number."""
    store = store_of(
        *[[expression(f"{i}{k}", of=name) for k, name in enumerate(names)] for i, names in enumerate(images)]
    )
    items = everything(store, sentences, per_image, epoch)
    taken = Counter(index for item in items for index in item)
    assert set(taken.values()) == {1}
    objects, image_of = store.object_of_expression, store.image_of_expression
    if sentences == "all":
        assert len(taken) == store.num_expressions
    else:
        assert sorted(objects[list(taken)]) == sorted(set(objects))
    assert all(len(set(image_of[item])) == 1 and 0 < len(item) <= (per_image or 99) for item in items)


def test_the_shipped_split_names_its_source() -> None:
    from refseg.datasets import selection

    content = json.loads((selection.Path(selection.__file__).parent / "coco_seen_unseen.json").read_text())
    assert "Bansal" in content["source"]
