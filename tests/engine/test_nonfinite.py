import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

from distributed import run_distributed
from refseg.analysis.synthetic import dummy_batch
from refseg.engine import GuardedOptimWrapper, NonFiniteLossHook
from refseg.engine.nonfinite import describe_batch
from refseg.errors import ConfigError, NonFiniteLossError


def wrapper(weight: torch.nn.Parameter, **kwargs: object) -> GuardedOptimWrapper:
    return GuardedOptimWrapper(torch.optim.SGD([weight], lr=1.0), **kwargs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_does_not_change_the_weights(bad: float) -> None:
    """SGD with lr 1 on loss = w moves w by -1 per good step: 0 -> -1, skip, -> -2."""
    weight = torch.nn.Parameter(torch.zeros(()))
    optim = wrapper(weight)
    optim.update_params(weight * 1)
    optim.update_params(weight * bad)
    assert weight.item() == -1 and (optim.skipped_in_a_row, optim.skipped_total) == (1, 1)
    optim.update_params(weight * 1)
    assert weight.item() == -2 and (optim.skipped_in_a_row, optim.skipped_total) == (0, 1)


def test_non_finite_loss_drops_the_whole_accumulated_step() -> None:
    """A step has two micro-batches, each of which counts half. One is bad: no step. Both are good: -1."""
    weight = torch.nn.Parameter(torch.zeros(()))
    optim = wrapper(weight, accumulative_counts=2)
    for factor in (1, math.nan, math.nan, 1):
        optim.update_params(weight * factor)
    assert weight.item() == 0
    for loss in (weight * 1, weight * 1):
        optim.update_params(loss)
    assert weight.item() == -1


def run_hook(hook: NonFiniteLossHook, optim: GuardedOptimWrapper, losses: list[torch.Tensor]) -> list[str]:
    hub = mock.Mock()
    runner = SimpleNamespace(optim_wrapper=optim, message_hub=hub, rank=0, iter=0)
    hook.before_train(runner)
    messages = []
    data = dummy_batch(shape=(4, 4), expressions_per_image=2)
    with mock.patch("refseg.engine.nonfinite.print_log", side_effect=lambda text, **_: messages.append(text)):
        for loss in losses:
            optim.update_params(loss)
            hook.after_train_iter(runner, 0, data, {"loss": loss})
    return messages


def test_run_stops_after_n_in_a_row_and_names_the_batch() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    good, bad = weight * 1, weight * float("nan")
    messages = run_hook(NonFiniteLossHook(max_in_a_row=2), wrapper(weight), [bad, weight * 1, bad, weight * 1])
    assert len(messages) == 2
    with pytest.raises(NonFiniteLossError, match=r"2 non-finite losses in a row(.|\n)*0\.png: 0: '0'; 1: '1'"):
        run_hook(NonFiniteLossHook(max_in_a_row=2), wrapper(weight), [good, bad, bad])


def test_run_never_stops_without_a_limit() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    optim = wrapper(weight)
    assert len(run_hook(NonFiniteLossHook(max_in_a_row=None), optim, [weight * float("nan")] * 9)) == 9
    assert optim.skipped_total == 9


def test_hook_refuses_an_unguarded_wrapper() -> None:
    plain = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0))
    with pytest.raises(ConfigError, match="GuardedOptimWrapper"):
        NonFiniteLossHook().before_train(SimpleNamespace(optim_wrapper=plain))
    with pytest.raises(ConfigError, match="max_in_a_row"):
        NonFiniteLossHook(max_in_a_row=0)


def test_description_of_a_batch() -> None:
    text = describe_batch(dummy_batch(shape=(4, 4)), {"loss": torch.tensor(float("nan"))})
    assert text == "losses: loss=nan\n  0.png: 0: '0'"


def check_that_all_ranks_skip(rank: int, world_size: int) -> None:
    """Only the loss of rank 1 is bad. All ranks skip the step, none hangs, and the next step is normal."""
    model = DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model.module.weight.zero_()
    optim = wrapper(model.module.weight)
    x = torch.ones(1, 1)
    optim.update_params(model(x).sum() * (float("nan") if rank == 1 else 1.0))
    assert model.module.weight.item() == 0 and optim.skipped_total == 1
    optim.update_params(model(x).sum())
    assert model.module.weight.item() == -1


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_skip_the_step_of_one_bad_rank(world_size: int) -> None:
    run_distributed(check_that_all_ranks_skip, world_size)
