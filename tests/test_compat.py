"""Each workaround works, and the library still needs it. If a `test_is_still_needed` fails, delete the workaround."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from refseg import compat
from refseg.errors import UsageError

PACKAGES = Path(__file__).resolve().parents[1] / "projects"
OBSOLETE = "the library no longer needs this workaround: delete it"


def run(program: str, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process, with `paths` and then this repository's packages first on sys.path."""
    path = os.pathsep.join(str(one) for one in (*paths, PACKAGES))
    env = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def output(program: str, *paths: Path, **environment: str) -> str:
    done = run(program, *paths, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def mmcv_is_compiled() -> bool:
    return run("import torch, mmcv._ext").returncode == 0


class TestStandInForMmcvExt:
    def test_is_still_needed(self, mmcv_is_compiled: bool) -> None:
        if mmcv_is_compiled:
            pytest.skip("this mmcv is compiled for this PyTorch")
        done = run("import mmdet.models")
        assert "No module named 'mmcv._ext'" in done.stderr or "_ext" in done.stderr.splitlines()[-1], OBSOLETE

    def test_mmdet_and_mmseg_can_be_imported(self) -> None:
        """mmdet and mmseg import, and so does another library that checks the module's spec first."""
        program = (
            "import refseg, importlib.util as u\n"
            "import mmdet.models, mmseg.models, mmcv.ops\n"
            "from mmcv.ops import MultiScaleDeformableAttention\n"
            "assert u.find_spec('mmcv._ext') is not None\n"
            "print('fine')"
        )
        assert output(program) == "fine"

    def test_missing_op_has_a_remedy(self, mmcv_is_compiled: bool) -> None:
        if mmcv_is_compiled:
            pytest.skip("this mmcv is compiled for this PyTorch")
        program = (
            "import refseg, torch\n"
            "from refseg.compat import CompiledOpMissing\n"
            "from mmcv.ops import nms\n"
            "try: nms(torch.rand(4, 4), torch.rand(4), 0.5)\n"
            "except CompiledOpMissing as error: print(error)"
        )
        message = output(program)
        assert "'nms'" in message and "pip install" in message and "refseg doctor" in message

    @pytest.fixture
    def fake_mmcv(self, tmp_path: Path) -> Path:
        package = tmp_path / "mmcv"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '2.1.0'\n")
        return package

    def test_compiled_extension_is_used(self, fake_mmcv: Path) -> None:
        (fake_mmcv / "_ext.py").write_text("def nms(): return 'the real one'\n")
        program = "import refseg, mmcv._ext as e; print(e.nms(), refseg.compat.mmcv_ext_state()[0])"
        assert output(program, fake_mmcv.parent) == "the real one True"

    def test_broken_extension_is_replaced(self, fake_mmcv: Path) -> None:
        """The file is there but does not load, as if compiled for another PyTorch."""
        (fake_mmcv / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a library")
        program = "import refseg, mmcv._ext as e; print(callable(e.nms), refseg.compat.mmcv_ext_state())"
        text = output(program, fake_mmcv.parent)
        assert text.startswith("True (False, ") and "does not load" in text

    def test_state_of_an_mmcv_without_extension(self, fake_mmcv: Path) -> None:
        text = output("import refseg; print(refseg.compat.mmcv_ext_state())", fake_mmcv.parent)
        assert text == "(False, 'this mmcv has no compiled extension')"

    def test_is_installed_once(self) -> None:
        compat.install_mmcv_ext_stand_in()
        compat.install_mmcv_ext_stand_in()
        assert sum(type(finder).__name__ == "_ExtFinder" for finder in sys.meta_path) <= 1


class TestCheckpointsOfMmengine:
    """Write a checkpoint like mmengine's: weights, and the history of its message hub."""

    SAVE = (
        "import sys, torch, numpy as np\n"
        "from mmengine.logging import MessageHub\n"
        "hub = MessageHub.get_instance('test')\n"
        "hub.update_scalar('train/loss', 1.5); hub.update_scalar('train/lr', np.float64(0.1))\n"
        "hub.update_info('iter', 3)\n"
        "torch.save({'state_dict': {'w': torch.ones(2)}, 'message_hub': hub.state_dict()}, sys.argv[1])\n"
    )

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("checkpoint") / "epoch_1.pth"
        output(self.SAVE.replace("sys.argv[1]", repr(str(path))))
        return path

    def test_is_still_needed(self, checkpoint: Path) -> None:
        done = run(f"import torch, mmengine; torch.load({str(checkpoint)!r})")
        assert "Weights only load failed" in done.stderr, OBSOLETE

    def test_load(self, checkpoint: Path) -> None:
        program = (
            "import torch; from refseg import compat; compat.allow_mmengine_checkpoints()\n"
            f"loaded = torch.load({str(checkpoint)!r}, weights_only=True)\n"
            "history = loaded['message_hub']['log_scalars']['train/loss']\n"
            "print(loaded['state_dict']['w'].tolist(), history.current(), history.statistics('mean'))"
        )
        assert output(program) == "[1.0, 1.0] 1.5 1.5"

    def test_other_pickles_are_refused(self, tmp_path: Path) -> None:
        """A pickle that would run a command, and one that reaches through getattr."""
        program = (
            "import os, pathlib, torch; from refseg import compat; compat.allow_mmengine_checkpoints()\n"
            "class Bad:\n"
            "    def __init__(self, *call): self.call = call\n"
            "    def __reduce__(self): return self.call\n"
            "for bad in (Bad(os.system, ('true',)), Bad(getattr, (pathlib.Path, 'cwd'))):\n"
            f"    torch.save(bad, {str(tmp_path / 'bad.pth')!r})\n"
            f"    try: torch.load({str(tmp_path / 'bad.pth')!r})\n"
            "    except Exception as error: print('Weights only load failed' in str(error) or 'refused' in str(error))"
        )
        assert output(program).split() == ["True", "True"]


class TestDistributedOnCpu:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        """Return the variables that torchrun sets, for one process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def test_is_still_needed(self, environment: dict[str, str]) -> None:
        done = run("from mmengine.dist import init_dist; init_dist('pytorch', backend='gloo')", **environment)
        assert done.returncode != 0 and "set_device" in done.stderr, OBSOLETE

    def test_gloo_is_initialized(self, environment: dict[str, str]) -> None:
        program = (
            "from refseg import compat; import torch.distributed as dist\n"
            "print(compat.init_cpu_dist('pytorch'), dist.get_backend(), compat.init_cpu_dist('pytorch'))\n"
            "dist.destroy_process_group()"
        )
        assert output(program, **environment) == "True gloo False"

    def test_timeout_of_processes(self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
        waits = []
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, timeout: waits.append(timeout))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for seconds in (None, 7200):
            compat.init_cpu_dist("pytorch", seconds)
        assert waits == [None, datetime.timedelta(hours=2)]

    @pytest.mark.parametrize("code", [0, 3])
    def test_launched_processes_end_without_destructors(self, environment: dict[str, str], code: int) -> None:
        """Exit handlers run and buffered output is flushed. Python's later clean-up is skipped."""
        program = (
            "import atexit, sys; from refseg import compat\n"
            "class Destroyed:\n"
            "    def __del__(self): sys.__stdout__.write(' destroyed')\n"
            "kept = Destroyed(); atexit.register(print, 'handler', end='')\n"
            f"compat.exit_launched({code})"
        )
        launched, alone = run(program, **environment), run(program)
        assert (launched.returncode, launched.stdout) == (code, "handler")
        assert (alone.returncode, alone.stdout) == (code, "handler destroyed")

    def test_slurm(self, environment: dict[str, str]) -> None:
        slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
        places = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
        program = (
            "import os; [os.environ.pop(name, None) for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')]\n"
            "from refseg import compat; import torch.distributed as dist\n"
            "print(compat.init_cpu_dist('slurm'), dist.get_world_size(), os.environ['LOCAL_RANK'])"
        )
        assert output(program, **slurm, **places) == "True 1 0"

    def test_one_process_needs_nothing(self) -> None:
        assert compat.init_cpu_dist("none") is False

    def test_missing_variables_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UsageError, match=r"RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.*dist_train\.sh"):
            compat.init_cpu_dist("pytorch")

    def test_the_default_wrapper_still_needs_a_device(self, environment: dict[str, str]) -> None:
        program = (
            "import torch, torch.distributed as dist; from mmengine.model import MMDistributedDataParallel\n"
            "dist.init_process_group('gloo'); MMDistributedDataParallel(torch.nn.Linear(1, 1), device_ids=[0])"
        )
        done = run(program, **environment)
        assert done.returncode != 0 and "device_ids" in done.stderr, OBSOLETE

    def test_wrap_on_cpu_uses_plain_batch_norm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mmengine.config import Config

        for gpu, kept in ((False, None), (True, "torch")):
            monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
            cfg = Config(dict(sync_bn="torch"))
            compat.wrap_on_cpu(cfg)
            assert cfg.sync_bn == kept

    def test_wrap_on_cpu_names_a_wrapper_without_a_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mmengine.config import Config

        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        cfg = Config(dict(launcher="pytorch", find_unused_parameters=True))
        compat.wrap_on_cpu(cfg)
        assert cfg.model_wrapper_cfg.device_ids is None and cfg.model_wrapper_cfg.find_unused_parameters
        for untouched in (dict(launcher="none"), dict(launcher="pytorch", model_wrapper_cfg=dict(type="Own"))):
            cfg = Config(untouched)
            compat.wrap_on_cpu(cfg)
            assert cfg.get("model_wrapper_cfg") == untouched.get("model_wrapper_cfg")


class TestKeepWeights:
    """A timm model held by a BaseModule, whose `init_weights` the runner calls before training."""

    def weights_change(self, keep: bool) -> bool:
        import timm
        import torch
        from mmengine.model import BaseModule

        class Holder(BaseModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_classes=0)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.fill_(0.25)  # stands for pretrained weights
                self.encoder = compat.keep_weights(model) if keep else model

        holder = Holder()
        holder.init_weights()
        return any(bool((parameter != 0.25).any()) for parameter in holder.encoder.parameters())

    def test_is_still_needed(self) -> None:
        assert self.weights_change(keep=False), OBSOLETE

    def test_keeps_weights(self) -> None:
        assert not self.weights_change(keep=True)


def test_options_keep_spaces() -> None:
    import argparse

    from mmengine.config import DictAction

    from refseg.compat import dict_action

    def parse(action: type, *values: str) -> dict:
        parser = argparse.ArgumentParser()
        parser.add_argument("--cfg-options", nargs="+", action=action)
        return parser.parse_args(["--cfg-options", *values]).cfg_options

    assert parse(dict_action(), "a.file=own dir/x.jsonl", "b=3", "c=[1, 2]", "d=1,2", "e='x y'", "f=None") == {
        "a.file": "own dir/x.jsonl", "b": 3, "c": [1, 2], "d": [1, 2], "e": "x y", "f": None,
    }  # fmt: skip
    assert parse(DictAction, "a=own dir") == {"a": "owndir"}, "mmengine keeps spaces now: delete dict_action"


def test_shipped_bases_are_found(tmp_path: Path) -> None:
    program = "{setup}from mmengine.config import Config; print(Config.fromfile('own.py').default_scope)"
    (tmp_path / "own.py").write_text("_base_ = 'refseg::_base_/default_runtime.py'\n")
    here = f"import os; os.chdir({str(tmp_path)!r}); "
    twice = "from refseg.compat import find_shipped_bases as find; find(); find(); "
    assert output(program.format(setup=here + twice)) == "refseg"
    assert run(program.format(setup=here)).returncode != 0, OBSOLETE


def test_launcher_adds_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed process has printed its error. A killed one gets a sentence about --resume."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from refseg.compat import torchrun

    for code, words in ((1, ""), (-9, "process 1 was ended by signal 9")):
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=code, error_file="none")

        def fails(failure: ProcessFailure = failure) -> None:
            raise ChildFailedError("train", {1: failure})

        monkeypatch.setattr("torch.distributed.run.main", fails)
        with pytest.raises(SystemExit) as done:
            torchrun()
        err = capsys.readouterr().err
        assert done.value.code == 1 and words in err and bool(err) == bool(words)


class TestYapfCache:
    def test_cache_is_written_once(self, tmp_path: Path) -> None:
        """The first process writes the grammar into an empty cache. The next one only reads it."""
        environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
        assert (
            output("from refseg.compat import write_yapf_cache as w; w(); print('written')", **environment) == "written"
        )
        files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pickle")}
        assert files
        assert output("import mmengine.config; print('read')", **environment) == "read"
        assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pickle")}


def test_configs_are_formatted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine alone formats the same config each time, and the text is the same."""
    from mmengine.config import Config, config
    from yapf.yapflib import yapf_api

    calls: list[str] = []
    format_tree = yapf_api.FormatTree
    monkeypatch.setattr(
        yapf_api, "FormatTree", lambda *args, **kwargs: calls.append("") or format_tree(*args, **kwargs)
    )
    cfg = Config(dict(a=1, b=dict(c=[1, 2])))
    monkeypatch.setattr(config, "FormatCode", yapf_api.FormatCode)
    texts = [cfg.pretty_text, cfg.pretty_text]
    assert len(calls) == 2
    compat.format_configs_once.__wrapped__()
    texts += [cfg.pretty_text, cfg.pretty_text]
    assert len(calls) == 3 and len(set(texts)) == 1
