import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from distributed import run_distributed
from refseg.engine import latest_checkpoint
from refseg.engine.checkpoint import SafeCheckpointHook, _LateRemovals, chosen_from
from refseg.errors import ConfigError
from refseg.evaluation.metrics import ReferringMetric
from refseg.files import write_atomically


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "epoch_1.pth"
    write_atomically(target, b"old")
    with mock.patch("os.fsync", side_effect=OSError("disk full")), pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new and longer")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.pth"]


def test_latest_is_the_newest_numbered_one(tmp_path: Path) -> None:
    """Names are not compared: epoch_10 is newer than epoch_9. Other files, the best one too, do not count."""
    assert latest_checkpoint(tmp_path) is None
    for age, name in enumerate(["best_x_epoch_3.pth", "epoch_10.pth", "epoch_9.pth", "iter_5.pth"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "last_checkpoint").write_text("")
    assert latest_checkpoint(tmp_path).name == "epoch_10.pth"


def test_removals_wait_until_the_write_is_done(tmp_path: Path) -> None:
    """max_keep_ckpts=1 must not mean that for a moment there is none."""
    hook = SafeCheckpointHook(interval=1, max_keep_ckpts=1, save_best=None)
    backend = mock.Mock()
    hook.file_backend = backend
    with hook._removals_last():
        hook.file_backend.remove("a")
        with hook._removals_last():
            hook.file_backend.remove("b")
        assert backend.remove.call_count == 0
    assert [call.args[0] for call in backend.remove.call_args_list] == ["a", "b"]
    assert hook.file_backend is backend and not isinstance(backend, _LateRemovals)


def test_nothing_is_removed_when_the_write_fails() -> None:
    hook = SafeCheckpointHook(interval=1)
    hook.file_backend = backend = mock.Mock()
    with pytest.raises(OSError), hook._removals_last():
        hook.file_backend.remove("a")
        raise OSError
    assert backend.remove.call_count == 0


def runner_that_validates(tmp_path: Path, *metrics: object) -> mock.Mock:
    runner = mock.Mock(work_dir=str(tmp_path), rank=1)
    runner.message_hub.runtime_info = {}
    runner.val_evaluator.metrics = list(metrics)
    return runner


def test_the_evaluator_names_the_metric_of_the_best_checkpoint(tmp_path: Path) -> None:
    """`auto` is the evaluator's `save_best`. One that the hook names itself wins, and an evaluator without one leaves
    mmengine's rule, the first metric."""
    metric = ReferringMetric(protocols=["lavt", "rrefcoco"], save_best="rrefcoco/rIoU")
    for asked, evaluator, expected in (
        ("auto", metric, "rrefcoco/rIoU"),
        ("lavt/mIoU", metric, "lavt/mIoU"),
        ("auto", ReferringMetric(), "auto"),
    ):
        hook = SafeCheckpointHook(save_best=asked, rule="greater")
        hook.before_train(runner_that_validates(tmp_path, evaluator))
        assert hook.key_indicators == [expected] and hook.rules == ["greater"]


@pytest.mark.parametrize(("hook", "metric"), [("auto", "gres/gIoU"), ("lavt/oIou", "lavt/oIoU")])
def test_a_metric_that_validation_does_not_have_is_refused_before_training(
    hook: str, metric: str, tmp_path: Path
) -> None:
    runner = runner_that_validates(tmp_path, ReferringMetric(protocols=["lavt"], save_best=metric))
    with pytest.raises(ConfigError, match=r"no metric '(gres/gIoU|lavt/oIou)'\. It has: lavt/oIoU, lavt/mIoU"):
        SafeCheckpointHook(save_best=hook, rule="greater").before_train(runner)


def test_the_best_checkpoint_is_the_one_with_the_highest_named_metric(tmp_path: Path) -> None:
    """Not the one with the highest first metric."""
    hook = SafeCheckpointHook(save_best="auto", rule="greater")
    runner = runner_that_validates(tmp_path, ReferringMetric(protocols=["lavt"], save_best="lavt/mIoU"))
    runner.message_hub.get_info = runner.message_hub.runtime_info.get
    runner.message_hub.update_info = runner.message_hub.runtime_info.__setitem__
    hook.before_train(runner)
    for epoch, (oiou, miou) in enumerate([(50.0, 41.0), (70.0, 40.0), (60.0, 42.0), (80.0, 30.0)], start=1):
        runner.epoch = epoch
        hook.after_val_epoch(runner, {"lavt/oIoU": oiou, "lavt/mIoU": miou})
    saved = [call.kwargs["filename"] for call in runner.save_checkpoint.call_args_list]
    assert saved == ["best_lavt_mIoU_epoch_1.pth", "best_lavt_mIoU_epoch_3.pth"]


def ranks_validate_what_is_saved(rank: int, world_size: int) -> None:
    """A function of its own: other processes call it."""
    model = torch.nn.BatchNorm1d(2)
    model.running_mean.fill_(rank)
    model.num_batches_tracked.fill_(7 + rank)
    SafeCheckpointHook(interval=1).before_val_epoch(mock.Mock(model=model))
    assert model.running_mean.eq(0).all() and model.num_batches_tracked == 7


def test_all_ranks_validate_the_saved_buffers() -> None:
    run_distributed(ranks_validate_what_is_saved, 2)


def test_description_of_the_best_checkpoint() -> None:
    assert chosen_from(1).startswith("the weights at the only validation, not the best of several")
    assert chosen_from(3) == "the best of 3 validations"
