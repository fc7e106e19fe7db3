"""`refseg doctor`: check the installation, or a config, and print the command that repairs what does not work.

Libraries are probed in a child process (`python -m refseg.doctor --probe NAME...`), so that one that crashes or hangs
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
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"
PIP = "python -m pip install"
PROBE_TIMEOUT_S = 180.0
DISTRIBUTION = {"opencv": "opencv-python", "mmcv": "mmcv-lite"}
Facts = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One line of the table. FAIL means that refseg cannot work; `remedy` is a command, or what to change."""

    name: str
    status: str
    text: str
    remedy: str = ""


# Probes: facts about one library each, in a child process -----------------------------------------------------------


def distribution_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _imports(*modules: str) -> Callable[[], Facts]:
    """Return a probe that imports modules; the first one has the version."""

    def probe() -> Facts:
        first, *_ = [importlib.import_module(module) for module in modules]
        return {"version": str(getattr(first, "__version__", ""))}

    return probe


def probe_torch() -> Facts:
    import torch

    facts: Facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
    try:
        if torch.version.cuda or torch.version.hip:
            torch.zeros(1, device="cuda").mul(2).item()  # fails without a driver, and without kernels for this GPU
    except Exception as error:
        facts["gpu_error"] = str(error).splitlines()[0][:300]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = gpu.major >= 8 or bool(torch.version.hip)
        facts["gpus"].append({"name": gpu.name, "gib": round(gpu.total_memory / 2**30, 1), "bf16": bf16})
    return facts


def probe_torchvision() -> Facts:
    import torch
    import torchvision

    torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)  # its compiled operators fit this torch
    return {"version": torchvision.__version__}


def probe_pair() -> Facts:
    """Compare the installed torch with the one that torchvision's metadata names, without importing either."""
    wanted = importlib.metadata.requires("torchvision") if distribution_version("torchvision") else []
    pins = [line.split("==")[1].split(";")[0].strip(" )") for line in wanted or [] if re.match(r"torch\s*\(?==", line)]
    return {"torch": distribution_version("torch"), "wants": pins[0] if pins else ""}


def probe_mmcv() -> Facts:
    from refseg import compat

    facts: Facts = {"full": distribution_version("mmcv"), "lite": distribution_version("mmcv-lite")}
    facts["version"] = importlib.import_module("mmcv").__version__
    facts["compiled"], facts["state"] = compat.mmcv_ext_state()
    return facts


def probe_setuptools() -> Facts:
    importlib.import_module("pkg_resources")  # gone since setuptools 81; mmengine imports it
    return {"version": distribution_version("setuptools")}


def probe_ops() -> Facts:
    import torch

    from refseg.ops import available_backends, choose_backend

    name, reason = choose_backend(torch.empty(1, device="cuda" if torch.cuda.is_available() else "cpu"))
    return {"backend": name, "reason": reason, "available": list(available_backends())}


PROBES: dict[str, Callable[[], Facts]] = {
    "torch pair": probe_pair,
    "torch": probe_torch,
    "torchvision": probe_torchvision,
    "numpy": _imports("numpy"),
    "scipy": _imports("scipy"),
    "pillow": _imports("PIL"),
    "opencv": _imports("cv2"),
    "mmengine": _imports("mmengine", "mmengine.runner"),
    "mmcv": probe_mmcv,
    "mmdet": _imports("mmdet", "mmdet.models"),
    "mmsegmentation": _imports("mmseg", "mmseg.models"),
    "transformers": _imports("transformers"),
    "timm": _imports("timm"),
    "pycocotools": _imports("pycocotools", "pycocotools.mask"),
    "ftfy": _imports("ftfy"),
    "setuptools": probe_setuptools,
    "tensorboard": _imports("tensorboard"),
    "triton": _imports("triton"),
    "deformable attention": probe_ops,
}


