"""Make, or reuse, the virtual environment behind `make`, and print its Python.

It uses `python -m venv`, pip and requirements/constraints.txt. The environment is made again when the requirement
files, setup.py or the Python version change. A torch that already works in the calling Python is kept: the environment
then sees the caller's packages and installs only what they lack.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GROUPS = ("runtime", "pretrained", "lora", "parquet", "demo", "onnx", "dev", "docs")
STAMP, MADE_HERE = "refseg-env.json", "refseg-made-here"
# Pinned for the tested torch. A kept torch has its own versions of these.
TORCH_FAMILY = {"torch", "torchvision", "filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"}
TRY_TORCH = "import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"
FIND_KEPT = f"""
import importlib.metadata as metadata, json, sys
versions = {{}}
try:
    {TRY_TORCH}
    versions = {{name: metadata.version(name) for name in ("torch", "torchvision")}}
    import mmcv._ext
    versions["mmcv"] = metadata.version("mmcv")
except BaseException:
    pass
print(json.dumps([versions, [path for path in sys.path if path.endswith("-packages")]]))
"""


class SetupError(Exception):
    """A problem and its remedy, printed without a traceback."""


def environment_key() -> str:
    """Return a name for the environment's content, the same for every clone of the same state."""
    digest = hashlib.sha256(sys.platform.encode())
    for file in [*sorted((REPO / "requirements").glob("*.txt")), REPO / "setup.py", Path(__file__)]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{digest.hexdigest()[:12]}"


