"""The environment behind `make`: its key, when it is rebuilt, and the torch that it keeps."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cloning import REPO, clone
from conftest import load_script


@pytest.fixture
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module. It keeps no torch, and pip only records its arguments in `module.pip_calls`."""
    module = load_script("tools/dev/setup_env.py")
    for name in ("REFSEG_SYSTEM", "REFSEG_KEEP_TORCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REFSEG_VENV", str(tmp_path / "a place/venv"))
    module.pip_calls = []
    monkeypatch.setattr(module, "find_kept", lambda base: ({}, []))
    monkeypatch.setattr(module, "pip", lambda python, *arguments: module.pip_calls.append(arguments))
    monkeypatch.setattr(module, "TRY_TORCH", "pass")
    run = subprocess.run
    monkeypatch.setattr(  # an environment without pip is made in a tenth of the time
        module.subprocess,
        "run",
        lambda command, **how: run([*command, *["--without-pip"] * ("venv" in command)], **how),
    )
    return module


def test_key_depends_on_pins_and_not_on_location(tmp_path: Path) -> None:
    def key(repo: Path) -> str:
        command = [sys.executable, str(repo / "tools/dev/setup_env.py"), "--print-key"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    parts = ("requirements", "setup.py", "tools/dev")
    one, two = clone(tmp_path / "one", *parts), clone(tmp_path / "deeper/two b", *parts)
    before = key(one)
    assert before == key(two)
    pins = two / "requirements/constraints.txt"
    pins.write_bytes(pins.read_bytes().replace(b"\n", b"\r\n"))
    assert key(two) == before
    pins.write_text(pins.read_text() + "extra==1.0\n")
    assert key(two) != before


def test_environment_is_rebuilt_only_when_the_key_changes(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = setup_env.ensure()
    assert python.exists()
    made = len(setup_env.pip_calls)
    assert made > 0
    assert setup_env.ensure() == python
    assert len(setup_env.pip_calls) == made
    monkeypatch.setattr(setup_env, "environment_key", lambda: "another")
    setup_env.ensure()
    assert len(setup_env.pip_calls) == 2 * made


def test_interrupted_setup_is_repaired(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    works = setup_env.pip
    monkeypatch.setattr(setup_env, "pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup_env.ensure()
    monkeypatch.setattr(setup_env, "pip", works)
    assert setup_env.ensure().exists()


def test_shared_environment_points_to_this_clone(setup_env: ModuleType, tmp_path: Path) -> None:
    setup_env.ensure()
    stamp = tmp_path / "a place/venv/refseg-env.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "project": "/elsewhere"}))
    setup_env.pip_calls.clear()
    setup_env.ensure()
    assert [call[0] for call in setup_env.pip_calls] == ["install"] and str(REPO) in setup_env.pip_calls[0]


def test_other_environments_are_not_touched(setup_env: ModuleType, tmp_path: Path) -> None:
    other = tmp_path / "a place/venv/precious.txt"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(setup_env.SetupError, match="was not made by this script"):
        setup_env.ensure()
    assert other.exists()


def test_kept_torch_is_pinned(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    kept = {"torch": "2.6.0+cu124", "torchvision": "0.21.0", "mmcv": "2.1.0"}
    monkeypatch.setattr(setup_env, "find_kept", lambda base: (kept, [str(folder)]))
    venv = setup_env.ensure().parents[1]
    pins = (venv / "constraints.txt").read_text().splitlines()
    assert "torch==2.6.0+cu124" in pins and not any(pin.startswith(("torch==2.14", "sympy")) for pin in pins)
    assert "mmcv-lite" not in (venv / "requirements.txt").read_text()
    assert str(folder) in next(venv.glob("lib/**/zz_refseg_kept.pth")).read_text()
    folder.rmdir()  # the kept packages are gone: made again
    monkeypatch.setattr(setup_env, "find_kept", lambda base: ({}, []))
    assert "torch==2.6.0+cu124" not in (setup_env.ensure().parents[1] / "constraints.txt").read_text()


@pytest.mark.parametrize(
    ("torch", "nms_works", "keep", "kept"),
    [
        ("2.6.0+cu124", True, "1", True),
        ("2.3.1", True, "1", False),
        ("2.6.0", False, "1", False),
        ("2.6.0", True, "0", False),
    ],
)
def test_only_a_torch_that_works_with_its_torchvision_is_kept(
    torch: str, nms_works: bool, keep: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version, code in (
        ("torch", torch, "def rand(*a): return 0\n"),
        ("torchvision", "0.21.0", "class ops:\n def nms(*a): " + ("pass\n" if nms_works else "raise RuntimeError\n")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("REFSEG_KEEP_TORCH", keep)
    program = "import sys, setup_env; print(setup_env.find_kept(sys.executable)[0])"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO / "tools/dev").stdout
    assert ("torchvision" in shown) == kept


def test_system_mode_lists_missing_packages(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env.check_system(("runtime",))  # the environment of the tests has all
    monkeypatch.setattr(setup_env, "requirements", lambda *groups: ["numpy>=1.26", "no-such-package>=3"])
    with pytest.raises(setup_env.SetupError, match=r"-m pip install 'no-such-package>=3'"):
        setup_env.check_system(("runtime",))


def test_every_direct_requirement_is_pinned_within_its_range(setup_env: ModuleType) -> None:
    from packaging.requirements import Requirement

    pins: dict[str, list[str]] = {}
    for line in setup_env.requirements("constraints"):
        pin = Requirement(line)
        pins.setdefault(pin.name.lower().replace("_", "-"), []).append(str(pin.specifier).removeprefix("=="))
    for file in set((REPO / "requirements").glob("*.txt")) - {REPO / "requirements/constraints.txt"}:
        for line in setup_env.requirements(file.stem):
            wanted = Requirement(line)
            versions = pins.get(setup_env.name_of(line), [])
            assert versions, f"{file.name}: {line} has no pin"
            assert all(wanted.specifier.contains(version) for version in versions), f"{line}: {versions}"


def test_every_dependency_of_torch_is_unpinned_with_it(setup_env: ModuleType) -> None:
    requires = importlib.metadata.requires("torch") or []
    direct = {setup_env.name_of(line) for line in requires if "extra ==" not in line}
    libraries = {name for name in direct if re.match(r"nvidia-|cuda-|triton|setuptools", name)}
    assert direct - libraries <= setup_env.TORCH_FAMILY


def test_pip_draws_no_progress_bars_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_script("tools/dev/setup_env.py")
    commands: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(module.subprocess, "run", lambda command, **how: commands.append(command) or done)
    for terminal in (False, True):
        monkeypatch.setattr(module.sys.stderr, "isatty", lambda terminal=terminal: terminal)
        module.pip(tmp_path / "bin/python", "install", "x")
    assert commands[0][-2:] == ["--progress-bar", "off"] and "--progress-bar" not in commands[1]
