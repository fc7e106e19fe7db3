"""What `refseg doctor` makes of the facts: pure functions from facts to findings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"
Facts = dict[str, Any]
PIP = "python -m pip install"
OPTIONAL = ("triton", "tensorboard")
TESTED_PYTHON = ((3, 10), (3, 12))
DISTRIBUTION = {"opencv": "opencv-python", "mmcv": "mmcv-lite"}


@dataclass(frozen=True)
class Finding:
    """One line of the table. FAIL means that refseg cannot work; `remedy` is a command, or what to change."""

    name: str
    status: str
    text: str
    remedy: str = ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _pad(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (numbers + (0, 0, 0, 0))[:4]


def satisfies(version: str, ranges: str) -> bool:
    """Whether '0.10.7' is within '>=0.10.7,<0.11'. Only >=, < and ==, as in requirements/runtime.txt."""
    have = _pad(_numbers(version))
    for part in filter(None, (one.strip() for one in ranges.split(","))):
        operator, wanted = re.match(r"(>=|==|<)\s*(.*)", part).groups()  # type: ignore[union-attr]
        limit = _pad(_numbers(wanted))
        if not {">=": have >= limit, "<": have < limit, "==": have == limit}[operator]:
            return False
    return True


def check_python(version: Sequence[int]) -> Finding:
    text = ".".join(str(part) for part in version[:3])
    here = tuple(version[:2])
    if here < TESTED_PYTHON[0]:
        return Finding("python", FAIL, f"{text} is too old", "make PYTHON=python3.11 setup")
    if here > TESTED_PYTHON[1]:
        return Finding("python", WARN, f"{text}: tested are 3.10 to 3.12", "make PYTHON=python3.11 setup")
    return Finding("python", OK, text)


def check_library(name: str, facts: Facts, ranges: str) -> Finding:
    """The common case: it imports, and its version is in the range."""
    distribution = DISTRIBUTION.get(name, name)
    install = f"{PIP} '{distribution}{ranges}'"
    bad = WARN if name in OPTIONAL else FAIL
    if facts.get("missing") and facts["missing"].split(".")[0] in (name, *_MODULES.get(name, ())):
        return Finding(name, bad, "not installed", install)
    if facts.get("missing"):
        return Finding(name, bad, facts["error"], f"{PIP} {facts['missing'].split('.')[0]}")
    if "error" in facts:
        reinstall = f"{PIP} --force-reinstall --no-deps '{distribution}{ranges}'"
        return Finding(name, bad, facts["error"], _known_remedy(facts["error"]) or reinstall)
    if facts.get("version") and not satisfies(facts["version"], ranges):
        return Finding(name, bad, f"{facts['version']}, but refseg needs {ranges}", install)
    return Finding(name, OK, facts.get("version", ""))


_MODULES = {
    "opencv": ("cv2",),
    "pillow": ("PIL",),
    "setuptools": ("pkg_resources",),
    "mmsegmentation": ("mmseg",),
    "deformable attention": ("torch",),
}


def _known_remedy(error: str) -> str:
    if re.search(r"lib(GL|gthread|glib)[\w.-]*\.so", error):
        return (
            "apt-get install libgl1 libglib2.0-0   # or, without root: python -m pip uninstall -y opencv-python && "
            f"{PIP} opencv-python-headless"
        )
    if re.search(r"numpy.*(1\.x|ABI|_ARRAY_API|dtype size)", error):
        return f"{PIP} --force-reinstall numpy -c requirements/constraints.txt"
    if "is used but incompatible" in error:  # mmdet's and mmseg's assertion about mmcv
        return "see the remedy for mmcv"
    return ""


def check_torch(facts: Facts, ranges: str) -> list[Finding]:
    found = check_library("torch", facts, ranges)
    if found.status == FAIL or "version" not in facts:
        return [found]
    build = f"CUDA {facts['cuda']}" if facts.get("cuda") else f"ROCm {facts['hip']}" if facts.get("hip") else "CPU"
    return [Finding("torch", OK, f"{facts['version']} ({build} build)"), check_gpu(facts)]


def check_gpu(facts: Facts) -> Finding:
    gpus = facts.get("gpus", [])
    if facts.get("gpu_error"):
        return Finding("gpu", WARN, f"{gpus[0]['name']}: {facts['gpu_error']}", "install a torch built for this GPU")
    if gpus:
        each = [f"{gpu['name']} ({gpu['gib']:g} GiB, {'bf16' if gpu['bf16'] else 'no bf16: use fp16'})" for gpu in gpus]
        return Finding("gpu", OK, ", ".join(each))
    because = facts.get("no_gpu_because", "")
    if "too old" in because:
        return Finding(
            "gpu", WARN, f"runs on CPU: {because}", "update the NVIDIA driver, or install a torch for its CUDA version"
        )
    return Finding("gpu", OK, "none found: runs on CPU")


def check_pair(facts: Facts) -> Finding | None:
    """torch and torchvision are built for each other; another pair fails at import or, worse, later."""
    torch, wants = facts.get("torch", ""), facts.get("wants", "")
    if not torch or not wants or torch.split("+")[0] == wants.split("+")[0]:
        return None
    text = f"torchvision is built for torch {wants}, and torch {torch} is installed"
    return Finding("torch pair", FAIL, text, f"{PIP} 'torch=={torch}' torchvision")


def check_mmcv(facts: Facts, ranges: str) -> Finding:
    lite = f"{PIP} 'mmcv-lite{ranges}'"
    if "error" in facts:
        return Finding("mmcv", FAIL, facts["error"], f"python -m pip uninstall -y mmcv mmcv-lite && {lite}")
    if "version" not in facts:
        return Finding("mmcv", FAIL, "not installed", lite)
    version = facts["version"]
    if not satisfies(version, "<2.2"):
        remedy = f"python -m pip uninstall -y mmcv mmcv-lite && {lite}"
        return Finding("mmcv", FAIL, f"{version} is refused by mmdet and mmsegmentation, which want < 2.2", remedy)
    if facts.get("full") and facts.get("lite"):
        text = f"mmcv {facts['full']} and mmcv-lite {facts['lite']} are both installed and overwrite each other's files"
        keep = f"{PIP} --force-reinstall --no-deps mmcv=={facts['full']}" if facts.get("compiled") else lite
        return Finding("mmcv", WARN, text, f"python -m pip uninstall -y mmcv mmcv-lite && {keep}")
    if not satisfies(version, ranges):
        return Finding("mmcv", FAIL, f"{version}, but refseg needs {ranges}", lite)
    if facts.get("compiled"):
        return Finding("mmcv", OK, f"{version}, {facts['state']}")
    if "does not load" in facts.get("state", ""):
        text = f"{version}: {facts['state']}. refseg works without it"
        return Finding("mmcv", WARN, text, f"python -m pip uninstall -y mmcv && {lite}   # or build mmcv again")
    return Finding("mmcv", OK, f"{version}, without compiled operators (refseg needs none)")


def check_backend(facts: Facts) -> Finding:
    if "backend" in facts:
        text = f"{facts['backend']}: {facts['reason']}; available: {', '.join(facts['available'])}"
        slow = facts["backend"] == "pytorch" and "no triton" in facts["reason"]
        remedy = f"{PIP} triton, or what the reason says" if slow else ""
        return Finding("deformable attention", WARN if slow else OK, text, remedy)
    return Finding("deformable attention", FAIL, facts.get("error", "unknown"), "see the lines above; or report it")


def check_triton(facts: Facts, has_gpu: bool) -> Finding:
    if "error" not in facts:
        return Finding("triton", OK, facts.get("version", ""))
    if not has_gpu:
        return Finding("triton", OK, "not usable, and not needed without a GPU")
    return check_library("triton", facts, "")


def check_shm(size: float | None, free: float | None) -> Finding | None:
    """Loader workers pass batches through shared memory; containers often get 64 MiB."""
    if size is None or free is None:
        return None
    if min(size, free) < 1:
        return Finding(
            "shared memory",
            WARN,
            f"{free:.2f} GiB free of {size:.2f} in /dev/shm: loader workers may die with 'Bus error'",
            "docker run --shm-size=8g ..., or --cfg-options train_dataloader.num_workers=0 "
            "train_dataloader.persistent_workers=False",
        )
    return Finding("shared memory", OK, f"{free:.1f} GiB free in /dev/shm")


def check_disk(free: float, where: str) -> Finding:
    if free < 5:
        return Finding(
            "disk", WARN, f"{free:.1f} GiB free at {where}", "free some space, or use --work-dir on another disk"
        )
    return Finding("disk", OK, f"{free:.0f} GiB free at {where}")


def check_data(root: str, found: Sequence[str], exists: bool) -> list[Finding]:
    """RefShapes is made by a command; the known data sets are found by their folders, or not, which is no problem of
    the installation."""
    from refseg.datasets.catalogue import SETS

    generated = [name for name in found if name.startswith("refshapes")]
    known = [name for name in dict.fromkeys(one.folder for one in SETS.values()) if name in found]
    findings = []
    if generated:
        findings.append(Finding("data: RefShapes", OK, f"{', '.join(generated)} in {root}"))
    else:
        where = "is empty of it" if exists else "does not exist"
        make = f"refseg data refshapes --preset mini --out {root}/refshapes_mini"
        findings.append(Finding("data: RefShapes", WARN, f"{root} {where}", make))
    if known:
        text = f"{', '.join(known)} in {root} (`refseg data check` looks into them)"
        findings.append(Finding("data: others", OK, text))
    else:
        findings.append(Finding("data: others", WARN, f"none in {root}", "refseg data layout"))
    return findings


def check_configs(root: str, count: int) -> Finding:
    if count:
        return Finding("configs", OK, f"{count} in {root}")
    return Finding("configs", FAIL, f"none in {root}", f"{PIP} --force-reinstall --no-deps refseg (or .)")
