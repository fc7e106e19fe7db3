"""REFSEG_SYSTEM=1: the calling environment is used as it is, once its imports work."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from _env_pip import SetupError

# distribution -> module, where the names differ; "" where nothing fails without it
MODULES = {
    "mmcv-lite": "mmcv",
    "mmsegmentation": "mmseg",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "gradio": "",  # the tests of the web page are skipped
    "playwright": "",
    "pre-commit": "",
    "pytest-timeout": "pytest_timeout",
    "pytest-xdist": "xdist",
    "setuptools": "pkg_resources",
    "wheel": "",
}


def _lines(file: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower()


def _applies(pin: str) -> bool:
    """The two markers that constraints.txt uses."""
    marker = pin.partition(";")[2].strip()
    old = sys.version_info < (3, 11)
    return not marker or (old if "<" in marker else not old)


def pinned(repo: Path, requirement: str) -> str:
    """The tested version of a requirement, or the requirement itself."""
    for pin in _lines(repo / "requirements/constraints.txt"):
        if _name(pin) == _name(requirement) and _applies(pin):
            return pin.partition(";")[0].strip()
    return requirement


def check_system(repo: Path, broken_imports: Callable[[str, list[str]], dict[str, str]], groups: Sequence[str]) -> None:
    """Raises `SetupError` with what is missing or broken and the command that mends it."""
    requirements = [line for name in groups for line in _lines(repo / f"requirements/{name}.txt")]
    module_of = {line: MODULES.get(_name(line), _name(line).replace("-", "_")) for line in requirements}
    broken = broken_imports(sys.executable, [module for module in module_of.values() if module])
    if not broken:
        return
    missing = [line for line, module in module_of.items() if broken.get(module) == "missing"]
    failing = {module: error for module, error in broken.items() if error != "missing"}
    message = [f"REFSEG_SYSTEM=1: {sys.executable} lacks what refseg needs."]
    if missing:
        packages = " ".join(shlex.quote(pinned(repo, line)) for line in missing)
        message += ["  missing: " + ", ".join(_name(line) for line in missing)]
        message += [f"  mend it: {shlex.quote(sys.executable)} -m pip install {packages}"]
    message += [f"  broken: {module}: {error}" for module, error in failing.items()]
    if failing:
        message += ["  broken imports are explained by: PYTHONPATH=projects python -m refseg.doctor"]
    raise SetupError("\n".join(message))
