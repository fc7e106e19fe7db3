import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from refseg.apis.dummy import dummy_batch
from refseg.errors import ConfigError
from refseg.evaluation.protocols import get_protocol
from refseg.models.postprocess import PostProcess, finish, reject, restore_masks
from refseg.structures import Prediction, SampleMeta

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def meta(original: tuple[int, int], content: tuple[int, int]) -> SampleMeta:
    return SampleMeta("i", "i.png", original, content, ("e",), ("text",))


@given(sizes, sizes, sizes, st.integers(0, 5), st.integers(1, 200))
def test_chunks_change_nothing_and_sizes_are_right(
    logits_size: tuple, content: tuple, original: tuple, count: int, max_elements: int
) -> None:
    logits = torch.randn(count, *logits_size, generator=torch.Generator().manual_seed(0))
    settings = dict(input_size=(content[0] + 2, content[1] + 1), meta=meta(original, content))
    whole = restore_masks(logits, **settings)
    assert whole.shape == (count, *original) and whole.dtype is torch.bool
    assert torch.equal(whole, restore_masks(logits, **settings, max_elements=max_elements))


def test_padding_is_cropped_before_the_resize() -> None:
    """Content 2 x 2 of a 4 x 4 input is all positive, the padding all negative: nothing of it may leak in."""
    logits = torch.full((1, 4, 4), -9.0)
    logits[:, :2, :2] = 9.0
    assert restore_masks(logits, input_size=(4, 4), meta=meta((8, 8), (2, 2))).all()


def test_same_as_interpolating_probabilities_at_half() -> None:
    logits = torch.randn(3, 5, 7)
    expected = F.interpolate(logits[None], (20, 30), mode="bilinear")[0].sigmoid() >= 0.5
    assert torch.equal(restore_masks(logits, input_size=(20, 30), meta=meta((20, 30), (20, 30))), expected)


def test_the_threshold_is_inclusive() -> None:
    """A probability of 3/4 (logit ln 3) is in the mask at 0.75 and not at 0.76; a logit of 0 is in at 0.5."""
    logits = torch.tensor([[[math.log(3), 0.0]]], dtype=torch.float64).float()
    settings = dict(input_size=(1, 2), meta=meta((1, 2), (1, 2)))
    assert restore_masks(logits, **settings, threshold=0.74).tolist() == [[[True, False]]]
    assert restore_masks(logits, **settings, threshold=0.76).tolist() == [[[False, False]]]
    assert restore_masks(logits, **settings, threshold=0.5).tolist() == [[[True, True]]]


def test_no_target_rules() -> None:
    """Masks of 0, 3 and 9 pixels; the head says 0.9, 0.5, 0.1."""
    masks = torch.zeros(3, 3, 3, dtype=torch.bool)
    masks[1, 0] = True
    masks[2] = True
    probs = torch.tensor([0.9, 0.5, 0.1])
    assert reject(masks, probs, PostProcess()).tolist() == [True, False, False]
    assert reject(masks, probs, PostProcess(no_target_threshold=0.05)).tolist() == [True, True, True]
    assert reject(masks, probs, PostProcess(no_target="area", min_area=4)).tolist() == [True, True, False]
    assert reject(masks, None, PostProcess()).tolist() == [False, False, False]
    assert reject(masks, probs, PostProcess(no_target="none")).tolist() == [False, False, False]


@pytest.mark.parametrize(
    "bad",
    [
        dict(threshold=1.0),
        dict(no_target="maybe"),
        dict(no_target_threshold=50),
        dict(no_target_threshold=math.nan),
        dict(min_area=-1),
        dict(max_elements=0),
    ],
)
def test_bad_settings_are_errors(bad: dict) -> None:
    with pytest.raises(ConfigError, match=f"postprocess.{next(iter(bad))} must"):
        PostProcess(**bad)
    with pytest.raises(TypeError):
        PostProcess(treshold=0.5)


def test_probabilities_may_be_what_is_resized() -> None:
    """A column of logits 9 beside one of -1, resized to 3 columns with aligned corners. The middle one has a logit of
    4, so it is in the mask; its probability is the mean of 0.99988 and 0.26894, 0.63, and not above 0.65."""
    settings = dict(input_size=(1, 2), meta=meta((1, 3), (1, 2)), align_corners=True, threshold=0.65)
    logits = torch.tensor([[[9.0, -1.0]]])
    assert restore_masks(logits, **settings).tolist() == [[[True, True, False]]]
    assert restore_masks(logits, **settings, resize="probs").tolist() == [[[True, False, False]]]


def test_cgformers_masks() -> None:
    """Its test: bilinear to the input, sigmoid, bicubic to the image, above 0.5. Resizing logits is not the same."""
    logits = 6 * torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    view = get_protocol("cgformer").view
    ways = {name: getattr(view, name) for name in ("interpolation", "align_corners", "resize", "threshold", "strict")}
    ours = restore_masks(logits, input_size=(18, 18), meta=meta((25, 31), (18, 18)), **ways)
    at_input = F.interpolate(logits[None], (18, 18), mode="bilinear", align_corners=True)
    theirs = F.interpolate(at_input.sigmoid(), (25, 31), mode="bicubic", align_corners=True)[0] > 0.5
    assert torch.equal(ours, theirs)
    of_logits = restore_masks(logits, input_size=(18, 18), meta=meta((25, 31), (18, 18)), **ways | {"resize": "logits"})
    assert not torch.equal(ours, of_logits)


def test_results_are_by_image_in_order_even_if_expressions_are_not() -> None:
    batch = dummy_batch(shape=(2, 2), num_images=2, expressions_per_image=2)["batch"]
    batch.images = batch.images.float()
    batch.image_of = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None, None].expand(4, 2, 2)
    first, second = finish(Prediction(logits, torch.tensor([9.0, -9, -9, -9])), batch, PostProcess())
    assert first.masks.flatten(1).any(1).tolist() == [True, False]
    assert second.masks.flatten(1).any(1).tolist() == [False, True]
    assert first.rejected.tolist() == [True, False]
    assert not first.final_masks().any() and second.final_masks()[1].all()
