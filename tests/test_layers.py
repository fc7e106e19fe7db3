"""The core imports no workshop, nothing imports the commands, and no method imports another."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "projects/refseg"
WORKSHOPS = {
    *("analysis", "cli", "convert", "data_tools", "demo", "export", "finetuning", "publish", "refshapes", "report"),
}
METHODS = {"baseline", "cgformer", "deris", "dmmi", "instalign", "latent_vg", "lavt", "lgformer", "rela", "vipa"}
# Any workshop may write pages. Probes change phrases of RefShapes, whose meaning its generator knows.
# Fine-tuning goes from checked data to a calibrated model.
ALLOWED = {(room, "report") for room in WORKSHOPS} | {
    *(("report", "analysis"), ("analysis", "refshapes")),
    *(("finetuning", "analysis"), ("finetuning", "data_tools"), ("__init__.py", "finetuning")),
}


def imports() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the path of each file and each module of refseg that it imports, both relative to the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refseg":
                for alias in node.names:
                    yield file.relative_to(PACKAGE).parts, (*node.module.split(".")[1:], alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("refseg."):
                        yield file.relative_to(PACKAGE).parts, tuple(alias.name.split(".")[1:])


def test_only_allowed_imports() -> None:
    wrong = []
    for file, module in imports():
        room, target = file[0], module[0]
        if target in WORKSHOPS - {room} and room != "cli" and (room, target) not in ALLOWED:
            wrong.append(f"{'/'.join(file)} imports {'.'.join(module)}")
        if room == target == "models" and file[1] in METHODS and module[1] in METHODS - {file[1]}:
            wrong.append(f"the method {file[1]} imports {module[1]}")
    assert not wrong


def test_training_loads_only_the_core() -> None:
    program = (
        "import sys; from refseg.engine.run import build_model, load_config; import refseg.engine.preflight;"
        "cfg = load_config('instalign_tiny_refshapes'); build_model(cfg);"
        "print(sorted({name.split('.')[1] for name in sys.modules if name.startswith('refseg.')}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not WORKSHOPS & set(ast.literal_eval(done.stdout.splitlines()[-1]))
