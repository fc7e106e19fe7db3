"""The official layouts: their fields, their quirks, and their agreement with refshapes.jsonl."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as mask_tools

from refseg.refshapes import PRESETS, generate, word_list
from refseg.refshapes.meaning import NO_RULE, Match, Meaning, Phrase, named_pairs
from refseg.refshapes.official_layouts import _absent_pair, encode_masks, segmentation, trace, uses_position
from refseg.refshapes.presets import make_image
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import COLORS, KINDS
from refseg.refshapes.vocabulary import ADJECTIVES, KIND_NOUNS
from refseg.refshapes.wording import long_sentence

# A small preset with all skills, both groups of referents (testA, testB), and held-out pairs.
SMALL = replace(
    PRESETS["base"], name="small", images={"train": 12, "val": 4, "test": 3, "testA": 3, "testB": 3, "heldout": 4}
)
REFS = {
    "refcoco": ("refs(unc).p", {"train", "val", "testA", "testB"}),
    "refcoco+": ("refs(unc).p", {"train", "val", "testA", "testB"}),
    "refcocog": ("refs(umd).p", {"train", "val", "test"}),
    "grefcoco": ("grefs(unc).json", {"train", "val", "testA", "testB"}),
    "ref-zom": ("refs(final).p", {"train", "test"}),
    "rrefcoco": ("refs(unc).p", {"train", "val"}),
}
POSITION = re.compile(
    r"most\b|\b(half|from|farthest|highest|lowest)\b|(on|at|nearest) (the )?(left|right|top|bottom|upper|lower)\b"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("refshapes") / "small"
    meta = generate(SMALL, out, workers=1, progress=False)
    rows = [json.loads(line) for line in (out / "refshapes.jsonl").read_text().splitlines()]
    refs, instances = {}, {}
    for folder, (name, _) in REFS.items():
        content = (out / folder / name).read_bytes()
        refs[folder] = json.loads(content) if name.endswith("json") else pickle.loads(content)
        instances[folder] = json.loads((out / folder / "instances.json").read_text())
    return meta, rows, refs, instances


def decode(segment, height, width):
    if isinstance(segment, list) and isinstance(segment[0], dict):
        (segment,) = segment
    elif isinstance(segment, list):
        segment = mask_tools.merge(mask_tools.frPyObjects(segment, height, width))
    return mask_tools.decode(segment).astype(bool)


def as_list(value):
    return value if isinstance(value, list) else [value]


def layout_answers(refs, instances):
    """Yield the image, the text, and the merged mask of every sentence of a layout."""
    images = {image["id"]: image for image in instances["images"]}
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    for ref in refs:
        image = images[ref["image_id"]]
        height, width = image["height"], image["width"]
        union = np.zeros((height, width), bool)
        for i in as_list(ref["ann_id"]):
            if i != -1 and ref.get("source") != "zero":
                union |= decode(annotations[i]["segmentation"], height, width)
        for sentence in ref["sentences"]:
            mask = union if sentence.get("exist", True) else np.zeros_like(union)
            yield image["file_name"], sentence["raw"], mask.tobytes()


def row_answers(rows, splits):
    """Yield the same for the rows of refshapes.jsonl of these splits."""
    for row in rows:
        if row["split"] in splits:
            union = np.zeros(row["size"], bool)
            for target in row["targets"] or []:
                union |= mask_tools.decode(target).astype(bool)
            yield row["image"].removeprefix("images/"), row["text"], union.tobytes()


@pytest.mark.parametrize("folder", ["grefcoco", "ref-zom"])
def test_layouts_with_all_expressions(small, folder):
    _, rows, refs, instances = small
    splits = REFS[folder][1]
    assert sorted(layout_answers(refs[folder], instances[folder])) == sorted(row_answers(rows, splits))


def test_layouts_with_expressions_about_one_instance(small):
    _, rows, refs, instances = small
    singles = [row for row in rows if len(row["instance_ids"]) == 1]
    expected = sorted(row_answers(singles, REFS["refcoco"][1]))
    assert sorted(layout_answers(refs["refcoco"], instances["refcoco"])) == expected
    plus = set(layout_answers(refs["refcoco+"], instances["refcoco+"]))
    assert plus < set(expected)
    assert not [text for _, text, _ in plus if POSITION.search(text)]
    positions = [row for row in singles if row["tags"]["skill"] in ("position", "ordinal")]
    number = sum(row["split"] in REFS["refcoco"][1] for row in positions)
    assert len(plus) == len(expected) - number


def test_negatives_refer_to_nothing(small):
    """Positive sentences are RefCOCO's. No negative has the text of an expression with a target in its image."""
    _, rows, refs, instances = small
    positive = [(image, text) for image, text, mask in layout_answers(refs["refcoco"], instances["refcoco"])]
    exist, negatives = [], []
    for ref in refs["rrefcoco"]:
        image = f"{ref['split']}_{ref['image_id'] % 100_000:06d}.png"
        assert ref["sentences"][0]["exist"] is True
        assert ref["sentences"][-1]["exist"] is False, "the official evaluator divides by the number of negatives"
        for sentence in ref["sentences"]:
            (exist if sentence["exist"] else negatives).append((image, sentence["raw"]))
    assert sorted(exist) == sorted(entry for entry in positive if entry[0].split("_")[0] in ("train", "val"))
    assert len(negatives) > len(exist) / 2
    texts = {(row["image"].removeprefix("images/"), row["text"]) for row in rows if row["targets"]}
    assert not texts & set(negatives)
    assert len(set(negatives)) == len(negatives)


