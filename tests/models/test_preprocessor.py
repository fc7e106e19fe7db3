import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.models import ReferringDataPreprocessor


def test_normalizes_and_pads() -> None:
    """A pixel of value 10 with mean 4 and std 3 becomes 2; padding, inside the batch or added, is 0 and masked."""
    data = dummy_batch(shape=(3, 5), num_images=2)
    data["batch"].images[:] = 10
    data["batch"].pixel_mask[1, :, 4] = False
    batch = ReferringDataPreprocessor(mean=[4, 4, 4], std=[3, 3, 3], size_divisor=4)(data)["batch"]
    assert batch.images.shape == (2, 3, 4, 8) and batch.pixel_mask.shape == (2, 4, 8)
    assert batch.pixel_mask.sum((1, 2)).tolist() == [15, 12]
    assert torch.equal(batch.images, 2.0 * batch.pixel_mask[:, None].expand(-1, 3, -1, -1))
    assert all(masks.shape[1:] == (4, 8) for masks in batch.instance_masks)
    assert data["batch"].images.shape == (2, 3, 3, 5), "the given batch is left as it is"


def test_a_pair_of_divisors_is_of_height_and_width() -> None:
    batch = ReferringDataPreprocessor(size_divisor=(4, 7))(dummy_batch(shape=(3, 5)))["batch"]
    assert batch.images.shape[-2:] == batch.pixel_mask.shape[-2:] == (4, 7)


def test_float_images_raise() -> None:
    data = dummy_batch(shape=(4, 4))
    data["batch"].images = data["batch"].images.float()
    with pytest.raises(TypeError, match="uint8"):
        ReferringDataPreprocessor()(data)


def test_mean_and_std_are_not_in_the_state_dict() -> None:
    assert ReferringDataPreprocessor().state_dict() == {}
