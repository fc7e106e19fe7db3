"""`refseg doctor`: what it makes of facts, and that a broken library hides no other."""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path

import pytest

from refseg import doctor
from refseg import doctor as checks
from refseg.doctor import FAIL, OK, WARN, Finding

RANGES = ">=2.0.1,<2.2"


class TestChecks:
    """Facts in, findings out."""

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
        assert checks.satisfies(version, ranges) is expected

    @pytest.mark.parametrize(("version", "status"), [((3, 9, 1), FAIL), ((3, 11, 7), OK), ((3, 14, 0), WARN)])
    def test_python(self, version: tuple[int, ...], status: str) -> None:
        assert checks.check_python(version).status == status

    def test_torch_without_a_gpu_is_fine(self) -> None:
        facts = {"version": "2.14.1+cu130", "cuda": "13.0", "gpus": [], "gpu_error": "Found no NVIDIA driver"}
        torch, gpu = checks.check_torch(facts, ">=2.4")
        assert torch == Finding("torch", OK, "2.14.1+cu130 (CUDA 13.0 build)")
        assert gpu.status == OK and "runs on CPU" in gpu.text

    def test_an_old_driver_is_named(self) -> None:
        facts = {"version": "2.14.1", "cuda": "13.0", "gpu_error": "The NVIDIA driver on your system is too old"}
        gpu = checks.check_torch(facts, "")[1]
        assert gpu.status == WARN and "too old" in gpu.text and "update the NVIDIA driver" in gpu.remedy

    def test_gpus(self) -> None:
        gpu = checks.check_gpu(
            {"gpus": [{"name": "H100", "gib": 79.1, "bf16": True}, {"name": "T4", "gib": 15, "bf16": False}]}
        )
        assert gpu.status == OK and "H100 (79.1 GiB, bf16), T4 (15 GiB, no bf16" in gpu.text

    def test_pair_of_torch_and_torchvision(self) -> None:
        assert checks.check_pair({"torch": "2.14.1+cpu", "wants": "2.14.1"}) == []
        assert checks.check_pair({"torch": "2.14.1", "wants": ""}) == []
        (pair,) = checks.check_pair({"torch": "2.13.0", "wants": "2.14.1"})
        assert pair.status == FAIL and "torch==2.13.0" in pair.remedy

    def test_opencv_without_libgl(self) -> None:
        facts = {"error": "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"}
        found = checks.check_library("opencv", facts, ">=4.8,<5")
        assert found.status == FAIL
        assert "apt-get install libgl1 libglib2.0-0" in found.remedy and "opencv-python-headless" in found.remedy

    def test_missing_library_and_missing_dependency(self) -> None:
        """mmsegmentation itself is missing; or it is there and ftfy, which it imports, is not."""
        itself = {"missing": "mmseg", "error": "ModuleNotFoundError: No module named 'mmseg'"}
        other = {"missing": "ftfy", "error": "ModuleNotFoundError: No module named 'ftfy'"}
        assert checks.check_library("mmsegmentation", itself, ">=1.2.2").text == "not installed"
        found = checks.check_library("mmsegmentation", other, ">=1.2.2")
        assert "ftfy" in found.text and found.remedy == "python -m pip install ftfy"

    def test_wrong_version(self) -> None:
        found = checks.check_library("mmengine", {"version": "0.9.0"}, ">=0.10.7,<0.11")
        assert found.status == FAIL and "'mmengine>=0.10.7,<0.11'" in found.remedy

    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            ({"version": "2.1.0", "lite": "2.1.0", "state": "this mmcv has no compiled extension"}, OK, "needs none"),
            ({"version": "2.1.0", "full": "2.1.0", "compiled": True, "state": "compiled extension x.so"}, OK, "x.so"),
            ({"version": "2.1.0", "full": "2.1.0", "state": "does not load (undefined symbol _Z)"}, WARN, "symbol _Z"),
            ({"version": "2.2.0", "full": "2.2.0", "compiled": True, "state": ""}, FAIL, "refused by mmdet"),
            ({"version": "2.1.0", "full": "2.1.0", "lite": "2.1.0", "state": ""}, WARN, "overwrite each other"),
            ({"full": "", "lite": ""}, FAIL, "not installed"),
        ],
    )
    def test_mmcv(self, facts: dict, status: str, words: str) -> None:
        found = checks.check_mmcv(facts, RANGES)
        assert found.status == status and words in found.text
        assert status == OK or "pip" in found.remedy

    def test_backend(self) -> None:
        fast = {"backend": "triton", "reason": "triton runs on cuda:0", "available": ["triton", "plain"]}
        slow = {"backend": "pytorch", "reason": "no triton: Triton is not installed", "available": ["pytorch"]}
        assert checks.check_backend(fast).status == OK
        assert checks.check_backend(slow).status == WARN
        assert checks.check_backend({"error": "RuntimeError: x"}).status == FAIL

    def test_triton_matters_with_a_gpu_only(self) -> None:
        absent = {"missing": "triton", "error": "ModuleNotFoundError: No module named 'triton'"}
        for gpus, status in (([], OK), ([{"name": "H100", "gib": 79, "bf16": True}], WARN)):
            findings = checks.judge_libraries({"torch": {"version": "2.14", "gpus": gpus}, "triton": absent}, {})
            assert findings[-1].status == status

    def test_small_shared_memory(self) -> None:
        """Docker's default is 64 MiB."""
        found = checks.check_shm(0.0625, 0.0625)
        assert found.status == WARN and "--shm-size" in found.remedy

    def test_data(self) -> None:
        missing = checks.check_data("data", [])
        assert [one.status for one in missing] == [WARN, WARN]
        assert missing[0].remedy == "refseg data refshapes --preset mini --out data/refshapes_mini"
        assert missing[1].remedy == "refseg data layout"
        found = checks.check_data("/d", ["grefcoco", "images", "mine", "refcoco", "refshapes_mini"])
        assert [one.status for one in found] == [OK, OK]
        assert found[1].text.startswith("refcoco, grefcoco in /d ")

    def test_no_configs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("refseg.paths.shipped_configs", dict)
        assert doctor.look_at_machine()[0].status == FAIL


