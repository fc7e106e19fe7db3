from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.datasets.collate import collate_samples
from refseg.datasets.masks import decode
from refseg.datasets.tokenizers import Tokenized
from refseg.datasets.transforms import (
    LoadImage,
    LoadText,
    PackSample,
    Photometric,
    RandomCrop,
    RandomFlip,
    Resize,
    ScaleJitter,
    TransformState,
)
from refseg.errors import ConfigError
from refseg.records import AnnotatedInstance, Expression, Record
from transform_states import make_state, packed

OVERLAPPING = [[2, 2, 10, 2, 10, 10, 2, 10], [5, 5, 15, 5, 15, 15, 5, 15]]  # 139 pixels, 114 of them covered once


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_image_masks_referents_and_boxes() -> None:
    """Resize 4 x 6 to 8 x 12. The annotated box (1, 1, 2 wide, 2 high) becomes (2, 2, 6, 6). The second instance has no
    box: its mask at x 3..5, y 0..1 gives (6, 0, 10, 2). The third is not referred to."""
    shapes = [[[1, 1, 3, 1, 3, 3, 1, 3]], [[3, 0, 5, 0, 5, 1, 3, 1]], [[0, 0, 1, 0, 1, 1]]]
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    state = make_state(image, shapes, [("a", (1,)), ("b", ()), ("c", (0, 1))], boxes=[(1, 1, 2, 2), None, None])
    assert np.array_equal(packed(state).image.numpy(), image.transpose(2, 0, 1))
    sample = packed(Resize(size=(8, 12))(state))
    assert sample.instance_masks.dtype == torch.bool and sample.instance_masks.sum((1, 2)).tolist() == [16, 8]
    assert sample.instance_boxes.dtype == torch.float32
    assert sample.instance_boxes.tolist() == [[2, 2, 6, 6], [6, 0, 10, 2]]
    assert sample.referents.tolist() == [[False, True], [False, False], [True, True]]
    assert sample.meta.content_size == (8, 12) and sample.meta.original_size == (4, 6)


def test_no_target() -> None:
    sample = packed(make_state(blank(4, 6), [], [("none", ())]), with_ground_truth=True)
    assert sample.instance_masks.shape == (0, 4, 6) and sample.instance_boxes.shape == (0, 4)
    assert sample.referents.shape == (1, 0)
    assert sample.ground_truth.record.instances == [] and sample.ground_truth.referents == [()]
    batch = collate_samples([sample, sample])["batch"]
    assert [boxes.shape for boxes in batch.instance_boxes] == [(0, 4), (0, 4)] and batch.no_target().all()


def test_boxes_are_cropped_with_the_image() -> None:
    """Keep the left 10 of 20 columns: x 4..16 becomes 4..10. A box outside is replaced by the box of the mask."""
    shape = [[4, 2, 16, 2, 16, 6, 4, 6]]
    state = make_state(blank(10, 20), [shape, shape], [("a", (0,)), ("b", (1,))], boxes=[(4, 2, 12, 4), (15, 2, 1, 4)])
    state.move(state.image[:, :10], np.eye(3))
    assert packed(state).instance_boxes.tolist() == [[4, 2, 10, 6], [4, 2, 10, 6]]


def test_ground_truth() -> None:
    """The ground truth has the original size. Its boxes are as annotated or around the mask: x, y, width, height."""
    shapes = [[[1, 1, 3, 1, 3, 3, 1, 3]], [[3, 0, 5, 0, 5, 1, 3, 1]]]
    state = make_state(blank(4, 6), shapes, [("a", (1,)), ("c", (0, 1))], boxes=[(1.5, 1, 1, 2), None])
    truth = packed(Resize(size=(3, 3))(state), with_ground_truth=True).ground_truth
    assert [decode(rle).sum() for rle in truth.instance_rles] == [4, 2]
    assert truth.referents == [(1,), (0, 1)]
    assert [instance.box for instance in truth.record.instances] == [(1.5, 1, 1, 2), (3, 0, 2, 1)]


def test_ground_truth_holds_only_referents() -> None:
    """Instance 0 of three is not referred to, so the others become 0 and 1. The record is unchanged."""
    shapes = [[[x, 1, x + 2, 1, x + 2, 3]] for x in (0, 1, 2)]
    state = make_state(blank(4, 6), shapes, [("a", (2,)), ("b", (1, 2))])
    truth = packed(state, with_ground_truth=True).ground_truth
    assert [instance.segmentation for instance in truth.record.instances] == shapes[1:]
    assert truth.referents == [(1,), (0, 1)] and [e.referents for e in state.expressions] == [(2,), (1, 2)]


