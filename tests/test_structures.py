import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.structures import Batch, InstancePrediction, Prediction, SampleMeta, StackedInstances, map_tensors


def make_batch() -> Batch:
    return dummy_batch(shape=(4, 6), num_images=2, expressions_per_image=3, num_words=5)["batch"]


def test_misspelled_fields_are_errors() -> None:
    with pytest.raises(TypeError):
        Prediction(mask_logit=torch.zeros(1, 2, 2))
    prediction = Prediction(torch.zeros(1, 2, 2))
    with pytest.raises(AttributeError):
        prediction.no_target = torch.zeros(1)


def test_target_masks() -> None:
    """2 images have 2 instances each, the upper and lower half of 4 x 6. Expressions refer to 0, 1, or nothing."""
    batch = make_batch()
    assert (batch.num_images, batch.num_expressions) == (2, 6)
    assert [len(masks) for masks in batch.target_masks()] == [1, 1, 0, 1, 1, 0]
    merged = batch.merged_masks()
    assert merged.shape == (6, 4, 6)
    assert merged.sum((1, 2)).tolist() == [12, 12, 0, 12, 12, 0]
    assert merged[0, :2].all() and not merged[0, 2:].any()
    assert merged[1, 2:].all()
    assert batch.no_target().tolist() == [False, False, True, False, False, True]


def test_merged_mask_is_the_union_of_the_referents() -> None:
    batch = make_batch()
    batch.referents[0] = torch.tensor([True, True])
    assert batch.merged_masks()[0].all()


def test_move_reaches_every_tensor() -> None:
    batch = make_batch()
    moved = batch.to("meta")
    assert moved.images.device.type == "meta" and moved.tokens.ids.device.type == "meta"
    assert all(masks.device.type == "meta" for masks in moved.instance_masks + moved.referents)
    assert moved.metas == batch.metas and isinstance(moved.metas[0], SampleMeta)
    assert batch.images.device.type == "cpu"
    assert map_tensors(torch.neg, {"a": (1, torch.ones(1))}) == {"a": (1, torch.full((1,), -1.0))}


def test_data_loaders_pin_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `DataLoader` with `pin_memory=True` pins what has a method of that name. Without a GPU, tensors have none."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    batch = make_batch()
    copy = pin_memory({"batch": batch})["batch"]
    assert isinstance(copy, Batch) and copy.images.equal(batch.images) and copy.metas == batch.metas
    assert {id(one) for one in pinned} >= {id(batch.images), id(batch.tokens.ids), id(batch.referents[0])}


def test_stacked_instances_are_a_sequence() -> None:
    """Two expressions with three queries each."""
    logits, relevance = torch.arange(24.0).view(2, 3, 2, 2), torch.rand(2, 3)
    stacked = StackedInstances(logits, relevance)
    assert len(stacked) == 2
    for k, one in enumerate(stacked):
        assert isinstance(one, InstancePrediction) and one.word_attention is None
        assert one.mask_logits.equal(logits[k]) and one.relevance.equal(relevance[k])
    listed = torch.compile(lambda both: [one.word_attention for one in both], backend="eager", fullgraph=True)
    assert len(listed(StackedInstances(logits, relevance, relevance[..., None]))) == 2
    assert Prediction(None, instances=stacked).to("meta").instances[1].relevance.device.type == "meta"