def probe(names: Sequence[str]) -> None:
    """Print one line of JSON before and one after each probe. This runs in the child."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    for name in names:
        print(json.dumps({"begin": name}), file=answers, flush=True)
        try:
            facts = PROBES[name]()
        except BaseException as error:  # a broken library may raise anything, SystemExit too
            text = (str(error).strip().splitlines() or [""])[0]
            facts = {"error": f"{type(error).__name__}: {text}"[:400]}
            if isinstance(error, ModuleNotFoundError):
                facts["missing"] = error.name or ""
        print(json.dumps({"end": name, "facts": facts}), file=answers, flush=True)


def gather(names: Sequence[str] = tuple(PROBES), timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Facts]:
    """Return the facts of all probes. When the child dies or hangs, the probe at fault is noted, and a new child runs
    those that remain."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    facts: dict[str, Facts] = {}
    while waiting := [name for name in names if name not in facts]:
        command = [sys.executable, "-m", "refseg.doctor", "--probe", *waiting]
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        try:
            done = subprocess.run(command, capture_output=True, env=environment, timeout=timeout_s)
            output, why = done.stdout, f"importing it ends Python (exit code {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, why = error.stdout or b"", f"importing it hangs (more than {timeout_s:g} s)"
        begun = waiting[0]
        for line in output.decode(errors="replace").splitlines():
            if line.startswith("{"):
                answer = json.loads(line)
                begun = answer.get("begin", begun)
                if "end" in answer:
                    facts[answer["end"]] = answer["facts"]
        if any(name not in facts for name in waiting):
            at_fault = begun if begun not in facts else next(name for name in waiting if name not in facts)
            facts[at_fault] = {"error": why}
    return facts


# Checks: pure functions from facts to findings ----------------------------------------------------------------------


def satisfies(version: str, ranges: str) -> bool:
    """Return whether '0.10.7' is within '>=0.10.7,<0.11': >=, <, and ==, as in requirements/runtime.txt."""

    def numbers(text: str) -> tuple[int, ...]:
        found = re.match(r"\d+(?:\.\d+)*", text)
        return (*(int(part) for part in found.group().split(".")), 0, 0, 0, 0)[:4] if found else (0, 0, 0, 0)

    have = numbers(version)
    limits = re.findall(r"(>=|==|<)\s*([\d.]+)", ranges)
    return all({">=": have >= numbers(n), "<": have < numbers(n), "==": have == numbers(n)}[op] for op, n in limits)


def check_python(version: Sequence[int]) -> Finding:
    text, here = ".".join(map(str, version[:3])), tuple(version[:2])
    if (3, 10) <= here <= (3, 12):
        return Finding("python", OK, text)
    status, text = (FAIL, f"{text} is too old") if here < (3, 10) else (WARN, f"{text}: tested are 3.10 to 3.12")
    return Finding("python", status, text, "make PYTHON=python3.11 setup")


def check_library(name: str, facts: Facts, ranges: str) -> Finding:
    """Return a finding for the common case: the library imports, and its version is in the range."""
    wanted = f"'{DISTRIBUTION.get(name, name)}{ranges}'"
    modules = {"opencv": "cv2", "pillow": "PIL", "setuptools": "pkg_resources", "mmsegmentation": "mmseg"}
    bad = WARN if name in ("triton", "tensorboard") else FAIL
    error, missing = facts.get("error", ""), facts.get("missing", "").split(".")[0]
    if missing:
        if missing in (name, modules.get(name)):
            return Finding(name, bad, "not installed", f"{PIP} {wanted}")
        return Finding(name, bad, error, f"{PIP} {missing}")
    if error:
        remedy = f"{PIP} --force-reinstall --no-deps {wanted}"
        if re.search(r"lib(GL|gthread|glib)[\w.-]*\.so", error):
            remedy = (
                "apt-get install libgl1 libglib2.0-0   # or, without root: python -m pip uninstall -y opencv-python && "
                f"{PIP} opencv-python-headless"
            )
        elif re.search(r"numpy.*(1\.x|ABI|_ARRAY_API|dtype size)", error):
            remedy = f"{PIP} --force-reinstall numpy -c requirements/constraints.txt"
        elif "is used but incompatible" in error:  # mmdet's and mmseg's assertion about mmcv
            remedy = "see the remedy for mmcv"
        return Finding(name, bad, error, remedy)
    if facts.get("version") and not satisfies(facts["version"], ranges):
        return Finding(name, bad, f"{facts['version']}, but refseg needs {ranges}", f"{PIP} {wanted}")
    return Finding(name, OK, facts.get("version", ""))


def check_torch(facts: Facts, ranges: str) -> list[Finding]:
    found = check_library("torch", facts, ranges)
    if found.status == FAIL:
        return [found]
    build = f"CUDA {facts['cuda']}" if facts.get("cuda") else f"ROCm {facts['hip']}" if facts.get("hip") else "CPU"
    return [Finding("torch", OK, f"{facts['version']} ({build} build)"), check_gpu(facts)]