def test_negatives_with_a_changed_color_or_kind():
    """A negative changes the color or the kind of its object, and no shape of the image has this pair."""
    sample = make_image(SMALL, "val", 0)
    shape = sample.scene.shapes[0]
    shown = {(other.color, other.kind) for other in sample.scene.shapes}
    nouns = {word: kind for kind, forms in KIND_NOUNS.items() for form in forms for word in form}
    colors = {word: color for color, words in ADJECTIVES["color"].items() for word in words}
    found, texts = set(), set()
    for seed in range(150):
        text = _absent_pair(sample, shape.id, Stream(seed), SMALL.rule("val"), texts)
        assert text not in texts
        texts |= {text} if seed < 5 else set()
        words = text.split()
        (color,), (kind,) = ([table[word] for word in words if word in table] for table in (colors, nouns))
        assert (color, kind) not in shown and (color == shape.color) != (kind == shape.kind)
        found.add((color, kind))
    assert not found & set(SMALL.held_out) and len(found) > 5


def test_scene_with_every_pair_has_no_negative(make_scene):
    rows = [(kind, color, "small", 20, 50) for kind in KINDS for color in COLORS if "red" in color or kind == "star"]
    sample = replace(make_image(SMALL, "val", 0), scene=make_scene(*rows))
    star = next(shape.id for shape in sample.scene.shapes if (shape.color, shape.kind) == ("red", "star"))
    with pytest.raises(ValueError, match="val_000000 shows every"):
        _absent_pair(sample, star, Stream(0), NO_RULE, set())


def test_rles_in_lists(small):
    """The official readers of two layouts look at `segmentation[0]`, so an RLE must be in a list there."""
    _, _, _, instances = small
    for folder, listed_rles in (("ref-zom", True), ("rrefcoco", True), ("grefcoco", False)):
        segments = [entry["segmentation"] for entry in instances[folder]["annotations"]]
        rles = [segment for segment in segments if isinstance(segment, dict) or isinstance(segment[0], dict)]
        assert rles and all(isinstance(rle, list) == listed_rles for rle in rles)


def test_long_sentences(small):
    _, rows, refs, instances = small
    masks = {(image, mask) for image, _, mask in row_answers(rows, REFS["refcocog"][1])}
    found = list(layout_answers(refs["refcocog"], instances["refcocog"]))
    assert {(image, mask) for image, _, mask in found} <= masks
    assert np.mean([len(text.split()) for _, text, _ in found]) > 8
    assert all(re.search("that (is|are|can)|which is", text) for _, text, _ in found)


