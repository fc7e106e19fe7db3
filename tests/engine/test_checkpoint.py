import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from distributed import run_distributed
from refseg.engine import latest_checkpoint
from refseg.engine.checkpoint import SafeCheckpointHook, chosen_from
from refseg.errors import ConfigError
from refseg.evaluation.metrics import ReferringMetric
from refseg.files import write_atomically


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "epoch_1.pth"
    write_atomically(target, b"old")
    with mock.patch("os.fsync", side_effect=OSError("disk full")), pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new and longer")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.pth"]


def test_latest_checkpoint_is_the_newest_numbered_file(tmp_path: Path) -> None:
    """Times are compared, not names. Other files, such as the best checkpoint, do not count."""
    assert latest_checkpoint(tmp_path) is None
    for age, name in enumerate(["best_x_epoch_3.pth", "epoch_10.pth", "epoch_9.pth", "iter_5.pth"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "last_checkpoint").write_text("")
    assert latest_checkpoint(tmp_path).name == "epoch_10.pth"


@pytest.fixture
def backend() -> mock.Mock:
    """A file backend that records the removed paths in `removed`."""
    removed: list[str] = []
    return mock.Mock(remove=removed.append, removed=removed)


def test_old_files_are_removed_after_the_write(backend: mock.Mock) -> None:
    """With max_keep_ckpts=1 there is always one checkpoint."""
    hook = SafeCheckpointHook(interval=1, max_keep_ckpts=1, save_best=None)
    hook.file_backend = backend
    with hook._removals_last():
        backend.remove("a")
        with hook._removals_last():
            backend.remove("b")
        assert backend.removed == []
    assert backend.removed == ["a", "b"]
    backend.remove("c")
    assert backend.removed == ["a", "b", "c"], "the backend works as before"


def test_nothing_is_removed_if_the_write_fails(backend: mock.Mock) -> None:
    hook = SafeCheckpointHook(interval=1)
    hook.file_backend = backend
    with pytest.raises(OSError), hook._removals_last():
        backend.remove("a")
        raise OSError
    assert backend.removed == []


def runner_with_metrics(tmp_path: Path, *metrics: object) -> mock.Mock:
    runner = mock.Mock(work_dir=str(tmp_path), rank=1)
    runner.message_hub.runtime_info = {}
    runner.val_evaluator.metrics = list(metrics)
    return runner


def test_save_best_auto_takes_the_metric_of_the_evaluator(tmp_path: Path) -> None:
    """A metric that the hook names wins. Without either, mmengine's rule applies: the first metric."""
    metric = ReferringMetric(protocols=["lavt", "rrefcoco"], save_best="rrefcoco/rIoU")
    for asked, evaluator, expected in (
        ("auto", metric, "rrefcoco/rIoU"),
        ("lavt/mIoU", metric, "lavt/mIoU"),
        ("auto", ReferringMetric(), "auto"),
    ):
        hook = SafeCheckpointHook(save_best=asked, rule="greater")
        hook.before_train(runner_with_metrics(tmp_path, evaluator))
        assert hook.key_indicators == [expected] and hook.rules == ["greater"]


@pytest.mark.parametrize(("hook", "metric"), [("auto", "gres/gIoU"), ("lavt/oIou", "lavt/oIoU")])
def test_unknown_save_best_metric_is_refused_before_training(hook: str, metric: str, tmp_path: Path) -> None:
    runner = runner_with_metrics(tmp_path, ReferringMetric(protocols=["lavt"], save_best=metric))
    with pytest.raises(ConfigError, match=r"no metric '(gres/gIoU|lavt/oIou)'\. It has: lavt/oIoU, lavt/mIoU"):
        SafeCheckpointHook(save_best=hook, rule="greater").before_train(runner)


def test_best_checkpoint_has_the_highest_named_metric(tmp_path: Path) -> None:
    """The first metric, oIoU, is highest in epoch 4."""
    hook = SafeCheckpointHook(save_best="auto", rule="greater")
    runner = runner_with_metrics(tmp_path, ReferringMetric(protocols=["lavt"], save_best="lavt/mIoU"))
    runner.message_hub.get_info = runner.message_hub.runtime_info.get
    runner.message_hub.update_info = runner.message_hub.runtime_info.__setitem__
    hook.before_train(runner)
    for epoch, (oiou, miou) in enumerate([(50.0, 41.0), (70.0, 40.0), (60.0, 42.0), (80.0, 30.0)], start=1):
        runner.epoch = epoch
        hook.after_val_epoch(runner, {"lavt/oIoU": oiou, "lavt/mIoU": miou})
    saved = [call.kwargs["filename"] for call in runner.save_checkpoint.call_args_list]
    assert saved == ["best_lavt_mIoU_epoch_1.pth", "best_lavt_mIoU_epoch_3.pth"]


def test_second_best_checkpoint_of_an_epoch_stays(tmp_path: Path) -> None:
    """Validations within an epoch give files of one name. A file with another name is removed."""
    hook = SafeCheckpointHook(save_best="lavt/mIoU", rule="greater")
    runner = runner_with_metrics(tmp_path, ReferringMetric(protocols=["lavt"]))
    runner.message_hub.get_info = runner.message_hub.runtime_info.get
    runner.message_hub.update_info = runner.message_hub.runtime_info.__setitem__
    runner.save_checkpoint.side_effect = lambda folder, filename, **_: Path(folder, filename).touch()
    hook.before_train(runner)
    for epoch, miou in ((1, 41.0), (1, 42.0), (2, 43.0)):
        runner.epoch = epoch
        hook.after_val_epoch(runner, {"lavt/mIoU": miou})
        assert [file.name for file in tmp_path.glob("best_*")] == [f"best_lavt_mIoU_epoch_{epoch}.pth"]


def check_that_buffers_are_broadcast(rank: int, world_size: int) -> None:
    """Run on every rank: each starts with other buffers, and ends with those of rank 0."""
    model = torch.nn.BatchNorm1d(2)
    model.running_mean.fill_(rank)
    model.num_batches_tracked.fill_(7 + rank)
    SafeCheckpointHook(interval=1).before_val_epoch(mock.Mock(model=model))
    assert model.running_mean.eq(0).all() and model.num_batches_tracked == 7


def test_all_ranks_validate_the_saved_buffers() -> None:
    run_distributed(check_that_buffers_are_broadcast, 2)


def test_description_of_the_best_checkpoint() -> None:
    assert chosen_from(1).startswith("the weights at the only validation, not the best of several")
    assert chosen_from(3) == "the best of 3 validations"
