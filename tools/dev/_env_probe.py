"""What an interpreter already has: a torch or a compiled mmcv worth keeping, and which imports work."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIN_TORCH = (2, 4)
MMCV_RANGE = ((2, 0, 1), (2, 2))

_FIND_KEPT = """
import importlib.metadata, importlib.util, json, sys
found = {"paths": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]}
def note(name, check):
    if importlib.util.find_spec(name) is None:
        return
    try:
        check()
        dist = importlib.metadata.distribution(name)
        found[name] = {"version": dist.version, "witness": str(dist._path)}
    except BaseException as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
def torch_works():
    import torch
    assert torch.ones(3).mul(2).sum().item() == 6
def torchvision_works():
    import torch, torchvision
    torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
def mmcv_works():
    import torch, mmcv._ext
note("torch", torch_works)
if "version" in found.get("torch", {}):
    note("torchvision", torchvision_works)
    note("mmcv", mmcv_works)
print("REFSEG" + json.dumps(found))
"""

_TRY_IMPORTS = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
result = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
        result[name] = ""
    except ModuleNotFoundError as error:
        result[name] = "missing" if (error.name or "").split(".")[0] == name else str(error)
    except BaseException as error:
        result[name] = f"{type(error).__name__}: {error}"[:300]
print("REFSEG" + json.dumps(result))
"""


@dataclass(frozen=True)
class Kept:
    """Packages of the calling interpreter that the environment uses instead of installing its own."""

    versions: dict[str, str] = field(default_factory=dict)  # distribution name -> version
    witness: list[str] = field(default_factory=list)  # folders that vanish when one of them is removed
    paths: list[str] = field(default_factory=list)  # where they are imported from

    def __str__(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.14.1+cu130' -> (2, 14, 1)."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", text or "0").group().split("."))  # type: ignore[union-attr]


def ask(python: str | Path, program: str, *args: str, timeout_s: float = 180.0) -> dict[str, Any]:
    """Run a program that prints 'REFSEG' and JSON; {} when it dies, which a broken library may cause."""
    try:
        done = subprocess.run(
            [str(python), "-c", program, *args], capture_output=True, text=True, timeout=timeout_s, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    answers = [line for line in done.stdout.splitlines() if line.startswith("REFSEG")]
    return json.loads(answers[-1].removeprefix("REFSEG")) if answers else {}


def find_kept(python: str | Path) -> tuple[Kept, list[str]]:
    """What is kept, and a sentence for each thing that was found but is not."""
    if os.environ.get("REFSEG_KEEP_TORCH", "1") == "0":
        return Kept(), []
    found = ask(python, _FIND_KEPT)
    notes = [f"found {name}, which does not work ({found[name]['error']})" for name in found if "error" in found[name]]
    torch = found.get("torch", {})
    if "version" not in torch:
        return Kept(), [note for note in notes if "found torch," in note]
    if version_tuple(torch["version"]) < MIN_TORCH:
        return Kept(), [f"found torch {torch['version']}, which is too old (2.4 or newer is needed)"]
    if "error" in found.get("torchvision", {}):
        return Kept(), [*notes, f"so torch {torch['version']} and its torchvision are not used"]
    kept = {"torch": torch}
    if "version" in found.get("torchvision", {}):
        kept["torchvision"] = found["torchvision"]
    mmcv = found.get("mmcv", {})
    if "version" in mmcv and MMCV_RANGE[0] <= version_tuple(mmcv["version"]) < MMCV_RANGE[1]:
        kept["mmcv"] = mmcv
    elif "version" in mmcv:
        notes.append(f"found a compiled mmcv {mmcv['version']}, which mmdet refuses: it wants less than 2.2")
    notes = [note for note in notes if "mmcv._ext" not in note]  # mmcv-lite: nothing to say
    versions = {name: one["version"] for name, one in kept.items()}
    return Kept(versions, [one["witness"] for one in kept.values()], found["paths"]), notes


def broken_imports(python: str | Path, modules: list[str]) -> dict[str, str]:
    """Module -> 'missing' or the error, for those that do not import; a crash is traced to its module."""
    result = ask(python, _TRY_IMPORTS, json.dumps(modules))
    if not result and len(modules) == 1:
        return {modules[0]: "the import crashes or hangs"}
    if not result:
        result = {name: error for one in modules for name, error in broken_imports(python, [one]).items()}
    return {name: error for name, error in result.items() if error}
