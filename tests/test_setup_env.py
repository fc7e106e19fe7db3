"""The environment behind `make`: its key, its stamp, what it keeps and what it advises."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cloning import REPO, clone


@pytest.fixture
def dev_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "tools/dev"))
    for name in ("REFSEG_VENV", "REFSEG_SYSTEM", "REFSEG_KEEP_TORCH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env_build(dev_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up with everything slow replaced: nothing to keep, nothing to install; it notes what it would do."""
    module = importlib.import_module("_env_build")
    done: list[str] = []
    monkeypatch.setattr(module, "done", done, raising=False)
    monkeypatch.setattr(module, "find_kept", lambda python: (module.Kept(), []))
    monkeypatch.setattr(module, "install", lambda *args: done.append("install"))
    monkeypatch.setattr(module, "install_project", lambda *args: done.append("install_project"))
    monkeypatch.setattr(module, "ask", lambda *args: {"broken": {}})
    monkeypatch.setattr(module, "run_logged", lambda command, **kwargs: fake_venv(Path(command[-1])))
    monkeypatch.setenv("REFSEG_VENV", str(tmp_path / "a place/venv"))
    return module


def fake_venv(folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/python").touch()
    (folder / "pyvenv.cfg").touch()


def names_in(file: Path) -> dict[str, str]:
    """Distribution -> range, of a requirements file."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return {re.split(r"[<>=]", line)[0].lower(): line for line in lines if line}


class TestKey:
    def key(self, repo: Path) -> str:
        command = [sys.executable, str(repo / "tools/dev/setup_env.py"), "--print-key"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def test_depends_on_the_pins_and_not_on_the_place(self, tmp_path: Path) -> None:
        parts = ("requirements", "setup.py", "tools/dev")
        one, two = clone(tmp_path / "one", *parts), clone(tmp_path / "deeper/two b", *parts)
        key = self.key(one)
        assert key == self.key(one) == self.key(two)
        assert key.startswith(f"py3{sys.version_info[1]}-")

        pins = two / "requirements/constraints.txt"
        pins.write_text(pins.read_text().replace("mmengine==0.10.7", "mmengine==0.10.8"))
        changed = self.key(two)
        assert changed != key
        (two / "setup.py").write_text("# another\n")
        assert self.key(two) not in (key, changed)

    def test_line_ends_do_not_matter(self, tmp_path: Path) -> None:
        repo = clone(tmp_path, "requirements", "setup.py", "tools/dev")
        key = self.key(repo)
        file = repo / "requirements/runtime.txt"
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
        assert self.key(repo) == key


class TestEnsure:
    def test_makes_it_once(self, env_build: ModuleType, tmp_path: Path) -> None:
        python = env_build.ensure()
        assert python == tmp_path / "a place/venv/bin/python"
        assert env_build.done == ["install", "install_project"]
        assert env_build.ensure() == python
        assert env_build.done == ["install", "install_project"], "the second run only looks at the stamp"

    def test_an_interrupted_set_up_leaves_no_stamp_and_is_repaired(
        self, env_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        venv = tmp_path / "a place/venv"
        with monkeypatch.context() as patch:
            patch.setattr(env_build, "install", interrupted)
            with pytest.raises(KeyboardInterrupt):
                env_build.ensure()
        assert venv.exists() and not (venv / env_build.STAMP).exists()
        (venv / "half of a package").touch()
        env_build.ensure()
        assert (venv / env_build.STAMP).exists() and not (venv / "half of a package").exists()

    def test_is_rebuilt_when_the_key_changes(self, env_build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        env_build.ensure()
        monkeypatch.setattr(env_build, "environment_key", lambda: "py311-other")
        env_build.ensure()
        assert env_build.done.count("install") == 2

    def test_is_rebuilt_when_what_it_keeps_goes_away(
        self, env_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch = tmp_path / "torch-2.9.0.dist-info"
        torch.mkdir()
        kept = env_build.Kept({"torch": "2.9.0"}, [str(torch)], [])
        monkeypatch.setattr(env_build.sys, "prefix", env_build.sys.base_prefix)
        monkeypatch.setattr(env_build, "find_kept", lambda python: (kept, []))
        env_build.ensure()
        env_build.ensure()
        assert env_build.done.count("install") == 1
        torch.rmdir()
        env_build.ensure()
        assert env_build.done.count("install") == 2

    def test_a_shared_environment_is_pointed_at_this_clone(
        self, env_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two clones with the same pins share CI's environment: only the editable install changes."""
        env_build.ensure()
        key = env_build.environment_key(REPO)
        monkeypatch.setattr(env_build, "REPO", tmp_path / "another clone")
        monkeypatch.setattr(env_build, "environment_key", lambda: key)
        env_build.ensure()
        assert env_build.done == ["install", "install_project", "install_project"]

    def test_leaves_other_environments_alone(self, env_build: ModuleType, tmp_path: Path) -> None:
        mine = tmp_path / "a place/venv"
        mine.mkdir(parents=True)
        (mine / "precious").touch()
        with pytest.raises(env_build.SetupError, match="was not made by this script"):
            env_build.ensure()
        assert (mine / "precious").exists()

    def test_names_the_package_that_makes_environments(
        self, env_build: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(env_build.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(env_build.SetupError, match=r"apt-get install python3\.\d+-venv"):
            env_build.ensure()

    def test_a_kept_torch_is_pinned_as_it_is(self, env_build: ModuleType, tmp_path: Path) -> None:
        kept = env_build.Kept({"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124", "mmcv": "2.1.0"}, [], [])
        requirements, constraints = env_build.write_pip_inputs(tmp_path, kept)
        pins = constraints.read_text().splitlines()
        assert "torch==2.6.0+cu124" in pins and "mmengine==0.10.7" in pins
        assert not any(pin.startswith(("torch==2.14", "sympy==", "networkx==")) for pin in pins)
        assert "mmcv-lite" not in names_in(requirements), "it would overwrite the files of the compiled mmcv"

        requirements, constraints = env_build.write_pip_inputs(tmp_path, env_build.Kept())
        assert "mmcv-lite" in names_in(requirements)
        assert constraints.read_text() == (REPO / "requirements/constraints.txt").read_text()


class TestKept:
    """What an interpreter already has, with small fakes of the libraries that come first on its path."""

    def fake(self, folder: Path, name: str, version: str, **files: str) -> None:
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / f"{file}.py").write_text(text)
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    @pytest.fixture
    def fakes(self, dev_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        torch = "class T:\n def __getattr__(self, n): return lambda *a: 6 if n == 'item' else self\n"
        self.fake(tmp_path, "torch", "2.6.0+cu124", __init__=torch + "def ones(*a): return T()\nrand = ones\n")
        ops = "class ops:\n nms = staticmethod(lambda *a: None)\n"
        self.fake(tmp_path, "torchvision", "0.21.0+cu124", __init__=ops)
        return tmp_path

    def kept(self) -> tuple[dict[str, str], str]:
        kept, notes = importlib.import_module("_env_probe").find_kept(sys.executable)
        return kept.versions, " ".join(notes)

    PAIR = {"torch": "2.6.0+cu124", "torchvision": "0.21.0+cu124"}

    def test_a_pair_that_works(self, fakes: Path) -> None:
        self.fake(fakes, "mmcv", "2.1.0", __init__="")  # no _ext: mmcv-lite
        assert self.kept() == (self.PAIR, "")

    def test_a_compiled_mmcv(self, fakes: Path) -> None:
        self.fake(fakes, "mmcv", "2.1.0", __init__="", _ext="")
        assert self.kept()[0] == {**self.PAIR, "mmcv": "2.1.0"}

    def test_not_an_mmcv_that_mmdet_refuses(self, fakes: Path) -> None:
        self.fake(fakes, "mmcv", "2.2.0", __init__="", _ext="")
        versions, notes = self.kept()
        assert versions == self.PAIR and "mmdet refuses" in notes

    def test_not_a_torchvision_that_does_not_fit(self, fakes: Path) -> None:
        (fakes / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        versions, notes = self.kept()
        assert versions == {} and "torchvision::nms" in notes

    def test_not_a_torch_that_is_too_old(self, fakes: Path) -> None:
        (fakes / "torch-2.6.0+cu124.dist-info").rename(fakes / "torch-2.3.1.dist-info")
        metadata = fakes / "torch-2.3.1.dist-info/METADATA"
        metadata.write_text(metadata.read_text().replace("2.6.0+cu124", "2.3.1"))
        versions, notes = self.kept()
        assert versions == {} and "too old" in notes

    def test_nothing_when_told_so(self, fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REFSEG_KEEP_TORCH", "0")
        assert self.kept() == ({}, "")


class TestAdvice:
    @pytest.mark.parametrize(
        ("output", "advice"),
        [
            ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "HTTPS_PROXY"),
            ("OSError: [Errno 28] No space left on device", "REFSEG_VENV="),
            ("ERROR: No matching distribution found for torch==2.14.1", "PYTHON="),
            ("something else", "full log"),
        ],
    )
    def test_follows_from_what_pip_says(self, dev_tools: None, output: str, advice: str) -> None:
        assert advice in importlib.import_module("_env_pip").hint_for(output)

    def test_shows_the_last_lines(self, dev_tools: None, tmp_path: Path) -> None:
        pip = importlib.import_module("_env_pip")
        command = [sys.executable, "-c", "print('first'); print('ERROR: no such thing'); raise SystemExit(3)"]
        with pytest.raises(pip.SetupError, match=r"(?s)pip install failed.*ERROR: no such thing"):
            pip.run_logged(command, log=tmp_path / "log", what="pip install")

    def test_of_the_system_mode_is_a_command(self, dev_tools: None) -> None:
        system = importlib.import_module("_env_system")

        def broken(python: str, modules: list[str]) -> dict[str, str]:
            assert {"torch", "cv2", "pkg_resources"} <= set(modules)
            return {"ftfy": "missing", "cv2": "ImportError: libGL.so.1"}

        with pytest.raises(system.SetupError, match=r"(?s)missing: ftfy.*pip install ftfy==6\.\S+\n.*cv2.*libGL"):
            system.check_system(REPO, broken, ("runtime",))
        system.check_system(REPO, lambda python, modules: {}, ("runtime", "dev"))

    def test_of_broken_imports(self, dev_tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One module is missing, one raises, one ends Python; the good one is not blamed."""
        (tmp_path / "raises_here.py").write_text("raise OSError('libwhat.so')")
        (tmp_path / "ends_python.py").write_text("import os; os._exit(3)")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        probe = importlib.import_module("_env_probe")
        found = probe.broken_imports(sys.executable, ["json", "not_there", "raises_here", "ends_python"])
        assert found == {
            "not_there": "missing",
            "raises_here": "OSError: libwhat.so",
            "ends_python": "the import crashes or hangs",
        }


class TestRequirements:
    def test_every_direct_requirement_is_pinned_within_its_range(self) -> None:
        from refseg.doctor import satisfies

        pins = [
            line.split(";")[0].split("==")
            for line in (REPO / "requirements/constraints.txt").read_text().splitlines()
            if "==" in line and not line.startswith("#")
        ]
        for group in ("runtime", "demo", "onnx", "log", "dev"):
            for name, line in names_in(REPO / f"requirements/{group}.txt").items():
                versions = [version.strip() for pinned, version in pins if pinned == name]
                assert versions, f"{name} has no pin"
                assert all(satisfies(version, line[len(name) :]) for version in versions), line

    def test_what_a_kept_torch_leaves_open_is_pinned(self, dev_tools: None) -> None:
        """A name in TORCH_FAMILY that constraints.txt does not know is a typo."""
        family = importlib.import_module("_env_build").TORCH_FAMILY
        assert family <= set(names_in(REPO / "requirements/constraints.txt"))
