import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from refseg.datasets.collate import collate_samples
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.samplers import SampleKey
from refseg.errors import DataError
from refseg.structures import Sample

LOWER_RIGHT = [[2, 2, 4, 2, 4, 4, 2, 4]]
UPPER_LEFT = [[0, 0, 2, 0, 2, 2, 0, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a 4 x 4 image with 2 instances and 4 expressions, and a 4 x 6 image with one of each."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = (1, 2, 3)  # BGR
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((4, 6, 3), np.uint8))
    a, b = {"image": "a.png", "size": [4, 4]}, {"image": "b.png", "size": [4, 6]}
    rows = [
        {**a, "text": "one", "targets": [UPPER_LEFT], "instance_ids": [1]},
        {**a, "text": "two", "targets": [LOWER_RIGHT], "instance_ids": [2]},
        {**a, "text": "both", "targets": [UPPER_LEFT, LOWER_RIGHT], "instance_ids": [1, 2]},
        {**a, "text": "none", "targets": None},
        {**b, "text": "one", "targets": [UPPER_LEFT], "instance_ids": [1]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "words.txt").write_text("one two both none")
    return tmp_path


def dataset(folder: Path, *, resize: dict | None = None, truth: bool = False, **kwargs: object) -> ReferringDataset:
    pipeline = [
        dict(type="LoadImage"),
        dict(type="Resize", **(resize or dict(size=(4, 4)))),
        dict(type="LoadText", tokenizer=dict(word_list=str(folder / "words.txt"))),
        dict(type="PackSample", with_ground_truth=truth),
    ]
    annotations = dict(format="jsonl", file=str(folder / "rows.jsonl"))
    return ReferringDataset(annotations=annotations, pipeline=pipeline, **kwargs)


def test_sample(folder: Path) -> None:
    sample = dataset(folder, truth=True)[0]
    assert isinstance(sample, Sample)
    assert sample.image[:, 0, 0].tolist() == [3, 2, 1]  # RGB
    assert sample.instance_masks.sum((1, 2)).tolist() == [4, 4]
    assert sample.instance_masks[0, :2, :2].all() and sample.instance_masks[1, 2:, 2:].all()
    assert sample.referents.tolist() == [[True, False], [False, True], [True, True], [False, False]]
    assert sample.token_ids[2] == [2, 6, 3] and sample.word_of[2] == [-1, 0, -1]
    assert sample.ground_truth.referents == [(0,), (1,), (0, 1), ()]
    assert sample.meta.texts == ("one", "two", "both", "none")


def test_sample_has_masks_of_its_expressions_only(folder: Path) -> None:
    data = dataset(folder, expressions_per_image=1)
    seen = {data[SampleKey(0, epoch)].meta.texts[0]: data[SampleKey(0, epoch)] for epoch in range(30)}
    assert set(seen) == {"one", "two", "both", "none"}, "each epoch draws anew"
    assert {text: len(sample.instance_masks) for text, sample in seen.items()} == {
        "one": 1,
        "two": 1,
        "both": 2,
        "none": 0,
    }


def test_draws_depend_on_the_key_only(folder: Path) -> None:
    first, second = (dataset(folder, expressions_per_image=2) for _ in range(2))
    for key in (SampleKey(0, 3, 7), SampleKey(0, 4, 7), SampleKey(0, 3, 8)):
        assert first[key].meta.texts == second[key].meta.texts == first[key].meta.texts


def test_resize_modes(folder: Path) -> None:
    """b.png is 4 x 6. For a size of 8 x 8, `keep` scales it by 8/6 to 5 x 8, and `squash` makes it 8 x 8."""
    assert dataset(folder, resize=dict(size=(8, 8)))[1].image.shape == (3, 8, 8)
    fitted = dataset(folder, resize=dict(size=(8, 8), mode="keep"))[1]
    assert fitted.image.shape == (3, 5, 8) and fitted.instance_masks.shape == (1, 5, 8)
    assert fitted.meta.content_size == (5, 8) and fitted.meta.original_size == (4, 6)


def test_collate_pads_images_and_shares_texts(folder: Path) -> None:
    """The texts are one, two, both, none, and one again: 4 distinct texts."""
    data = dataset(folder, resize=dict(size=(4, 8), mode="keep"))
    batch = collate_samples([data[0], data[1]])["batch"]
    assert batch.images.shape == (2, 3, 4, 6)  # 4 x 4 stays, 4 x 6 stays
    assert batch.pixel_mask.sum((1, 2)).tolist() == [16, 24]
    assert batch.image_of.tolist() == [0, 0, 0, 0, 1]
    assert batch.tokens.text_of.tolist() == [0, 1, 2, 3, 0]
    assert batch.tokens.ids.shape == (4, 3) and batch.tokens.word_mask.all()
    assert batch.tokens.word_of.tolist() == [[-1, 0, -1]] * 4
    assert [masks.shape[1:] for masks in batch.instance_masks] == [(4, 6), (4, 6)]
    assert batch.merged_masks().sum((1, 2)).tolist() == [4, 4, 8, 0, 4]


def test_texts_with_equal_tokens_but_other_words_have_their_own_rows(folder: Path) -> None:
    """The tokens of "one,two" (one word) and "one , two" (three words) are equal. "one" is padded."""
    rows = [
        {"image": "a.png", "size": [4, 4], "text": text, "targets": None} for text in ("one,two", "one , two", "one")
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokens = collate_samples([dataset(folder)[0]])["batch"].tokens
    assert tokens.ids[0].tolist() == tokens.ids[1].tolist() and tokens.text_of.tolist() == [0, 1, 2]
    assert tokens.word_of.tolist() == [[-1, 0, 0, 0, -1], [-1, 0, 1, 2, -1], [-1, 0, -1, -1, -1]]
    assert tokens.word_of.dtype == torch.long


def test_bad_samples(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"not an image")
    data = dataset(folder, max_bad_samples=1)
    assert data[0].meta.image_id == "b.png" and data[0].meta.image_id == "b.png"
    assert data.bad_samples == {0}
    with pytest.raises(DataError, match=r"image a\.png: image is corrupt.*a\.png"):
        dataset(folder)[0]
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match="more than 1 bad samples"):
        data[1]


def test_image_size_differs_from_the_annotation(folder: Path) -> None:
    cv2.imwrite(str(folder / "a.png"), np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"has size \[5, 4\], its annotation says \[4, 4\]"):
        dataset(folder)[0]


def test_invalid_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown annotations\.format 'cvs'"):
        ReferringDataset(annotations=dict(format="cvs"), pipeline=[])
    with pytest.raises(ValueError, match="expressions_per_image"):
        dataset(folder, expressions_per_image=0)
    with pytest.raises(ValueError, match=r"Resize\.mode"):
        dataset(folder, resize=dict(size=(4, 4), mode="stretch"))


def test_workers_return_the_same_batches(folder: Path) -> None:
    data = dataset(folder, expressions_per_image=1)
    keys = [SampleKey(i, 2, 3) for i in (0, 1)]
    loaded = [
        next(iter(torch.utils.data.DataLoader(data, 2, sampler=keys, collate_fn=collate_samples, num_workers=n)))[
            "batch"
        ]
        for n in (0, 1)
    ]
    assert torch.equal(loaded[0].images, loaded[1].images)
    assert loaded[0].metas == loaded[1].metas
