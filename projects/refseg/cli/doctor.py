"""`refseg doctor`: check the installation, or whether a config can be trained here, and print the commands that help.

Libraries are imported in a child process (`python -m refseg.cli.doctor NAME...`), so that one that crashes or hangs
does not hide the others.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refseg.terminal import FAIL, OK, WARN, Check, check_table

PIP = "python -m pip install"
UNINSTALL_MMCV = "python -m pip uninstall -y mmcv mmcv-lite && "
LIBRARIES = {  # name: distribution, and the modules to import. The first module has the version.
    "torch": ("torch", "torch"),
    "torchvision": ("torchvision", "torchvision"),
    "numpy": ("numpy", "numpy"),
    "scipy": ("scipy", "scipy"),
    "pillow": ("pillow", "PIL"),
    "opencv": ("opencv-python", "cv2"),
    "mmengine": ("mmengine", "mmengine", "mmengine.runner"),
    "mmcv": ("mmcv-lite", "mmcv"),
    "mmdet": ("mmdet", "mmdet", "mmdet.models"),
    "mmsegmentation": ("mmsegmentation", "mmseg", "mmseg.models"),
    "transformers": ("transformers", "transformers"),
    "timm": ("timm", "timm"),
    "pycocotools": ("pycocotools", "pycocotools", "pycocotools.mask"),
    "ftfy": ("ftfy", "ftfy"),
    "setuptools": ("setuptools", "pkg_resources"),  # setuptools 81 has no pkg_resources, which mmengine imports
    "tensorboard": ("tensorboard", "tensorboard"),
    "triton": ("triton", "triton"),
}
OPTIONAL = {"tensorboard", "triton"}
OPS = "deformable attention"
REMEDIES = {  # pattern in the error of an import: what helps
    r"lib(GL|gthread|glib)[\w.-]*\.so": "apt-get install libgl1 libglib2.0-0   # or, without root: python -m pip "
    f"uninstall -y opencv-python && {PIP} opencv-python-headless",
    r"numpy.*(1\.x|ABI|_ARRAY_API|dtype size)": f"{PIP} --force-reinstall numpy -c requirements/constraints.txt",
    "is used but incompatible": "see the remedy for mmcv",  # mmdet's and mmseg's assertion about mmcv
}

EXAMPLES = """
refseg doctor
refseg doctor instalign_swinb
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="config, checkpoint, or work directory: check what its training needs")
    parser.add_argument("--batch-size", type=int, metavar="N", help="for the memory estimate (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def main(args: argparse.Namespace) -> int:
    if args.model:
        from refseg.engine.preflight import preflight
        from refseg.engine.run import load_config
        from refseg.inference.loading import find_config

        cfg = load_config(str(find_config(args.model)))
        checks = preflight(cfg, batch_size=args.batch_size)
        action = "be trained" if cfg.get("train_cfg") else "run"
    else:
        checks = [check_python(sys.version_info[:3]), *check_libraries(), *check_machine()]
    failed, warned = ([check.name for check in checks if check.status == status] for status in (FAIL, WARN))
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(check) for check in checks]}, indent=2))
        return 1 if failed else 0
    if failed and args.model:
        summary = f"{args.model} cannot {action} here yet: {', '.join(failed)}."
    elif failed:
        summary = f"refseg cannot work yet: {', '.join(failed)}. Run the commands after ->, then `refseg doctor` again."
    else:
        summary = f"{args.model} can {action} here." if args.model else "Everything needed works."
        summary += f" Optional, with warnings: {', '.join(warned)}." if warned else ""
    print(f"{check_table(checks)}\n\n{summary}")
    return 1 if failed else 0


# Libraries ------------------------------------------------------------------------------------------------------------


def check_libraries(names: Sequence[str] = (*LIBRARIES, OPS), timeout_s: float = 180.0) -> list[Check]:
    """Check libraries in a child process. After a crash or a timeout, a new child checks those that remain."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).resolve().parents[2]))))
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    checked: dict[str, list[Check]] = {}
    while waiting := [name for name in names if name not in checked]:
        command = [sys.executable, "-m", "refseg.cli.doctor", *waiting]
        try:
            done = subprocess.run(command, capture_output=True, env=environment, timeout=timeout_s)
            output, problem = done.stdout, f"importing it ends Python (exit code {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, problem = error.stdout or b"", f"importing it hangs (more than {timeout_s:g} s)"
        for line in output.decode(errors="replace").splitlines():
            if line.startswith('{"name"'):
                answer = json.loads(line)
                checked[answer["name"]] = [Check(**check) for check in answer["checks"]]
        culprit = next((name for name in waiting if name not in checked), None)  # the child keeps the order
        if culprit is not None:
            remedy = "report it" if culprit == OPS else f"{PIP} --force-reinstall --no-deps {LIBRARIES[culprit][0]}"
            checked[culprit] = [Check(culprit, WARN if culprit in OPTIONAL else FAIL, problem, remedy)]
    return [check for name in names for check in checked[name]]


def child(names: Sequence[str]) -> None:
    """Check libraries and print the checks of each as a line of JSON."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    ranges = required_ranges()
    for name in names:
        checks = check_ops() if name == OPS else check_library(name, ranges.get(LIBRARIES[name][0], ""))
        print(json.dumps({"name": name, "checks": [asdict(check) for check in checks]}), file=answers, flush=True)