def check_gpu(facts: Facts) -> Finding:
    gpus, error = facts.get("gpus", []), facts.get("gpu_error", "")
    if gpus and error:
        return Finding("gpu", WARN, f"{gpus[0]['name']}: {error}", "install a torch built for this GPU")
    if gpus:
        each = [f"{gpu['name']} ({gpu['gib']:g} GiB, {'bf16' if gpu['bf16'] else 'no bf16: use fp16'})" for gpu in gpus]
        return Finding("gpu", OK, ", ".join(each))
    if "too old" in error:
        remedy = "update the NVIDIA driver, or install a torch for its CUDA version"
        return Finding("gpu", WARN, f"runs on CPU: {error}", remedy)
    return Finding("gpu", OK, "none found: runs on CPU")


def check_pair(facts: Facts) -> list[Finding]:
    """Return a finding where torch and torchvision are not built for each other; they fail at import, or later."""
    torch, wants = facts.get("torch", ""), facts.get("wants", "")
    if not torch or not wants or torch.split("+")[0] == wants.split("+")[0]:
        return []
    text = f"torchvision is built for torch {wants}, and torch {torch} is installed"
    return [Finding("torch pair", FAIL, text, f"{PIP} 'torch=={torch}' torchvision")]


def check_mmcv(facts: Facts, ranges: str) -> Finding:
    lite = f"{PIP} 'mmcv-lite{ranges}'"
    anew = f"python -m pip uninstall -y mmcv mmcv-lite && {lite}"
    version, state = facts.get("version", ""), facts.get("state", "")
    if facts.get("missing") == "mmcv" or not (version or facts.get("error")):
        return Finding("mmcv", FAIL, "not installed", lite)
    if facts.get("error"):
        return Finding("mmcv", FAIL, facts["error"], anew)
    if not satisfies(version, "<2.2"):
        return Finding("mmcv", FAIL, f"{version} is refused by mmdet and mmsegmentation, which want < 2.2", anew)
    if facts.get("full") and facts.get("lite"):
        text = f"mmcv {facts['full']} and mmcv-lite {facts['lite']} are both installed and overwrite each other's files"
        keep = f"{PIP} --force-reinstall --no-deps mmcv=={facts['full']}"
        return Finding("mmcv", WARN, text, anew.replace(lite, keep) if facts.get("compiled") else anew)
    if not satisfies(version, ranges):
        return Finding("mmcv", FAIL, f"{version}, but refseg needs {ranges}", lite)
    if "does not load" in state:
        text = f"{version}: {state}. refseg works without it"
        return Finding("mmcv", WARN, text, f"python -m pip uninstall -y mmcv && {lite}   # or build mmcv again")
    text = state if facts.get("compiled") else "without compiled operators (refseg needs none)"
    return Finding("mmcv", OK, f"{version}, {text}")


def check_backend(facts: Facts) -> Finding:
    name = "deformable attention"
    if "backend" not in facts:
        return Finding(name, FAIL, facts.get("error", "unknown"), "see the lines above; or report it")
    text = f"{facts['backend']}: {facts['reason']}; available: {', '.join(facts['available'])}"
    if facts["backend"] == "pytorch" and "no triton" in facts["reason"]:
        return Finding(name, WARN, text, f"{PIP} triton, or what the reason says")
    return Finding(name, OK, text)


def judge_libraries(facts: dict[str, Facts], ranges: dict[str, str]) -> list[Finding]:
    has_gpu = bool(facts.get("torch", {}).get("gpus"))
    findings: list[Finding] = []
    for name, found in facts.items():
        wanted = ranges.get(DISTRIBUTION.get(name, name), "")
        if name == "torch pair":
            findings += check_pair(found)
        elif name == "torch":
            findings += check_torch(found, wanted)
        elif name == "mmcv":
            findings.append(check_mmcv(found, wanted or ">=2.0.1,<2.2"))
        elif name == "triton" and "error" in found and not has_gpu:
            findings.append(Finding(name, OK, "not usable, and not needed without a GPU"))
        elif name == "deformable attention":
            findings.append(check_backend(found))
        else:
            findings.append(check_library(name, found, wanted))
    return findings


def required_ranges() -> dict[str, str]:
    """Return distribution -> range, from the repository's requirements or the installed package's metadata."""
    source = Path(__file__).resolve().parents[2] / "requirements/runtime.txt"
    lines: list[str] = []
    if source.is_file():
        lines = source.read_text(encoding="utf-8").splitlines()
    elif distribution_version("refseg"):
        lines = [line for line in importlib.metadata.requires("refseg") or [] if "extra ==" not in line]
    found = (re.match(r"([A-Za-z0-9._-]+)\s*\(?([<>=][^;)#]*)?", line) for line in lines)
    return {match.group(1).lower(): (match.group(2) or "").strip() for match in found if match}