@pytest.mark.parametrize("folder", REFS)
def test_fields(small, folder):
    meta, _, refs, instances = small
    splits = REFS[folder][1]
    closed = set(word_list())
    annotations = {entry["id"]: entry for entry in instances[folder]["annotations"]}
    for ref in refs[folder]:
        fields = ["ann_id", "category_id", "file_name", "image_id", "ref_id", "sent_ids", "sentences", "split"]
        more = {"ref-zom": ["source"], "grefcoco": ["no_target"]}.get(folder, [])
        assert sorted(ref) == sorted([*fields, *more])
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        for sentence in ref["sentences"]:
            assert set(sentence) - {"exist"} == {"sent_id", "sent", "raw", "tokens"}
            assert sentence["raw"] == sentence["sent"] == " ".join(sentence["tokens"])
            assert set(sentence["tokens"]) <= closed
        for i, category in zip(as_list(ref["ann_id"]), as_list(ref["category_id"]), strict=True):
            assert (i == -1) == (category == -1) and (i != -1 or folder != "ref-zom")
            assert i == -1 or annotations[i]["category_id"] == category
            assert i == -1 or annotations[i]["image_id"] == ref["image_id"]
    assert {ref["split"] for ref in refs[folder]} == splits == set(meta["layouts"][folder])
    for ids in ([r["ref_id"] for r in refs[folder]], [i for r in refs[folder] for i in r["sent_ids"]]):
        assert len(set(ids)) == len(ids)
        assert max(ids) < 2**31
    for split, counts in meta["layouts"][folder].items():
        refs_of_split = [ref for ref in refs[folder] if ref["split"] == split and ref["sentences"]]
        assert counts["images"] == SMALL.images[split]
        assert (counts["refs"], counts["sentences"]) == (
            len(refs_of_split),
            sum(len(ref["sentences"]) for ref in refs_of_split),
        )


def test_quirks(small):
    _, _, refs, _ = small
    ref = refs["refcoco"][0]
    assert ref["file_name"] == f"train_000000_{ref['ann_id']}.png"  # no such file exists, as in REFER
    none = [ref for ref in refs["grefcoco"] if ref["ann_id"] == [-1]]
    assert none and all(ref["category_id"] == [-1] and len(ref["sentences"]) == 1 for ref in none)
    assert all(isinstance(ref["ann_id"], list) for ref in refs["grefcoco"])
    assert all(ref["no_target"] is (ref["ann_id"] == [-1]) for ref in refs["grefcoco"])
    empty = [ref for ref in refs["grefcoco"] if not ref["sentences"]]  # as in the released file
    assert 0 < len(empty) < 0.1 * len(refs["grefcoco"]) and all(len(ref["ann_id"]) == 2 for ref in empty)
    kinds = {ref["source"]: type(ref["ann_id"]) for ref in refs["ref-zom"]}
    assert kinds == {"one": int, "many": list, "zero": list}


@pytest.mark.parametrize("folder", REFS)
def test_instances(small, folder):
    _, _, _, instances = small
    table = instances[folder]
    assert sorted(table) == ["annotations", "categories", "images", "info", "licenses"]
    names = {category["id"]: category["name"] for category in table["categories"]}
    by_image = {}
    for entry in table["annotations"]:
        by_image.setdefault(entry["image_id"], []).append(entry)
        assert names[entry["category_id"]] == entry["attributes"]["kind"]
    assert sum(SMALL.images[split] for split in REFS[folder][1]) == len(table["images"]) == len(by_image)
    for image in table["images"]:
        split, index = image["file_name"].removesuffix(".png").split("_")
        sample = make_image(SMALL, split, int(index))
        assert image["id"] == sample.image_id
        entries = by_image[image["id"]]
        for entry, mask, shape in zip(entries, sample.masks, sample.scene.shapes, strict=True):
            assert (decode(entry["segmentation"], image["height"], image["width"]) == mask).all()
            assert entry["area"] == mask.sum() and entry["iscrowd"] == 0
            x, y, w, h = map(int, entry["bbox"])
            assert mask[y : y + h, x : x + w].sum() == mask.sum()
            assert mask[y].any() and mask[y + h - 1].any() and mask[:, x].any() and mask[:, x + w - 1].any()
            assert entry["attributes"]["colour"] == shape.color