def check_library(name: str, ranges: str) -> list[Check]:
    """Import one library and return its checks."""
    distribution, *modules = LIBRARIES[name]
    bad = WARN if name in OPTIONAL else FAIL
    try:
        library, *_ = [importlib.import_module(module) for module in modules]
        if name == "torchvision":  # its compiled operators must fit torch
            torch = importlib.import_module("torch")
            library.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
    except BaseException as error:  # a broken library may raise anything, even SystemExit
        if name == "triton" and not importlib.import_module("torch").cuda.is_available():
            return [Check(name, OK, "not usable, and not needed without a GPU")]
        return [Check(name, bad, *failed_import(name, error, ranges))]
    version = getattr(library, "__version__", "") or installed_version(distribution)
    if version and not satisfies(version, ranges):
        remedy = f"{UNINSTALL_MMCV if name == 'mmcv' else ''}{PIP} '{distribution}{ranges}'"
        return [Check(name, bad, f"{version}, but refseg needs {ranges}", remedy)]
    if name == "mmcv":
        compiled, state = importlib.import_module("refseg.compat").mmcv_ext_state()
        return [check_mmcv(version, installed_version("mmcv"), installed_version("mmcv-lite"), compiled, state)]
    if name == "torch":
        build = library.version.cuda and f"CUDA {library.version.cuda}"
        build = build or (library.version.hip and f"ROCm {library.version.hip}") or "CPU"
        return [Check(name, OK, f"{version} ({build} build)"), check_gpu(library)]
    return [Check(name, OK, version)]


def failed_import(name: str, error: BaseException, ranges: str) -> tuple[str, str]:
    """Return the error of an import as one line, and the command that helps in the usual cases."""
    distribution, first, *_ = LIBRARIES[name]
    wanted = f"'{distribution}{ranges}'"
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing == first:
        return "not installed", f"{PIP} {wanted}"
    text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:400]
    if missing:
        return text, f"{PIP} {missing}"
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, text):
            return text, remedy
    if name == "torchvision":  # usually one that is built for another torch
        wanted = f"'torch=={installed_version('torch')}' torchvision"
    if name == "mmcv":
        return text, f"{UNINSTALL_MMCV}{PIP} {wanted}"
    return text, f"{PIP} --force-reinstall --no-deps {wanted}"


def check_gpu(torch: Any) -> Check:
    """Run a small computation on the first GPU, which fails without a driver or without kernels for this GPU."""
    error = ""
    try:
        if torch.version.cuda or torch.version.hip:
            torch.zeros(1, device="cuda").mul(2).item()
    except Exception as failure:
        error = str(failure).splitlines()[0][:300]
    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if gpu.major >= 8 or torch.version.hip else "no bf16: use fp16"
        gpus.append(f"{gpu.name} ({gpu.total_memory / 2**30:.1f} GiB, {bf16})")
    if gpus and error:
        return Check("gpu", WARN, f"{gpus[0]}: {error}", "install a torch built for this GPU")
    if "too old" in error:
        remedy = "update the NVIDIA driver, or install a torch for its CUDA version"
        return Check("gpu", WARN, f"runs on CPU: {error}", remedy)
    return Check("gpu", OK, ", ".join(gpus) or "none found: runs on CPU")


def check_mmcv(version: str, full: str, lite: str, compiled: bool, state: str) -> Check:
    """Check an mmcv that imports. `full` and `lite`: versions of mmcv and mmcv-lite, or "" if not installed."""
    install_lite = f"{PIP} 'mmcv-lite<2.2'"
    if full and lite:
        text = f"mmcv {full} and mmcv-lite {lite} are both installed and overwrite each other's files"
        keep = f"{PIP} --force-reinstall --no-deps mmcv=={full}" if compiled else install_lite
        return Check("mmcv", WARN, text, UNINSTALL_MMCV + keep)
    if "does not load" in state:
        remedy = f"{UNINSTALL_MMCV}{install_lite}   # or build mmcv again"
        return Check("mmcv", WARN, f"{version}: {state}. refseg works without it", remedy)
    return Check("mmcv", OK, f"{version}, {state if compiled else 'without compiled operators (refseg needs none)'}")


