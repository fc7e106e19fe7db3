"""Costs of pairs of queries and instances, and the assignment."""

import itertools

import numpy as np
import pytest
import torch

from refseg.models.losses import dice_per_map, mask_bce_loss
from refseg.models.losses.matching import assign, finite_costs, pairwise_mask_costs


def masks(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 2 expressions x 3 queries, and 2 instances each, at 10 points."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 10, generator=draw) * 4, (torch.rand(2, 2, 10, generator=draw) > 0.5).float()


def test_pairwise_costs_equal_losses_of_pairs() -> None:
    logits, target = masks()
    bce, dice = pairwise_mask_costs(logits, target)
    for e, n, m in itertools.product(range(2), range(3), range(2)):
        one, other = logits[e, n][None], target[e, m][None]
        torch.testing.assert_close(bce[e, n, m], mask_bce_loss(one, other), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(dice[e, n, m], dice_per_map(one, other).mean(), atol=1e-6, rtol=1e-5)


def test_costs_of_extreme_logits() -> None:
    """BCE of logit m against 0 is m for large m, and against 1 it is 0."""
    logits = torch.tensor([[[200.0], [-200.0]]])
    bce, _ = pairwise_mask_costs(logits, torch.tensor([[[1.0], [0.0]]]))
    torch.testing.assert_close(bce[0], torch.tensor([[0.0, 200.0], [200.0, 0.0]]))


def test_costs_equal_mmdets() -> None:
    """mmdet's `CrossEntropyLossCost` and `DiceCost`, as its Mask2Former uses them, on one expression."""
    from mmdet.models.task_modules import CrossEntropyLossCost, DiceCost
    from mmengine.structures import InstanceData

    logits, target = masks(1)
    ours = pairwise_mask_costs(logits, target)
    for e in range(2):
        queries, instances = InstanceData(masks=logits[e]), InstanceData(masks=target[e])
        bce = CrossEntropyLossCost(use_sigmoid=True)(queries, instances)
        dice = DiceCost(pred_act=True, eps=1.0)(queries, instances)
        torch.testing.assert_close(ours[0][e], bce, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[1][e], dice, atol=1e-5, rtol=1e-5)


def test_nonfinite_costs_are_replaced_and_counted() -> None:
    cost, number = finite_costs(torch.tensor([1.0, torch.nan, torch.inf, -torch.inf]))
    assert int(number) == 3
    assert torch.isfinite(cost).all() and cost[0] == 1.0 and (cost[1:] > 1e5).all()


@pytest.mark.parametrize("counts", [[2, 3, 0], [0, 0, 0], [1, 5, 2]])
def test_the_assignment_is_the_cheapest(counts: list[int]) -> None:
    """Against all possibilities, for 4 queries; of 5 instances, 4 get a query. The columns beyond an expression's
    instances are cheap, so that choosing one would show."""
    cost = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for expression, count in enumerate(counts):
        cost[:, expression, :, count:] = -9.0
    for block, pairs in zip(cost, assign(cost, counts), strict=True):
        for expression, count in enumerate(counts):
            mine = pairs.expression == expression
            queries, instances = pairs.query[mine].tolist(), pairs.instance[mine].tolist()
            number = min(4, count)
            assert len(queries) == len(set(queries)) == len(set(instances)) == number
            assert all(instance < count for instance in instances)
            table = block[expression].numpy()
            best = min(
                (
                    sum(table[q, i] for q, i in zip(chosen, order, strict=True))
                    for chosen in itertools.combinations(range(4), number)
                    for order in itertools.permutations(range(count), number)
                ),
                default=0.0,
            )
            np.testing.assert_allclose(
                sum(table[q, i] for q, i in zip(queries, instances, strict=True)), best, rtol=1e-6
            )


def test_pairs_follow_the_order_of_expressions() -> None:
    pairs = assign(torch.rand(1, 5, 3, 2), [2, 0, 1, 2, 1])[0]
    assert pairs.expression.tolist() == [0, 0, 2, 3, 3, 4]
