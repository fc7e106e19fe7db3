from types import SimpleNamespace
from unittest import mock

import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.engine import ProgressBarHook, StepSeedHook, TextTruncationHook


def draw(seed: int, iteration: int, rank: int) -> float:
    StepSeedHook().before_train_iter(SimpleNamespace(seed=seed, iter=iteration, rank=rank), 0)
    return torch.rand(()).item()


def test_step_seed_depends_on_seed_step_and_rank() -> None:
    first = draw(1, 5, 0)
    torch.rand(7)
    assert draw(1, 5, 0) == first
    assert len({first, draw(2, 5, 0), draw(1, 6, 0), draw(1, 5, 1)}) == 4


def test_truncation_is_reported_once_per_epoch() -> None:
    hook, data = TextTruncationHook(), dummy_batch(shape=(4, 4), expressions_per_image=4)
    data["batch"].tokens.num_truncated = 3
    with mock.patch("refseg.engine.hooks.print_log") as log:
        for _ in range(2):
            hook.after_train_iter(None, 0, data)
        hook.after_train_epoch(None)
        hook.after_train_epoch(None)
    assert log.call_count == 1
    assert "6 of 8 expressions were cut" in log.call_args.args[0]


def test_unknown_words_are_reported_once_and_counted() -> None:
    """Two of the four expressions of a batch have unknown words. An epoch has two batches."""
    hook, data = TextTruncationHook(), dummy_batch(shape=(4, 4), expressions_per_image=4)
    data["batch"].metas[0].unknown_words = (("bus",), (), ("bus", "tram"), ())
    with mock.patch("refseg.engine.hooks.print_log") as log:
        for _ in range(2):
            hook.after_train_iter(None, 0, data)
            hook.after_train_iter(None, 0, data)
            hook.after_train_epoch(None)
        hook.after_test_iter(None, 0, data)
        hook.after_test_epoch(None)
    first, second = (call.args[0] for call in log.call_args_list)
    assert "training: 4 of 8 expressions have words that the model does not know" in first
    assert "bus (4), tram (2)" in first and "test: 2 of 4" in second and "bus (2), tram (1)" in second


def test_progress_bar_is_shown_on_rank_0_and_terminals() -> None:
    runner = SimpleNamespace(rank=0, max_iters=3, iter=0)
    hook = ProgressBarHook()
    with mock.patch("sys.stderr.isatty", return_value=False):
        hook.before_train(runner)
    assert not hook.bars
    always = ProgressBarHook(always=True)
    always.before_train(SimpleNamespace(rank=1, max_iters=3, iter=0))
    assert not always.bars
    always.before_train(runner)
    always.after_train_iter(runner, 0, outputs={"loss": torch.tensor(1.0)})
    assert always.bars["train"].n == 1
    always.after_train(runner)
    assert not always.bars