def test_overlap_applies_to_the_input_only() -> None:
    for overlap, area in (("union", 139), ("exclude", 114)):
        sample = packed(
            make_state(blank(20, 20), [OVERLAPPING], [("a", (0,))]), overlap=overlap, with_ground_truth=True
        )
        assert sample.instance_masks.sum() == area
        assert decode(sample.ground_truth.instance_rles[0]).sum() == 139, "protocols decide about the ground truth"


def test_masks_are_those_of_lavt() -> None:
    """LAVT draws at the original size, drops pixels that are covered twice, and resizes with Pillow."""
    shape = [[3.3, 7.1, 90.2, 20.8, 70.7, 88.1, 20.5, 60.9], [50, 40, 120, 50, 100, 95, 55.5, 90]]
    state = Resize(size=(96, 96), antialias=True)(make_state(blank(107, 128), [shape], [("a", (0,))]))
    mask = packed(state, overlap="exclude", masks_at="original").instance_masks[0].numpy()
    decoded = coco_mask.decode(coco_mask.frPyObjects(shape, 107, 128)).sum(2)
    expected = Image.fromarray((decoded == 1).astype(np.uint8)).resize((96, 96), Image.Resampling.NEAREST)
    assert (decoded == 2).any() and np.array_equal(mask, np.asarray(expected).astype(bool))


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(size=(2, 2), chance=0.0),
        RandomFlip(chance=0.0),
        ScaleJitter(size=(4, 6), scale=(1, 1)),
    ],
)
def test_ground_truth_rejects_augmented_geometry_at_the_first_sample(transform: object) -> None:
    """The pipeline is rejected even if the transform left this sample unchanged."""
    state = transform(make_state(blank(4, 6), [], [("a", ())]))
    with pytest.raises(ConfigError, match=f"cannot follow {type(transform).__name__}.*except Resize"):
        packed(state, with_ground_truth=True)


def test_invalid_pipelines_and_arguments() -> None:
    with pytest.raises(ConfigError, match="needs LoadText before PackSample"):
        PackSample()(make_state(blank(4, 6), [], [("a", ())]))
    state = make_state(blank(4, 6), [], [("left", ())])
    state.tokens = Tokenized([[1]], [[0]], [()])
    with pytest.raises(ConfigError, match="RandomFlip changes texts: put it before LoadText"):
        RandomFlip(chance=1)(state)
    state.image = None
    with pytest.raises(ConfigError, match="needs LoadImage"):
        Resize(size=(4, 4))(state)
    with pytest.raises(ValueError, match=r"PackSample\.overlap"):
        PackSample(overlap="both")
    with pytest.raises(ValueError, match=r"PackSample\.masks_at"):
        PackSample(masks_at="output")


@pytest.mark.parametrize("masks_at", ["input", "original"])
def test_one_pixel_through_all_transforms(masks_at: str, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "dot.png")
    (tmp_path / "words.txt").write_text("left dot")
    instance = AnnotatedInstance("0", [[0, 0, 1, 0, 1, 1, 0, 1]], None, (0, 0, 1, 1))
    expressions = [Expression("0", "the left dot", (0,)), Expression("1", "nothing", ())]
    record = Record("dot", str(tmp_path / "dot.png"), (1, 1), [instance], expressions)
    transforms = [
        LoadImage(),
        Photometric(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1),
        RandomCrop(fraction=(0.1, 0.9)),
        RandomFlip(chance=1),
        ScaleJitter(size=(5, 5)),
        Resize(size=(4, 4)),
        LoadText(tokenizer=dict(word_list=str(tmp_path / "words.txt"))),
        PackSample(masks_at=masks_at),
    ]
    for seed in range(10):
        state = TransformState(record, list(expressions), np.random.default_rng(seed))
        for transform in transforms:
            state = transform(state)
        assert state.image.shape == (3, 4, 4) and state.instance_masks.shape == (1, 4, 4)
        assert state.instance_masks.any() and state.referents.tolist() == [[True], [False]]
        assert "right" in state.meta.texts[0]
