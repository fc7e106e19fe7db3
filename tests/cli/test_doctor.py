"""`refseg doctor`: checks of libraries and of the machine. A broken library does not hide the others."""

from __future__ import annotations

import argparse
import json
import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from refseg.cli import doctor
from refseg.terminal import FAIL, OK, WARN, Check


def fake_torch(error: str = "", *gpus: tuple[str, int, int], cuda: str = "13.0") -> SimpleNamespace:
    """Return a torch with GPUs of (name, GiB, compute capability), whose first computation may raise."""

    def zeros(*args: object, **kwargs: object) -> object:
        if error:
            raise RuntimeError(error)
        return SimpleNamespace(mul=lambda factor: SimpleNamespace(item=lambda: 0.0))

    found = [SimpleNamespace(name=name, total_memory=gib * 2**30, major=major) for name, gib, major in gpus]
    device = SimpleNamespace(device_count=lambda: len(found), get_device_properties=found.__getitem__)
    return SimpleNamespace(zeros=zeros, version=SimpleNamespace(cuda=cuda, hip=None), cuda=device)


class TestChecks:
    @pytest.mark.parametrize(
        ("version", "ranges", "expected"),
        [
            ("0.10.7", ">=0.10.7,<0.11", True),
            ("0.10.6", ">=0.10.7,<0.11", False),
            ("0.11.0", ">=0.10.7,<0.11", False),
            ("2.14.1+cu130", ">=2.4", True),
            ("2.4", ">=2.4.0", True),
            ("4.14.0", "", True),
        ],
    )
    def test_ranges(self, version: str, ranges: str, expected: bool) -> None:
        assert doctor.satisfies(version, ranges) is expected

    def test_ranges_come_from_the_requirements(self) -> None:
        ranges = doctor.required_ranges()
        assert ranges["mmengine"] == ">=0.10.7,<0.11" and ranges["torch"] == ">=2.4"

    @pytest.mark.parametrize(("version", "status"), [((3, 9, 1), FAIL), ((3, 11, 7), OK), ((3, 14, 0), WARN)])
    def test_python(self, version: tuple[int, ...], status: str) -> None:
        assert doctor.check_python(version).status == status

    @pytest.mark.parametrize(
        ("torch", "status", "words"),
        [
            (fake_torch("Found no NVIDIA driver"), OK, ["runs on CPU"]),
            (fake_torch("The NVIDIA driver on your system is too old"), WARN, ["runs on CPU", "too old"]),
            (fake_torch("no kernel image", ("H100", 79, 9)), WARN, ["H100", "no kernel image"]),
            (fake_torch("", ("H100", 79, 9), ("T4", 15, 7)), OK, ["H100 (79.0 GiB, bf16), T4 (15.0 GiB, no bf16"]),
        ],
    )
    def test_gpu(self, torch: SimpleNamespace, status: str, words: list[str]) -> None:
        check = doctor.check_gpu(torch)
        assert check.status == status and all(word in check.text for word in words)
        assert bool(check.remedy) == (status == WARN)

    @pytest.mark.parametrize(
        ("name", "error", "text", "remedy"),
        [
            ("opencv", ImportError("libGL.so.1: cannot open shared object"), "libGL", "apt-get install libgl1"),
            ("opencv", ImportError("libGL.so.1: cannot open shared object"), "libGL", "opencv-python-headless"),
            ("mmsegmentation", ModuleNotFoundError("no mmseg", name="mmseg"), "not installed", "'mmsegmentation>=1'"),
            ("mmsegmentation", ModuleNotFoundError("no ftfy", name="ftfy.x"), "no ftfy", "install ftfy"),
            ("mmdet", AssertionError("MMCV==2.2.0 is used but incompatible."), "MMCV", "remedy for mmcv"),
            ("scipy", ImportError("numpy._ARRAY_API not found"), "ARRAY", "--force-reinstall numpy"),
            ("torchvision", RuntimeError("operator torchvision::nms does not exist"), "nms", "'torch=="),
            ("timm", SystemExit(1), "SystemExit: 1", "--force-reinstall --no-deps 'timm>=1'"),
        ],
    )
    def test_failed_import(self, name: str, error: BaseException, text: str, remedy: str) -> None:
        problem, command = doctor.failed_import(name, error, ">=1")
        assert text in problem and remedy in command

    @pytest.mark.parametrize(
        ("full", "lite", "compiled", "state", "status", "words"),
        [
            ("", "2.1.0", False, "this mmcv has no compiled extension", OK, "needs none"),
            ("2.1.0", "", True, "compiled extension x.so", OK, "x.so"),
            ("2.1.0", "", False, "does not load (undefined symbol _Z)", WARN, "symbol _Z"),
            ("2.1.0", "2.1.0", False, "", WARN, "overwrite each other"),
        ],
    )
    def test_mmcv(self, full: str, lite: str, compiled: bool, state: str, status: str, words: str) -> None:
        check = doctor.check_mmcv("2.1.0", full, lite, compiled, state)
        assert check.status == status and words in check.text
        assert status == OK or "pip" in check.remedy

    @pytest.mark.parametrize(
        ("choice", "status"),
        [
            (("triton", "triton runs on cuda:0"), OK),
            (("pytorch", "no triton: Triton is not installed"), WARN),
            (None, FAIL),
        ],
    )
    def test_deformable_attention(
        self, choice: tuple[str, str] | None, status: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("refseg.ops.choose_backend", (lambda tensor: choice) if choice else None)
        (check,) = doctor.check_ops()
        assert check.status == status and (choice is None or choice[1] in check.text)


class TestMachine:
    def checks(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> dict[str, Check]:
        monkeypatch.setenv("REFSEG_DATA", str(root))
        return {check.name: check for check in doctor.check_machine()}

    def test_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checks = self.checks(monkeypatch, tmp_path)
        assert checks["data: RefShapes"].status == checks["data: others"].status == WARN
        assert f"--out {tmp_path}/refshapes_mini" in checks["data: RefShapes"].remedy
        for name in ("grefcoco", "images", "mine", "refcoco", "refshapes_mini"):
            (tmp_path / name).mkdir()
        checks = self.checks(monkeypatch, tmp_path)
        assert checks["data: RefShapes"].status == checks["data: others"].status == checks["configs"].status == OK
        assert checks["data: others"].text.startswith(f"refcoco, grefcoco in {tmp_path} ")

    def test_no_configs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("refseg.paths.shipped_configs", dict)
        assert self.checks(monkeypatch, tmp_path)["configs"].status == FAIL

    def test_full_disk_and_small_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Docker's default for shared memory is 64 MiB."""
        usage = SimpleNamespace(total=2**26, free=2**26)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr("os.path.isdir", lambda path: True)
        checks = self.checks(monkeypatch, tmp_path)
        assert checks["disk"].status == checks["shared memory"].status == WARN
        assert "--shm-size" in checks["shared memory"].remedy


class TestLibraries:
    """Imports in child processes."""

    @pytest.fixture
    def fakes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path

    def test_broken_libraries_do_not_hide_others(self, fakes: Path) -> None:
        """timm raises, ftfy ends Python, tensorboard hangs, mmengine and mmcv have the wrong version, scipy works."""
        (fakes / "timm.py").write_text("raise OSError('libfoo.so: no')")
        (fakes / "ftfy.py").write_text("import os; os._exit(7)")
        (fakes / "tensorboard.py").write_text("import time; time.sleep(60)")
        (fakes / "mmengine").mkdir()
        (fakes / "mmengine/__init__.py").write_text("__version__ = '0.9.0'")
        (fakes / "mmengine/runner.py").touch()
        (fakes / "mmcv.py").write_text("__version__ = '2.2.0'")
        (fakes / "scipy.py").write_text("__version__ = '1.15.0'")
        names = ["timm", "ftfy", "tensorboard", "mmengine", "mmcv", "scipy"]
        checks = doctor.check_libraries(names, timeout_s=5)
        assert [check.name for check in checks] == names
        assert [check.status for check in checks] == [FAIL, FAIL, WARN, FAIL, FAIL, OK]
        texts = ("OSError: libfoo.so: no", "exit code 7", "hangs", "0.9.0, but", "2.2.0, but refseg needs >=2.0.1,<2.2")
        for check, words in zip(checks, texts, strict=False):
            assert words in check.text and check.remedy
        assert checks[4].remedy.startswith("python -m pip uninstall -y mmcv mmcv-lite && ")

    def test_mmcv_that_was_compiled_for_another_pytorch(self, fakes: Path) -> None:
        """The `_ext` of this mmcv is not a library. The check shows the loader's error and a remedy."""
        package = fakes / "mmcv"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '2.1.0'\n")
        (package / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a library")
        (check,) = doctor.check_libraries(["mmcv"])
        assert check.status == WARN and "does not load" in check.text and "refseg works without it" in check.text


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, checks: list[Check], *argv: str) -> int:
        parser = argparse.ArgumentParser()
        doctor.add_arguments(parser)
        monkeypatch.setattr(doctor, "check_libraries", lambda: checks)
        monkeypatch.setattr(doctor, "check_machine", list)
        return doctor.main(parser.parse_args(argv))

    def test_warnings_are_allowed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        checks = [Check("torch", OK, "2"), Check("data", WARN, "none", "refseg data refshapes")]
        assert self.run(monkeypatch, checks) == 0
        output = capsys.readouterr().out
        assert "-> refseg data refshapes" in output and "Everything needed works" in output

    def test_failures_end_with_1(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, [Check("torch", FAIL, "not installed", "pip install torch")]) == 1
        assert "cannot work yet: torch" in capsys.readouterr().out

    def test_json(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, [Check("a", WARN, "b", "c")], "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert result["ok"] and result["findings"][0]["name"] == "python"
        assert result["findings"][1:] == [{"name": "a", "status": "WARN", "text": "b", "remedy": "c"}]


@pytest.mark.slow
def test_this_environment_is_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the whole command, with every library and without a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.main(argparse.Namespace(model=None, json=True)) == 0
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert "runs on CPU" in findings["gpu"]["text"]
    assert findings["mmdet"]["status"] == findings["mmsegmentation"]["status"] == OK
    assert findings["deformable attention"]["text"].startswith("pytorch")
