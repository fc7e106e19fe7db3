import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

from refseg.engine.vis_backends import OptionalWandbBackend


def fake_wandb(init: object) -> ModuleType:
    module = ModuleType("wandb")
    module.init, module.api = init, SimpleNamespace(api_key=None)
    return module


def test_missing_wandb_is_reported_once(tmp_path: Path) -> None:
    backend = OptionalWandbBackend(str(tmp_path))
    with (
        mock.patch.dict(sys.modules, {"wandb": None}),
        mock.patch("refseg.engine.vis_backends.print_log") as log,
    ):
        for _ in range(3):
            backend.add_scalar("loss", 1.0)
        backend.close()
    assert log.call_count == 1 and "refseg[log]" in log.call_args.args[0]


def test_hanging_wandb_is_abandoned(tmp_path: Path) -> None:
    """`init` returns only after the assertions."""
    backend = OptionalWandbBackend(str(tmp_path), limit_s=0.1)
    released = threading.Event()
    init = mock.Mock(side_effect=lambda **_: released.wait(60))
    with mock.patch.dict(sys.modules, {"wandb": fake_wandb(init)}):
        backend.add_scalars({"loss": 1.0})
        backend.add_scalars({"loss": 1.0})
        assert backend.failed and init.call_count == 1
        released.set()


def test_logging_is_offline_without_a_key(tmp_path: Path) -> None:
    run, seen = mock.Mock(), {}
    wandb = fake_wandb(lambda **options: seen.update(options) or run)
    backend = OptionalWandbBackend(str(tmp_path), init_kwargs={"project": "p"})
    with mock.patch.dict(sys.modules, {"wandb": wandb}), mock.patch.dict("os.environ", {"WANDB_API_KEY": ""}):
        backend.add_scalars({"loss": 2.0}, step=3)
        backend.close()
    assert seen["mode"] == "offline" and seen["project"] == "p"
    run.log.assert_called_once_with({"step": 3, "loss": 2.0})
    run.finish.assert_called_once_with()
