"""Instance supervision: which instances, which pairs, what loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.distributed as dist

from distributed import run_distributed
from models.referring_checks import padded_images
from refseg.analysis.synthetic import dummy_batch
from refseg.models.layers import Groups
from refseg.models.losses.functional import random_points, sample_points, uncertain_points
from refseg.models.losses.instances import (
    BlockOutput,
    InstanceWeights,
    Referents,
    instance_losses,
    match,
    relevance_loss,
)
from refseg.models.losses.matching import Pairs
from refseg.structures import Batch

LN2 = math.log(2)


def batch_of(referents: list[list[int]], *, per_image: int = 2, instances: int = 3) -> Batch:
    """Images of 12 x 12 whose three instances are stripes of 4 rows; per expression, the indices it refers to."""
    batch = dummy_batch(
        shape=(12, 12), num_images=len(referents) // per_image, expressions_per_image=per_image, num_instances=instances
    )["batch"]
    refers = [torch.tensor([i in chosen for i in range(instances)]) for chosen in referents]
    return replace(batch, referents=refers, images=batch.images.float())


def referents_of(batch: Batch, mask_feats: torch.Tensor) -> Referents:
    return Referents(batch, mask_feats, Groups(batch.expression_counts, "cpu"))


def test_referent_indices_by_hand() -> None:
    """Instances 0-2 are the first image's, 3-5 the second's."""
    found = referents_of(batch_of([[1], [0, 2], [], [0, 1, 2]]), torch.zeros(2, 4, 3, 3))
    assert found.counts == [1, 2, 0, 3]
    index = [row[:count].tolist() for row, count in zip(found.index, found.counts, strict=True)]
    assert index == [[1], [0, 2], [], [3, 4, 5]]


def test_images_with_different_numbers_of_instances() -> None:
    """Two of the first image, four of the second."""
    batch = batch_of([[1], [0], [3], [0, 2]])
    masks = torch.zeros(4, 12, 12, dtype=torch.bool)
    batch = replace(
        batch,
        instance_masks=[masks[:2], masks],
        referents=[
            torch.tensor(r) for r in ([False, True], [True, False], [False] * 3 + [True], [True, False, True, False])
        ],
    )
    found = referents_of(batch, torch.zeros(2, 4, 3, 3))
    index = [row[:count].tolist() for row, count in zip(found.index, found.counts, strict=True)]
    assert index == [[1], [0], [5], [2, 4]]


def test_targets_at_all_pixels_are_shares_of_area() -> None:
    """Pixels of 8 x 8 input pixels: of two rows of them, the first stripe of 4 rows is half of the first."""
    batch = dummy_batch(shape=(16, 16), num_images=1, num_instances=4)["batch"]
    found = referents_of(replace(batch, images=batch.images.float()), torch.zeros(1, 4, 2, 2))
    _, target = found.sample(None)
    assert target.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]


def test_relevance_loss_by_hand() -> None:
    """Logits 0: every query costs ln 2. Of one matched (weight 1) and two others (weight 0.5): (1 + 2 x 0.5) ln 2 / 2.
    A matched query of logit +inf and others at -inf cost nothing."""
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    torch.testing.assert_close(relevance_loss(torch.zeros(1, 3), pairs, 0.5), torch.tensor(LN2))
    assert relevance_loss(torch.tensor([[-99.0, 99.0, -99.0]]), pairs, 0.5) < 1e-6
    logits = torch.tensor([[-99.0, 0.0, 0.0]])  # (1 x ln 2 + 0.5 x ln 2) / 2
    torch.testing.assert_close(relevance_loss(logits, pairs, 0.5), torch.tensor(0.75 * LN2))


def perfect(batch: Batch) -> tuple[list[BlockOutput], torch.Tensor]:
    """Queries whose masks are the three stripes: features of pixel row r are +-20 at channel r; and one block."""
    rows = torch.eye(3) * 40 - 20
    feats = rows[:, :, None].expand(3, 3, 3)[None].repeat(batch.num_images, 1, 1, 1)  # (B, D, h, w), by row
    embeds = torch.eye(3).expand(batch.num_expressions, 3, 3).clone().requires_grad_()
    relevance = torch.zeros(batch.num_expressions, 3, requires_grad=True)
    block = BlockOutput(relevance, embeds, torch.full((batch.num_expressions, 3), 0.25))
    return [block], feats


def test_perfect_masks_are_matched_with_zero_loss() -> None:
    batch = batch_of([[1], [0, 2], [], [0, 1, 2]])
    for num_points in (None, 50):
        blocks, feats = perfect(batch)
        losses, bad = instance_losses(blocks, referents_of(batch, feats), InstanceWeights(num_points=num_points))
        assert bad == 0
        assert set(losses) == {"loss_relevance", "loss_instance_mask", "loss_instance_dice", "loss_poa"}
        limit = 1e-3 if num_points is None else 3.0  # points fall between pixels, where interpolated masks are soft
        assert losses["loss_instance_mask"] < limit and losses["loss_instance_dice"] < limit
        torch.testing.assert_close(losses["loss_poa"], torch.tensor(0.25))
        torch.testing.assert_close(losses["loss_relevance"], torch.tensor(2 * LN2))


def test_uniform_masks_by_hand() -> None:
    """All logits 0: BCE is ln 2 at every pixel. A stripe is 3 of 9 pixels, so dice is 1 - (2 x 1.5 + 1) / (4.5 + 3 + 1)
    = 1 - 4 / 8.5. Two blocks have the mean of both."""
    batch = batch_of([[1], [0]])
    blocks, feats = perfect(batch)
    losses, _ = instance_losses(blocks * 2, referents_of(batch, feats * 0), InstanceWeights(num_points=None, poa=0.0))
    torch.testing.assert_close(losses["loss_instance_mask"], torch.tensor(5 * LN2))
    torch.testing.assert_close(losses["loss_instance_dice"], torch.tensor(5 * (1 - 4 / 8.5)))
    assert "loss_poa" not in losses


def test_alignment_decides_between_equal_masks() -> None:
    """All masks and relevances alike: the query of the least POA is matched, unless POA has no weight."""
    batch = batch_of([[0], [0]])
    blocks, feats = perfect(batch)
    misalignment = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.2, 0.5]], requires_grad=True)
    block = BlockOutput(blocks[0].relevance_logits, blocks[0].mask_embeds * 0, misalignment)
    losses, _ = instance_losses([block], referents_of(batch, feats), InstanceWeights(num_points=None))
    torch.testing.assert_close(losses["loss_poa"], torch.tensor((0.1 + 0.2) / 2))
    losses["loss_poa"].backward()
    assert misalignment.grad.tolist() == [[0.0, 0.0, 0.5], [0.0, 0.5, 0.0]]


def test_relevance_cost_by_hand() -> None:
    """The first query has the right mask and relevance 0.01, the second one logits of 2 everywhere and relevance 0.99.
    Its dice costs 5 (1 - (2 x 3 x 0.88 + 1) / (9 x 0.88 + 3 + 1)) = 2.4 more. Relevance costs 2 x 4.6 and 2 x 0.01 by
    -log p, so the second query is cheaper, but 2 x -0.01 and 2 x -0.99 by -p, so the first one is."""
    batch = batch_of([[0], [0]])
    blocks, feats = perfect(batch)
    embeds = blocks[0].mask_embeds.detach().clone()
    embeds[:, 1] = -0.1  # logits of 2 outside and inside
    logits = torch.tensor([[-4.6, 4.6, -99.0]]).expand(2, 3)
    block = BlockOutput(logits, embeds)
    for kind, chosen in (("log", 1), ("probability", 0)):
        weights = InstanceWeights(mask=0.0, dice=5.0, num_points=None, relevance_cost=kind)
        (pairs,), _ = match([block], referents_of(batch, feats), weights)
        assert pairs.query.tolist() == [chosen, chosen], kind


def test_losses_without_referents() -> None:
    """Only relevance has a loss; everything still has a gradient."""
    batch = batch_of([[], []])
    blocks, feats = perfect(batch)
    feats.requires_grad_()
    misalignment = torch.full((2, 3), 0.5, requires_grad=True)
    block = blocks[0]._replace(misalignment=misalignment)
    losses, bad = instance_losses([block], referents_of(batch, feats), InstanceWeights())
    assert bad == 0
    assert {name for name, value in losses.items() if value.item()} == {"loss_relevance"}
    sum(losses.values()).backward()
    for tensor in (block.mask_embeds, block.relevance_logits, misalignment, feats):
        assert tensor.grad is not None


def test_images_without_any_instance() -> None:
    batch = batch_of([[], []])
    batch = replace(
        batch,
        instance_masks=[torch.zeros(0, 12, 12, dtype=torch.bool)],
        referents=[torch.zeros(0, dtype=torch.bool)] * 2,
    )
    blocks, feats = perfect(batch)
    losses, _ = instance_losses(blocks, referents_of(batch, feats), InstanceWeights())
    assert losses["loss_instance_mask"] == 0


def test_nonfinite_costs_do_not_break_matching() -> None:
    batch = batch_of([[0], [1, 2]])
    blocks, feats = perfect(batch)
    misalignment = torch.tensor([[torch.nan, 0.1, 0.1], [0.1, 0.1, torch.inf]])
    losses, bad = instance_losses(
        [blocks[0]._replace(misalignment=misalignment)], referents_of(batch, feats), InstanceWeights(num_points=None)
    )
    assert bad == 4  # one query each, with two places for instances
    assert torch.isfinite(losses["loss_relevance"])


def test_more_instances_than_queries() -> None:
    batch = batch_of([[0, 1, 2], [0]])
    blocks, feats = perfect(batch)
    few = BlockOutput(*(tensor[:, :2] for tensor in blocks[0]))
    for num_points in (None, 20):
        losses, _ = instance_losses([few], referents_of(batch, feats), InstanceWeights(num_points=num_points))
        assert all(torch.isfinite(value) for value in losses.values())


def test_padding_is_ignored() -> None:
    """Masks that are wrong in the padding only."""
    for num_points in (None, 200):
        results = []
        for inside in (-20.0, 20.0):
            batch = padded_images(batch_of([[1], [0]]), 8, 12)
            batch = replace(batch, instance_masks=[m & batch.pixel_mask[:1] for m in batch.instance_masks])
            blocks, feats = perfect(batch)
            feats = feats.clone()
            feats[:, :, 2] = inside
            torch.manual_seed(0)
            losses, _ = instance_losses(blocks, referents_of(batch, feats), InstanceWeights(num_points=num_points))
            results.append(losses)
        if num_points is None:
            assert results[0] == results[1]
        else:  # the row of pixels beside the padding is read between it and the image
            assert results[1]["loss_instance_mask"] < 5


def test_points_lie_in_the_image() -> None:
    extent = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    for points in (random_points(extent, 100), uncertain_points(torch.randn(2, 1, 8, 8), extent, 100)):
        assert points.shape == (2, 100, 2)
        assert (points >= 0).all() and (points <= extent[:, None]).all()


def test_sample_points_by_hand() -> None:
    """Pixel centres of a 2 x 2 map lie at a quarter and three quarters; x comes first."""
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]])
    assert sample_points(maps, points).tolist() == [[[1.0, 2.0, 3.0, 2.5]]]


def test_uncertain_points_are_near_the_edge() -> None:
    """Logits rise from left to right through 0 in the middle: three quarters of the points lie nearer to it than random
    ones do."""
    torch.manual_seed(0)
    logits = torch.linspace(-10, 10, 64).expand(1, 1, 64, 64)
    points = uncertain_points(logits, torch.ones(1, 2), 400)
    distance = (points[0, :, 0] - 0.5).abs()
    assert distance[:300].max() < 0.2 and distance[300:].max() > 0.35


def losses_of_rank(rank: int, world_size: int) -> None:
    """Rank 0 has one pair and rank 1 three: the sum over ranks, over world_size, is the mean over all four pairs."""
    batch = batch_of([[1], []]) if rank == 0 else batch_of([[0, 2], [1]])
    blocks, feats = perfect(batch)
    value = torch.tensor([[0.4, 0.4, 0.4]] * 2 if rank == 0 else [[0.8, 0.8, 0.8]] * 2)
    losses, _ = instance_losses(
        [blocks[0]._replace(misalignment=value)], referents_of(batch, feats), InstanceWeights(num_points=None)
    )
    total = losses["loss_poa"].clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total / world_size, torch.tensor((0.4 + 3 * 0.8) / 4))


def test_pairs_have_equal_weight_on_all_processes() -> None:
    run_distributed(losses_of_rank, 2)
