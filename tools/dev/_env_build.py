"""The environment behind `make`: a virtual environment that is reused while its key matches.

The key is made of the requirement files, setup.py, the Python version, the platform and SCRIPT_VERSION. In the
environment, `refseg-env.json` is the stamp of a complete set-up, and `refseg-made-here` says that we may delete it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from _env_pip import SetupError, pip_command, run_logged, say
from _env_probe import Kept, ask, broken_imports, find_kept, version_tuple
from _env_system import check_system

SCRIPT_VERSION = "1"  # raise it when a change here must rebuild existing environments
REPO = Path(__file__).resolve().parents[2]
INSTALLED = ("runtime", "demo", "dev")
MIN_PIP = (22, 3)
TESTED_PYTHON = ((3, 10), (3, 12))
# Pinned together with torch in constraints.txt, and left to a torch that is kept: it asks for its own versions.
TORCH_FAMILY = {"torch", "torchvision", "filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"}
STAMP, MADE_HERE = "refseg-env.json", "refseg-made-here"
_VERIFY = """
import json
result = {}
for name, program in {
    "torch": "import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)",
    "cv2": "import cv2",
}.items():
    try:
        exec(program)
    except BaseException as error:
        result[name] = f"{type(error).__name__}: {error}"[:300]
print("REFSEG" + json.dumps({"broken": result}))
"""


def environment_key(repo: Path = REPO) -> str:
    """Names the content of the environment; the same for every clone of the same state."""
    major, minor = sys.version_info[:2]
    digest = hashlib.sha256(
        f"{SCRIPT_VERSION} {sys.implementation.name} {major}.{minor} {platform.system()} {platform.machine()}".encode()
    )
    for file in [*sorted((repo / "requirements").glob("*.txt")), repo / "setup.py"]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return f"py{major}{minor}-{digest.hexdigest()[:12]}"


def venv_path() -> Path:
    """$REFSEG_VENV, relative to the repository, or `.venv` in it."""
    return Path(os.path.abspath(REPO / Path(os.environ.get("REFSEG_VENV") or ".venv").expanduser()))


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def base_python(venv: Path) -> str:
    """The calling interpreter, or what it was made from when it is the one in `venv` itself (activated)."""
    inside = Path(sys.prefix).resolve() == venv.resolve()
    return str(getattr(sys, "_base_executable", sys.executable)) if inside else sys.executable


def read_stamp(venv: Path) -> dict:
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict) -> None:
    unfinished = venv / f"{STAMP}.tmp"
    unfinished.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    unfinished.replace(venv / STAMP)


def is_current(venv: Path, stamp: dict, key: str) -> bool:
    return (
        stamp.get("key") == key
        and venv_python(venv).exists()
        and all(Path(path).exists() for path in stamp.get("witness", ()))
        and not (stamp.get("kept") and os.environ.get("REFSEG_KEEP_TORCH") == "0")
    )


@contextlib.contextmanager
def only_one(venv: Path) -> Iterator[int | None]:
    """One set-up of an environment at a time. The lock's descriptor goes to the children: a pip that outlives a killed
    set-up still holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{venv}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this environment is running: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            say(f"note: no lock on {venv}.lock ({error}); do not start two set-ups at once")
        yield file.fileno()


def start_empty(venv: Path, kept: Kept, log: Path, pass_fds: tuple[int, ...]) -> None:
    """A new, empty environment in place of one that we made ourselves; anything else is left alone."""
    if venv.exists() and any(venv.iterdir()) and not (venv / MADE_HERE).exists():
        raise SetupError(
            f"{venv} exists and was not made by this script, so it is left alone. Name another place with "
            "REFSEG_VENV=..., or use your own environment as it is: activate it and set REFSEG_SYSTEM=1."
        )
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"This Python ({sys.executable}) cannot make virtual environments: its module 'ensurepip' is missing. On "
            f"Debian and Ubuntu: apt-get install python{version}-venv. Or name another one: make PYTHON=python3.12 ..."
        )
    base = base_python(venv)
    if venv.exists():
        shutil.rmtree(venv)
    venv.mkdir(parents=True)
    (venv / MADE_HERE).write_text("Made by tools/dev/setup_env.py, which may delete and remake it.\n", encoding="utf-8")
    (venv / ".gitignore").write_text("*\n", encoding="utf-8")  # $REFSEG_VENV may lie inside the repository
    caller_is_venv = sys.prefix != sys.base_prefix and base == sys.executable
    options = ["--system-site-packages"] if kept.versions and not caller_is_venv else []
    run_logged(
        [base, "-m", "venv", *options, str(venv)], log=log, what="making the environment", pass_fds=pass_fds, quiet=True
    )
    if kept.versions and caller_is_venv:  # --system-site-packages would show its base, not the calling environment
        site = next(iter(sorted(venv.glob("lib/python*/site-packages")) or sorted(venv.glob("Lib/site-packages"))))
        (site / "zz_refseg_kept.pth").write_text("\n".join(kept.paths) + "\n", encoding="utf-8")


