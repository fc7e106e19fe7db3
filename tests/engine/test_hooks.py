from types import SimpleNamespace
from unittest import mock

import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.engine import ProgressBarHook, StepSeedHook, TextTruncationHook, TimeLimitHook


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


def test_time_before_an_interruption_counts() -> None:
    """A run of 90 seconds was interrupted, and continues: it ends at the first validation after 10 seconds more."""
    hub = SimpleNamespace(runtime_info={"trained_seconds": 90.0}, update_info=lambda *args: None)
    runner = SimpleNamespace(message_hub=hub, iter=5, max_iters=10, train_loop=SimpleNamespace(stop_training=False))
    hook = TimeLimitHook(seconds=100)
    with mock.patch("time.monotonic") as clock:
        clock.return_value = 1000.0
        hook.before_train(runner)
        for seconds, stops in ((9.0, False), (11.0, True)):
            clock.return_value = 1000.0 + seconds
            hook.after_val_epoch(runner)
            assert runner.train_loop.stop_training is stops
