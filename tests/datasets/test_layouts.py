"""Images, phrases, splits and masks are the same after a round trip through any layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refer_files import SIZE, annotation, image, ref, square, write_refer
from refseg.datasets.annotations import open_annotations
from refseg.datasets.masks import decode, to_rle
from refseg.datasets.readers import read_jsonl, read_refer
from refseg.records import Annotations, Record

Content = dict[tuple[str, str, str | None], frozenset[bytes]]


def content(records: list[Record]) -> Content:
    """Return the masks of each phrase as bytes, by (image, phrase, split)."""
    contents: Content = {}
    for record in records:
        masks = [np.packbits(decode(to_rle(i.segmentation, record.size))).tobytes() for i in record.instances]
        for expression in record.expressions:
            key = (Path(record.image_path).name, expression.text, expression.split)
            assert key not in contents, key
            contents[key] = frozenset(masks[index] for index in expression.referents)
    return contents


# Random content, written into every layout ----------------------------------------------------------------------------


def forms(mask: np.ndarray, polygon: list[float]) -> list:
    """Return one mask in every form of COCO-style files."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": list(SIZE), "counts": rle["counts"].decode()}
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return [[polygon], [[0, 0, 1, 1], polygon], text, [text], {"size": list(SIZE), "counts": counts}]


@st.composite
def sets(draw: st.DrawFn) -> list[dict]:
    """Draw a dict for each image: squares, and expressions as (text, split, referents)."""
    images = []
    for _ in range(draw(st.integers(1, 3))):
        squares = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), min_size=1, max_size=4, unique=True))
        referents = st.lists(st.integers(0, len(squares) - 1), unique=True, max_size=3)
        split = st.sampled_from(["train", "val"])
        texts = draw(st.lists(st.text("abc dé\"\\'<ü", min_size=1).filter(str.strip), max_size=4, unique=True))
        expressions = [(text, draw(split), draw(referents)) for text in texts]
        images.append({"squares": squares, "expressions": expressions})
    return images


def write_everywhere(folder: Path, images: list[dict], form: int, protocol: int) -> dict[str, Annotations]:
    annotations, refs, rows = [], [], []
    for number, one in enumerate(images, start=1):
        ids = []
        for x, y in one["squares"]:
            polygon = square(x, y)
            mask = decode(to_rle([polygon], SIZE))
            ids.append(len(annotations) + 1)
            annotations.append(annotation(ids[-1], number, segmentation=forms(mask, polygon)[form]))
        for text, split, referents in one["expressions"]:
            chosen = [ids[i] for i in referents]
            refs.append(ref(len(refs) + 1, chosen or [-1], text, image_id=number, split=split))
            targets = [annotations[i - 1]["segmentation"] for i in chosen]
            targets = (
                [target[0] if isinstance(target[0], dict) else target for target in targets] if form == 3 else targets
            )
            rows.append({"image": image(number)["file_name"], "size": list(SIZE), "text": text, "split": split,
                         "targets": targets or None, "instance_ids": chosen})  # fmt: skip
    files = [image(number) for number in range(1, len(images) + 1)]
    zom = [dict(r, source="zero" if r["ann_id"] == [-1] else "many", ann_id=r["ann_id"]) for r in refs]
    layouts = {
        "grefcoco": write_refer(folder / "g", refs, images=files, annotations=annotations, name="grefs(unc).json"),
        "ref-zom": write_refer(folder / "z", zom, images=files, annotations=annotations, name="refs(final).p"),
        "pickle": write_refer(folder / "p", refs, images=files, annotations=annotations, protocol=protocol),
    }
    contents = {name: read_refer(refs=at["refs"], instances=at["instances"]) for name, at in layouts.items()}
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {**contents, "jsonl": read_jsonl(file=folder / "own.jsonl")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(sets(), st.integers(0, 4), st.sampled_from([0, 2, 4]))
def test_content_is_equal_in_every_layout(tmp_path: Path, images: list[dict], form: int, protocol: int) -> None:
    expected: Content = {}
    for number, one in enumerate(images, start=1):
        masks = [np.packbits(decode(to_rle([square(x, y)], SIZE))).tobytes() for x, y in one["squares"]]
        for text, split, referents in one["expressions"]:
            expected[image(number)["file_name"], text, split] = frozenset(masks[i] for i in referents)
    for name, contents in write_everywhere(tmp_path, images, form, protocol).items():
        assert not contents.problems, name
        assert content(contents.records) == expected, name


# RefShapes, written by its generator ----------------------------------------------------------------------------------

LAYOUTS = {
    "refcoco": "refs(unc).p",
    "refcoco+": "refs(unc).p",
    "refcocog": "refs(umd).p",
    "grefcoco": "grefs(unc).json",
    "ref-zom": "refs(final).p",
    "rrefcoco": "refs(unc).p",
}


def read_layout(root: Path, name: str) -> list[Record]:
    store = open_annotations(
        format="refer", refs=str(root / name / LAYOUTS[name]), instances=str(root / name / "instances.json")
    )
    assert not [problem for problem in store.problems if not problem.is_notice]
    return [store.record(i) for i in range(len(store))]


@pytest.fixture(scope="module")
def generated(refshapes_tiny: Path) -> Content:
    return content(read_jsonl(file=refshapes_tiny / "refshapes.jsonl").records)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "refcocog"])