def distribution_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def write_pip_inputs(venv: Path, kept: Kept, repo: Path = REPO) -> tuple[Path, Path]:
    """The requirements and constraints for pip: the repository's, less what is kept, which is pinned as it is."""
    wanted = "\n".join((repo / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in INSTALLED)
    left_out = {"mmcv-lite"} if "mmcv" in kept.versions else set()
    lines = [line for line in wanted.splitlines() if distribution_name(line) not in left_out]
    pins = (repo / "requirements/constraints.txt").read_text(encoding="utf-8").splitlines()
    if kept.versions:
        pins = [pin for pin in pins if distribution_name(pin) not in TORCH_FAMILY]
        pins += [f"{name}=={version}" for name, version in kept.versions.items()]
    requirements, constraints = venv / "refseg-requirements.txt", venv / "refseg-constraints.txt"
    requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
    constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
    return requirements, constraints


def install(venv: Path, kept: Kept, log: Path, pass_fds: tuple[int, ...]) -> None:
    python = venv_python(venv)
    has = ask(python, "import json, pip; print('REFSEG' + json.dumps({'pip': pip.__version__}))").get("pip", "0")
    if version_tuple(has) < MIN_PIP:
        run_logged(pip_command(python, "install", "pip>=23.1"), log=log, what=f"updating pip {has}", pass_fds=pass_fds)
    requirements, constraints = write_pip_inputs(venv, kept)
    free = shutil.disk_usage(venv).free / 1e9
    needed = 2.5 if kept.versions else 8
    if free < needed:
        say(f"note: {free:.1f} GB free at {venv}; about {needed:g} GB may be needed")
    say("installing the pinned requirements" + ("" if kept.versions else " (torch alone is several GB on Linux)"))
    command = pip_command(python, "install", "--progress-bar", "off", "-r", str(requirements), "-c", str(constraints))
    run_logged(command, log=log, what="pip install", pass_fds=pass_fds)


def use_headless_opencv(venv: Path, log: Path, pass_fds: tuple[int, ...]) -> None:
    """opencv-python needs libGL, which slim containers lack; the headless build of the same version does not."""
    say("cv2 does not load here (no libGL?): taking opencv-python-headless instead")
    python = venv_python(venv)
    query = "import importlib.metadata as m, json; print('REFSEG' + json.dumps({'v': m.version('opencv-python')}))"
    pinned = f"opencv-python-headless=={ask(python, query).get('v', '4.*')}"
    steps = (["uninstall", "--yes", "opencv-python"], ["install", "--no-deps", pinned])
    for step in steps:
        run_logged(pip_command(python, *step), log=log, what=f"pip {step[0]}", pass_fds=pass_fds, quiet=True)


def install_project(venv: Path, log: Path, pass_fds: tuple[int, ...]) -> None:
    command = pip_command(venv_python(venv), "install", "--no-deps", "--no-build-isolation", "-e", str(REPO))
    run_logged(command, log=log, what="installing refseg itself", pass_fds=pass_fds, quiet=True)


def build(venv: Path, key: str, lock: int | None, keep: bool = True) -> dict:
    pass_fds = () if lock is None else (lock,)
    log = Path(f"{venv}.log")
    log.write_text("", encoding="utf-8")
    kept, notes = find_kept(base_python(venv)) if keep else (Kept(), [])
    for note in notes:
        say(note)
    say(f"making the environment {venv}" + (f", keeping {kept} of {sys.prefix}" if kept.versions else ""))
    start_empty(venv, kept, log, pass_fds)
    install(venv, kept, log, pass_fds)
    broken = ask(venv_python(venv), _VERIFY).get("broken", {"torch": "importing it crashes"})
    if "torch" in broken and kept.versions:
        say(f"the kept torch does not work with torchvision ({broken['torch']}); starting again with the tested pair")
        return build(venv, key, lock, keep=False)
    if "cv2" in broken and re.search(r"lib\w+\.so", broken["cv2"]):
        use_headless_opencv(venv, log, pass_fds)
    if "torch" in broken:
        raise SetupError(f"torch was installed but does not work: {broken['torch']}")
    install_project(venv, log, pass_fds)
    return {"key": key, "kept": kept.versions, "witness": kept.witness, "project": str(REPO)}


def ensure() -> Path:
    """The Python of an environment that fits, made or repaired where needed."""
    venv, key = venv_path(), environment_key()
    with only_one(venv) as lock:
        stamp = read_stamp(venv)
        if not is_current(venv, stamp, key):
            if not TESTED_PYTHON[0] <= sys.version_info[:2] <= TESTED_PYTHON[1]:
                say(f"note: refseg is tested on Python 3.10 to 3.12; this is {sys.version.split()[0]}")
            (venv / STAMP).unlink(missing_ok=True)
            write_stamp(venv, build(venv, key, lock))
            say("done")
        elif stamp.get("project") != str(REPO):  # a shared or a moved environment
            install_project(venv, Path(f"{venv}.log"), () if lock is None else (lock,))
            write_stamp(venv, {**stamp, "project": str(REPO)})
    return venv_python(venv)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-key", action="store_true", help="print the environment's key and do nothing else")
    parser.add_argument(
        "--check",
        choices=("all", "runtime", "none"),
        default="all",
        help="with REFSEG_SYSTEM=1: which imports must work (default: all, with the tools for tests and linting)",
    )
    args = parser.parse_args()
    if args.print_key:
        print(environment_key())
        return 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if os.environ.get("REFSEG_SYSTEM", "0") not in ("", "0"):
            check_system(REPO, broken_imports, {"all": INSTALLED, "runtime": INSTALLED[:1], "none": ()}[args.check])
            print(sys.executable)
        else:
            print(ensure())
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"[setup] error: {error}. Choose another place with REFSEG_VENV=...", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[setup] interrupted: the next run starts over", file=sys.stderr)
        return 130
    return 0