def version_of(text: str) -> tuple:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def requirements(*groups: str) -> list:
    lines = [line for group in groups for line in (REPO / f"requirements/{group}.txt").read_text("utf-8").splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def find_kept(base: str) -> tuple:
    """Return the versions of torch, torchvision and a compiled mmcv to keep, and the package folders they are in."""
    if os.environ.get("REFSEG_KEEP_TORCH") == "0":
        return {}, []
    done = subprocess.run([base, "-c", FIND_KEPT], capture_output=True, text=True)
    versions, folders = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else ({}, [])
    if not versions or version_of(versions["torch"]) < (2, 4):
        return {}, []
    if "mmcv" in versions and not (2, 0, 1) <= version_of(versions["mmcv"]) < (2, 2):  # mmdet refuses others
        del versions["mmcv"]
    return versions, folders


def pip(python: Path, *arguments: str) -> None:
    log = f"{python.parents[1]}.log"
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--log", log, *arguments]
    command += [] if sys.stderr.isatty() else ["--progress-bar", "off"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SetupError(
            f"pip failed: see its last lines above, or {log}. A proxy or mirror is set with HTTPS_PROXY or "
            "`pip config set global.index-url ...`; another disk with REFSEG_VENV=/big/venv; another Python with "
            "make PYTHON=python3.11. See docs/installation.md."
        )


def base_python(venv: Path) -> str:
    """Return the calling Python, or the one behind it if it is the environment's own."""
    return getattr(sys, "_base_executable", "") or sys.executable if Path(sys.prefix) == venv else sys.executable


def build(venv: Path, kept: dict, folders: list) -> Path:
    """Make the environment and return its Python."""
    base = base_python(venv)
    if venv.exists() and any(venv.iterdir()) and not (venv / MADE_HERE).exists():
        raise SetupError(
            f"{venv} was not made by this script, so it stays as it is. Name another place with REFSEG_VENV=..., or "
            "activate that environment and set REFSEG_SYSTEM=1."
        )
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True)
    (venv / MADE_HERE).write_text("Made by tools/dev/setup_env.py, which may delete and remake it.\n", "utf-8")
    (venv / ".gitignore").write_text("*\n", "utf-8")  # REFSEG_VENV may lie inside the repository
    if subprocess.run([base, "-m", "venv", str(venv)], stdout=sys.stderr).returncode:
        raise SetupError(f"{base} cannot make environments. On Debian and Ubuntu install python3-venv.")
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # 1. The caller's packages, if its torch is kept, and the pins without those that its torch sets.
    pins = requirements("constraints")
    if kept:
        packages = next(venv.glob("[lL]ib/**/site-packages"))
        (packages / "zz_refseg_kept.pth").write_text("\n".join(folders) + "\n", "utf-8")
        pins = [pin for pin in pins if name_of(pin) not in TORCH_FAMILY]
        pins += [f"{name}=={version}" for name, version in kept.items()]
    wanted = [line for line in requirements(*GROUPS) if not (name_of(line) == "mmcv-lite" and "mmcv" in kept)]
    for file, lines in (("requirements", wanted), ("constraints", pins)):
        (venv / f"{file}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    # 2. The requirements.
    pip(python, "install", "-q", "-r", str(venv / "requirements.txt"), "-c", str(venv / "constraints.txt"))
    if subprocess.run([str(python), "-c", "import cv2"], capture_output=True).returncode:
        # opencv-python needs libGL, which slim containers lack. The headless build does not.
        headless = next(pin for pin in pins if name_of(pin) == "opencv-python").replace("python", "python-headless", 1)
        pip(python, "uninstall", "-q", "--yes", "opencv-python")
        pip(python, "install", "-q", "--no-deps", headless)
    broken = subprocess.run([str(python), "-c", TRY_TORCH], capture_output=True, text=True).stderr.strip()
    if broken and kept:
        say("the existing torch does not work in the environment: starting over with the tested version")
        return build(venv, {}, [])
    if broken:
        raise SetupError(f"torch was installed but does not work: {broken.splitlines()[-1]}")
    return python


def ensure() -> Path:
    """Return the Python of an environment that fits, made or repaired where needed."""
    venv = Path(os.path.abspath(REPO / Path(os.environ.get("REFSEG_VENV") or ".venv").expanduser()))
    stamp_file, key = venv / STAMP, environment_key()
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{venv}.lock", "w") as lock:
        if os.name == "posix":  # one set-up of an environment at a time
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = json.loads(stamp_file.read_text("utf-8")) if stamp_file.exists() else {}
        if stamp.get("key") != key or not all(Path(path).exists() for path in stamp["needs"]):
            stamp_file.unlink(missing_ok=True)  # a set-up that is interrupted leaves no stamp and starts over
            kept, folders = find_kept(base_python(venv))
            say(f"making the environment {venv}: a few minutes" + ("" if kept else ", and 7 GB with torch for CUDA"))
            if kept:
                say("keeping " + ", ".join(f"{name} {version}" for name, version in kept.items()))
            stamp = {"key": key, "needs": [str(build(venv, kept, folders)), *folders], "project": None}
        if stamp["project"] != str(REPO):  # a new, shared or moved environment
            pip(Path(stamp["needs"][0]), "install", "-q", "--no-deps", "--no-build-isolation", "-e", str(REPO))
            stamp_file.write_text(json.dumps({**stamp, "project": str(REPO)}), "utf-8")
    return Path(stamp["needs"][0])


def check_system(groups: tuple) -> None:
    """Check that the calling environment has every requirement of these groups."""
    installed = {name_of(dist.metadata["Name"] or "") for dist in importlib.metadata.distributions()}
    same = {"mmcv-lite": {"mmcv", "mmcv-full"}, "opencv-python": {"opencv-python-headless", "opencv-contrib-python"}}
    missing = [line for line in requirements(*groups) if not installed & {name_of(line), *same.get(name_of(line), ())}]
    if missing:
        packages = " ".join(f"'{requirement}'" for requirement in missing)
        raise SetupError(f"REFSEG_SYSTEM=1: missing packages. Install them: {sys.executable} -m pip install {packages}")


def say(message: str) -> None:
    print(f"[setup] {message}", file=sys.stderr, flush=True)


def main() -> int:
    if "--print-key" in sys.argv:
        print(environment_key())
        return 0
    try:
        if os.environ.get("REFSEG_SYSTEM", "0") not in ("", "0"):
            check_system(() if "--no-check" in sys.argv else GROUPS[:1] if "--runtime" in sys.argv else GROUPS)
            print(sys.executable)
        else:
            print(ensure())
    except (SetupError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted: the next run starts over")
        return 130
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(
            f"refseg needs Python 3.10, 3.11 or 3.12; this is {sys.version.split()[0]}. Try: make PYTHON=python3.11"
        )
    sys.exit(main())