def check_shm(total: float, free: float) -> Finding:
    """Loader workers pass batches through shared memory; containers often get 64 MiB."""
    if min(total, free) >= 1:
        return Finding("shared memory", OK, f"{free:.1f} GiB free in /dev/shm")
    text = f"{free:.2f} GiB free of {total:.2f} in /dev/shm: loader workers may die with 'Bus error'"
    remedy = (
        "docker run --shm-size=8g ..., or --cfg-options train_dataloader.num_workers=0 "
        "train_dataloader.persistent_workers=False"
    )
    return Finding("shared memory", WARN, text, remedy)


def check_data(root: str, folders: Sequence[str]) -> list[Finding]:
    """Return findings about generated and known data sets. Missing ones are no problem of the installation."""
    from refseg.datasets.catalogue import SETS

    generated = [name for name in folders if name.startswith("refshapes")]
    known = [name for name in dict.fromkeys(one.folder for one in SETS.values()) if name in folders]
    make = f"refseg data refshapes --preset mini --out {root}/refshapes_mini"
    return [
        Finding("data: RefShapes", OK, f"{', '.join(generated)} in {root}")
        if generated
        else Finding("data: RefShapes", WARN, f"none in {root}", make),
        Finding("data: others", OK, f"{', '.join(known)} in {root} (`refseg data check` looks into them)")
        if known
        else Finding("data: others", WARN, f"none in {root}", "refseg data layout"),
    ]


def look_at_machine() -> list[Finding]:
    """Return findings about configs, data, disk, and shared memory."""
    from refseg.paths import configs_dir, shipped_configs

    root, configs = Path(os.environ.get("REFSEG_DATA") or "data"), len(shipped_configs())
    folders = sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else []
    reinstall = "" if configs else f"{PIP} --force-reinstall --no-deps refseg (or .)"
    findings = [Finding("configs", OK if configs else FAIL, f"{configs or 'none'} in {configs_dir()}", reinstall)]
    findings += check_data(str(root), folders)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    remedy = "" if free >= 5 else "free some space, or use --work-dir on another disk"
    findings.append(Finding("disk", WARN if remedy else OK, f"{free:.1f} GiB free at {Path.cwd()}", remedy))
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm")
        findings.append(check_shm(shm.total / 2**30, shm.free / 2**30))
    return findings


# The command --------------------------------------------------------------------------------------------------------


def diagnose() -> list[Finding]:
    libraries = judge_libraries(gather(), required_ranges())
    return [check_python(tuple(sys.version_info[:3])), *libraries, *look_at_machine()]


def table(findings: Sequence[Finding]) -> str:
    """Return one line each; what is wrong is wrapped below, its remedy in full so that it can be copied."""
    width = max(40, shutil.get_terminal_size((110, 24)).columns)
    names = max(len(finding.name) for finding in findings)
    whole: dict[str, Any] = dict(break_long_words=False, break_on_hyphens=False)  # paths can be copied
    lines = []
    for finding in findings:
        head = f"{finding.status:4}  {finding.name:{names}}  "
        below = " " * len(head)
        lines += textwrap.wrap(head + finding.text, width, subsequent_indent=below, **whole) or [head]
        lines += [f"{below}-> {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines)


def summary(findings: Sequence[Finding], model: str | None = None) -> str:
    failed = [finding.name for finding in findings if finding.status == FAIL]
    warned = [finding.name for finding in findings if finding.status == WARN]
    if failed and model:
        return f"{model} cannot be trained here yet: {', '.join(failed)}."
    if failed:
        return f"refseg cannot work yet: {', '.join(failed)}. Run the commands after ->, then `refseg doctor` again."
    good = f"{model} can be trained here." if model else "Everything needed works."
    return good + (f" To look at, when you need it: {', '.join(warned)}." if warned else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="config, checkpoint, or work directory: check what its training needs")
    parser.add_argument("--batch-size", type=int, metavar="N", help="for the memory estimate (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    if args.model:
        from refseg.apis.models import find_config
        from refseg.apis.preflight import preflight
        from refseg.apis.runner import load_config

        findings = preflight(load_config(str(find_config(args.model))), batch_size=args.batch_size)
    else:
        findings = diagnose()
    healthy = all(finding.status != FAIL for finding in findings)
    if args.json:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(f"{table(findings)}\n\n{summary(findings, args.model)}")
    return 0 if healthy else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(sys.argv[2:])
        sys.exit()
    _parser = argparse.ArgumentParser(prog="refseg doctor", description=__doc__)
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
