"""Steps of `MuonAdamW`, its restored state, and the parameters that `MuonConstructor` chooses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from refseg.engine.muon import MuonAdamW, orthogonalized


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 1000))
def test_singular_values_are_about_one(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = min(rows, columns)
    left, _ = torch.linalg.qr(torch.randn(2, rows, kept, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(2, columns, kept, generator=generator))
    values = torch.rand(2, 1, kept, generator=generator) * 0.9 + 0.1
    x = (left * values) @ right.transpose(1, 2)
    y = orthogonalized(x)
    assert y.shape == x.shape
    inner = left.transpose(1, 2) @ y @ right  # diagonal: the singular vectors stay
    diagonal = torch.diagonal(inner, dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.25)).all()
    assert torch.allclose(inner, torch.diag_embed(diagonal), atol=1e-3)


def test_zero_gradient_gives_a_zero_step():
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_adamw_step_is_the_one_of_pytorch():
    ours, theirs = model(), model()
    kinds = dict(lr=1e-2, weight_decay=0.1)
    optimizers = [MuonAdamW(ours.parameters(), **kinds), torch.optim.AdamW(theirs.parameters(), **kinds)]
    for step in range(4):
        x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            network(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_first_step_of_a_diagonal_matrix():
    """The step has the same size in all directions: that of AdamW's step times the ratio."""
    weight = nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.diag(torch.logspace(0, -1.5, 8))
    MuonAdamW([dict(params=[weight], orthogonal=True)], lr=0.1, muon_lr_ratio=3.0, weight_decay=0.0).step()
    diagonal = -weight.diagonal() / (0.1 * 3.0 * 0.2 * 8**0.5)
    assert ((diagonal > 0.6) & (diagonal < 1.25)).all()
    assert torch.allclose(weight, torch.diag(weight.diagonal()), atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 4), (4, 16), (8, 8), (4, 4, 2, 2)])
def test_step_size(shape):
    """A matrix of singular values 1 with r rows and c columns, r <= c, has the root mean square sqrt(r / (r c)) =
    1 / sqrt(c). Times 0.2 sqrt(c) it is 0.2, AdamW's size; a convolution counts as a matrix of 4 x 16.

    The singular values are not exactly 1, so the step is compared with the size that they give.
    """
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=generator)
    directions = orthogonalized(gradient.reshape(1, rows, columns))[0]
    for lr, ratio in ((0.1, 1.0), (0.02, 5.0)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = gradient.clone()
        MuonAdamW([dict(params=[weight], orthogonal=True)], lr=lr, muon_lr_ratio=ratio, weight_decay=0.0).step()
        expected = -lr * ratio * 0.2 * max(rows, columns) ** 0.5 * directions.reshape(shape)
        assert torch.allclose(weight, expected, atol=1e-5)
        assert 0.15 < weight.square().mean().sqrt() / (lr * ratio) < 0.25


@pytest.mark.parametrize("orthogonal", [True, False])
def test_weight_decay_uses_the_rate_of_the_step(orthogonal):
    """0.5 of weight decay at a rate of 0.1 leaves 0.95 of a weight; Muon's rate is 4 times that, which leaves 0.8."""
    weight = nn.Parameter(torch.eye(4))
    weight.grad = torch.zeros(4, 4)
    group = dict(params=[weight], orthogonal=orthogonal)
    MuonAdamW([group], lr=0.1, muon_lr_ratio=4.0, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.eye(4) * (0.8 if orthogonal else 0.95))


def built(network, **settings):
    cfg = dict(
        type="GuardedOptimWrapper",
        constructor="MuonConstructor",
        optimizer=dict(type="MuonAdamW", lr=1e-3, weight_decay=0.05),
        **settings,
    )
    with DefaultScope.overwrite_default_scope("refseg"):
        return build_optim_wrapper(network, cfg)


def test_constructor_chooses_weights_of_linear_maps_and_convolutions():
    network = model()
    network.queries = nn.Parameter(torch.randn(5, 4))
    network.embedding = nn.Embedding(7, 4)
    wrapper = built(network, paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    chosen = {name for name, p in network.named_parameters() if groups[id(p)]["orthogonal"]}
    assert chosen == {"0.weight", "3.weight", "5.weight"}
    assert groups[id(network[1].weight)]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == len(list(network.parameters()))


def test_constructor_needs_no_paramwise_cfg():
    assert sum(group["orthogonal"] for group in built(model()).optimizer.param_groups) == 3


def test_restored_optimizer_continues_exactly():
    def train(network, wrapper, steps):
        for step in steps:
            x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            wrapper.update_params(network(x).square().mean())

    straight = model()
    wrapper = built(straight)
    train(straight, wrapper, range(6))

    first = model()
    former = built(first)
    train(first, former, range(3))
    second = model()
    second.load_state_dict(first.state_dict())
    later = built(second)
    later.load_state_dict(former.state_dict())
    train(second, later, range(3, 6))
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