class TestMachine:
    def test_missing_and_found_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
        by_name = {one.name: one for one in doctor.look_at_machine()}
        assert by_name["data: RefShapes"].status == WARN
        assert f"--out {tmp_path}/refshapes_mini" in by_name["data: RefShapes"].remedy
        (tmp_path / "refshapes_mini").mkdir()
        by_name = {one.name: one for one in doctor.look_at_machine()}
        assert by_name["data: RefShapes"].status == OK
        assert by_name["configs"].status == OK

    def test_ranges_are_those_of_the_requirements(self) -> None:
        ranges = doctor.required_ranges()
        assert ranges["mmengine"] == ">=0.10.7,<0.11" and ranges["torch"] == ">=2.4"


class TestGather:
    """The child processes."""

    @pytest.fixture
    def fakes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path

    def test_a_broken_library_hides_no_other(self, fakes: Path) -> None:
        """timm raises, ftfy ends Python, tensorboard hangs; scipy is well."""
        (fakes / "timm.py").write_text("raise OSError('libfoo.so: no')")
        (fakes / "ftfy.py").write_text("import os; os._exit(7)")
        (fakes / "tensorboard.py").write_text("import time; time.sleep(60)")
        facts = doctor.gather(["timm", "ftfy", "tensorboard", "scipy"], timeout_s=5)
        assert facts["timm"] == {"error": "OSError: libfoo.so: no"}
        assert "exit code 7" in facts["ftfy"]["error"]
        assert "hangs" in facts["tensorboard"]["error"]
        assert facts["scipy"]["version"]

    def test_mmcv_compiled_for_another_pytorch(self, fakes: Path) -> None:
        """A directory `mmcv` whose `_ext` is no library: the loader's error is shown, and a remedy."""
        package = fakes / "mmcv"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '2.1.0'\n")
        (package / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a library")
        facts = doctor.gather(["mmcv"])["mmcv"]
        assert facts["compiled"] is False
        found = checks.check_mmcv({**facts, "lite": ""}, RANGES)
        assert found.status == WARN and "does not load" in found.text and "refseg works without it" in found.text

    def test_every_probe_has_a_judge(self) -> None:
        findings = doctor.judge_libraries({name: {"error": "X: y"} for name in doctor.PROBES}, {})
        assert {one.name for one in findings} == set(doctor.PROBES) - {"torch pair"}


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *argv: str) -> int:
        parser = argparse.ArgumentParser()
        doctor.add_arguments(parser)
        monkeypatch.setattr(doctor, "diagnose", lambda: findings)
        return doctor.main(parser.parse_args(argv))

    def test_warnings_are_allowed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        findings = [Finding("torch", OK, "2"), Finding("data", WARN, "none", "refseg data refshapes")]
        assert self.run(monkeypatch, findings) == 0
        output = capsys.readouterr().out
        assert "-> refseg data refshapes" in output and "Everything needed works" in output

    def test_failures_are_not(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, [Finding("torch", FAIL, "not installed", "pip install torch")]) == 1
        assert "cannot work yet: torch" in capsys.readouterr().out

    def test_json(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, [Finding("a", WARN, "b", "c")], "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "ok": True,
            "findings": [{"name": "a", "status": "WARN", "text": "b", "remedy": "c"}],
        }


@pytest.mark.slow
def test_this_environment_is_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole thing, with every library and without a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.main(argparse.Namespace(model=None, json=True)) == 0
    findings = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert "runs on CPU" in findings["gpu"]["text"]
    assert findings["mmdet"]["status"] == findings["mmsegmentation"]["status"] == OK
    assert findings["deformable attention"]["text"].startswith("pytorch")