def test_refshapes_is_equal_in_every_layout(refshapes_tiny: Path, generated: Content, name: str) -> None:
    """Compare all phrases, but R-RefCOCO's positives only. RefCOCO's layouts have phrases with one referent only."""
    records = read_layout(refshapes_tiny, name)
    for record in records:
        record.expressions = [e for e in record.expressions if e.tags.get("exist", True)]
    contents = content(records)
    splits = {split for _, _, split in contents}
    wanted = {key: masks for key, masks in generated.items() if key[2] in splits}
    if name in ("grefcoco", "ref-zom"):
        assert contents == wanted
    else:
        single = {key: masks for key, masks in wanted.items() if len(masks) == 1}
        assert contents.items() <= single.items()
        assert contents == single or name == "refcoco+"


def test_grefcoco_has_refs_without_sentences(refshapes_tiny: Path) -> None:
    """The generator writes some, as the released file has them. They are skipped and counted."""
    refs = json.loads((refshapes_tiny / "grefcoco" / LAYOUTS["grefcoco"]).read_text())
    empty = sum(not ref["sentences"] for ref in refs)
    store = open_annotations(
        format="refer",
        refs=str(refshapes_tiny / "grefcoco" / LAYOUTS["grefcoco"]),
        instances=str(refshapes_tiny / "grefcoco/instances.json"),
    )
    (notice,) = store.problems
    assert 0 < empty < 0.05 * len(refs) and notice.message.startswith(f"{empty} refs without sentences are skipped")


def test_long_sentences_refer_to_the_same_instances(refshapes_tiny: Path, generated: Content) -> None:
    """RefCOCOg's layout has other, longer phrases about instances of the JSONL file."""
    contents = content(read_layout(refshapes_tiny, "refcocog"))
    known = {masks for masks in generated.values() if len(masks) == 1}
    assert contents and sum(masks in known for masks in contents.values()) > 0.5 * len(contents)
    assert all(len(masks) == 1 for masks in contents.values())
    words = [np.mean([len(text.split()) for _, text, _ in phrases]) for phrases in (contents, generated)]
    assert words[0] > words[1] + 2


def test_negatives_of_r_refcoco_refer_to_nothing(refshapes_tiny: Path) -> None:
    for record in read_layout(refshapes_tiny, "rrefcoco"):
        for expression in record.expressions:
            assert bool(expression.referents) == expression.tags["exist"]