# Held-out pairs -------------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_in_no_other_split(small):
    """No scene and no text shows them. In the split heldout, every phrase with referents names the pair of each."""
    pairs = set(SMALL.held_out)
    for split, count in SMALL.images.items():
        for index in range(count):
            sample = make_image(SMALL, split, index)
            shown = {(shape.color, shape.kind) for shape in sample.scene.shapes}
            assert bool(shown & pairs) == (split == "heldout")
            for expression in sample.expressions:
                named = set(named_pairs(expression.meaning))
                assert bool(named & pairs) == (split == "heldout")
                for i in expression.referents if split == "heldout" else ():
                    shape = sample.scene.shapes[i]
                    assert (shape.color, shape.kind) in pairs & named


def test_held_out_pairs_are_in_no_text_of_the_layouts(small):
    """A held-out color does not come right before the noun of its kind."""
    _, rows, refs, _ = small
    texts = [row["text"] for row in rows if row["split"] != "heldout"]
    texts += [sentence["raw"] for table in refs.values() for ref in table for sentence in ref["sentences"]]
    banned = re.compile("red star|blue (square|box)|green (circle|disc)|yellow triangle|(purple|violet) (diam|rhomb)|"
                        "orange (cross|plus)")  # fmt: skip
    assert not [text for text in texts if banned.search(text)]
    assert [row for row in rows if row["split"] == "heldout" and banned.search(row["text"])]


def test_splits_by_kind_of_referent(small):
    """testA refers to triangles, stars, and diamonds, testB to circles, squares, and crosses."""
    for split, kinds in (("testA", {"triangle", "star", "diamond"}), ("testB", {"circle", "square", "cross"})):
        samples = [make_image(SMALL, split, index) for index in range(SMALL.images[split])]
        found = {s.scene.shapes[i].kind for s in samples for e in s.expressions for i in e.referents}
        assert found <= kinds and len(found) >= 2


# Parts ----------------------------------------------------------------------------------------------------------------


def test_trace_by_hand():
    """The border of an L of three pixels turns at six corners."""
    mask = np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    assert trace(mask) == [[1, 1, 2, 1, 2, 2, 3, 2, 3, 3, 1, 3]]
    assert trace(np.zeros((3, 3), bool)) == []
    assert trace(np.ones((1, 1), bool)) == [[0, 0, 1, 0, 1, 1, 0, 1]]


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_that_touch_at_a_corner_are_two_parts(flip):
    mask = np.eye(2, dtype=bool)
    polygons = trace(mask[::-1] if flip else mask)
    assert sorted(len(polygon) for polygon in polygons) == [8, 8]


@settings(max_examples=150, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_segmentations_decode_to_the_mask(mask):
    (rle,) = encode_masks(mask[None])
    segment = segmentation(mask, rle)
    assert (decode(segment, *mask.shape) == mask).all()
    assert isinstance(segment, dict) or min(map(len, segment)) >= 8


def test_masks_with_holes_are_run_lengths():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (rle,) = encode_masks(mask[None])
    assert len(trace(mask)) == 2
    assert segmentation(mask, rle) is rle


def test_expressions_with_positions():
    """Positions and ordinals name a place in the image. The other skills do not."""
    found = {}
    for index in range(12):
        for expression in make_image(SMALL, "train", index).expressions:
            found.setdefault(uses_position(expression), set()).add(expression.form)
    assert found[True] == {"position", "ordinal"}
    assert not found[False] & found[True]


def test_long_sentence_by_hand(make_scene):
    """The square is the only other shape, so it is the anchor of the star on its left."""
    scene = make_scene(("star", "blue", "small", 20, 50, "striped"), ("square", "red", "large", 70, 50))
    texts = {long_sentence(Meaning((Phrase(Match(kind="star")),)), scene, Stream(seed), NO_RULE) for seed in range(60)}
    assert all(re.fullmatch(r"the [a-z ]*star (that|which) .+", text) for text in texts)
    assert any(re.search("star .* to the left of the [a-z ]*(square|box)$", text) for text in texts)
    assert not any("right" in text for text in texts)