def check_ops() -> list[Check]:
    """Check which implementation of deformable attention is used."""
    try:
        torch, ops = importlib.import_module("torch"), importlib.import_module("refseg.ops")
        backend, reason = ops.choose_backend(torch.empty(1, device="cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:
        return [Check(OPS, FAIL, f"{type(error).__name__}: {error}"[:400], "see the lines above; or report it")]
    text = f"{backend}: {reason}; available: {', '.join(ops.available_backends())}"
    if backend == "pytorch" and "no triton" in reason:
        return [Check(OPS, WARN, text, f"{PIP} triton, or what the reason says")]
    return [Check(OPS, OK, text)]


# Versions -------------------------------------------------------------------------------------------------------------


def installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def required_ranges() -> dict[str, str]:
    """Return distribution -> range, from the repository's requirements or the installed package's metadata."""
    source = Path(__file__).resolve().parents[3] / "requirements/runtime.txt"
    lines: list[str] = []
    if source.is_file():
        lines = source.read_text(encoding="utf-8").splitlines()
    elif installed_version("refseg"):
        lines = [line for line in importlib.metadata.requires("refseg") or [] if "extra ==" not in line]
    matches = (re.match(r"([A-Za-z0-9._-]+)\s*\(?([<>=][^;)#]*)?", line) for line in lines)
    return {match.group(1).lower(): (match.group(2) or "").strip() for match in matches if match}


def satisfies(version: str, ranges: str) -> bool:
    """Return whether '0.10.7' is within '>=0.10.7,<0.11'. Without `packaging`, which may be what is missing."""

    def numbers(text: str) -> tuple[int, ...]:
        return (*map(int, re.findall(r"\d+", re.match(r"[\d.]*", text).group())), 0, 0, 0, 0)[:4]

    have = numbers(version)
    limits = re.findall(r"(>=|==|<)\s*([\d.]+)", ranges)
    return all({">=": have >= numbers(n), "<": have < numbers(n), "==": have == numbers(n)}[op] for op, n in limits)


# The machine ----------------------------------------------------------------------------------------------------------


def check_python(version: Sequence[int]) -> Check:
    text, here = ".".join(map(str, version)), tuple(version[:2])
    if (3, 10) <= here <= (3, 12):
        return Check("python", OK, text)
    status = FAIL if here < (3, 10) else WARN
    return Check("python", status, f"{text}: refseg is tested on 3.10 to 3.12", "make PYTHON=python3.11 setup")


def check_machine() -> list[Check]:
    """Check configs, data, disk, and shared memory."""
    from refseg.datasets.catalog import SETS
    from refseg.paths import configs_dir, shipped_configs

    # Configs
    count = len(shipped_configs())
    reinstall = "" if count else f"{PIP} --force-reinstall --no-deps refseg (or .)"
    checks = [Check("configs", OK if count else FAIL, f"{count or 'none'} in {configs_dir()}", reinstall)]
    # Data. Missing data sets are no problem of the installation.
    root = Path(os.environ.get("REFSEG_DATA") or "data")
    folders = sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else []
    generated = ", ".join(name for name in folders if name.startswith("refshapes"))
    known = ", ".join(name for name in dict.fromkeys(one.folder for one in SETS.values()) if name in folders)
    generate = f"refseg data refshapes --preset mini --out {root}/refshapes_mini"
    for name, present, text, remedy in (
        ("data: RefShapes", generated, f"{generated} in {root}", generate),
        ("data: others", known, f"{known} in {root} (`refseg data check` looks into them)", "refseg data layout"),
    ):
        checks.append(Check(name, OK, text) if present else Check(name, WARN, f"none in {root}", remedy))
    # Disk
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    remedy = "" if free >= 5 else "free some space, or use --work-dir on another disk"
    checks.append(Check("disk", WARN if remedy else OK, f"{free:.1f} GiB free at {Path.cwd()}", remedy))
    # Shared memory: loader workers pass batches through it, and containers often get 64 MiB.
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm")
        text, remedy = f"{shm.free / 2**30:.2f} GiB free in /dev/shm", ""
        if shm.free < 2**30:
            text += f" (of {shm.total / 2**30:.2f}): loader workers may die with 'Bus error'"
            remedy = (
                "docker run --shm-size=8g ..., or --cfg-options train_dataloader.num_workers=0 "
                "train_dataloader.persistent_workers=False"
            )
        checks.append(Check("shared memory", WARN if remedy else OK, text, remedy))
    return checks


if __name__ == "__main__":
    child(sys.argv[1:])
