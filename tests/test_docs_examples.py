"""Code and commands of the documentation, run on RefShapes tiny."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
SMALL = shlex.split(
    "param_scheduler=None train_cfg.max_epochs=1 train_cfg.val_interval=1 default_hooks.checkpoint.interval=1 "
    "train_dataloader.num_workers=0 train_dataloader.persistent_workers=False "
    "val_dataloader.num_workers=0 val_dataloader.persistent_workers=False test_dataloader.num_workers=0"
)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the page's indented blocks, each with the line of text before it."""
    found = re.findall(r"^(\S.*)\n\n((?:(?: {4}.*)?\n)+)", page, re.MULTILINE)
    return [(line, textwrap.dedent(block).strip("\n") + "\n") for line, block in found]


def file_blocks(page: str) -> dict[str, str]:
    """Return the blocks that are files, by name. The line before such a block begins or ends with the name."""
    named = [(re.search(r"(?:^`(\w+\.py)` |`(\w+\.py)`$)", line), block) for line, block in blocks(page)]
    return {match[1] or match[2]: block for match, block in named if match}


def commands(page: str) -> list[list[str]]:
    """Return the arguments of the page's `refseg` lines."""
    lines = [line for _, block in blocks(page) for line in block.splitlines() if line.startswith("refseg ")]
    return [shlex.split(line)[1:] for line in lines]


def small(command: list[str]) -> list[str]:
    """Change a command to run on RefShapes tiny, for one epoch, without worker processes."""
    command = ["tiny" if word == "mini" else word for word in command]
    return [*command, "--cfg-options", *SMALL] if command[0] in ("train", "test") else command


def run(program: str, folder: Path) -> str:
    """Run a program in the folder and return its output. It can import the folder's modules."""
    paths = os.pathsep.join([str(REPOSITORY / "projects"), str(folder)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    done = subprocess.run(
        [*command, "-W", "ignore", "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_page_on_adding_a_method(tmp_path: Path) -> None:
    page = (DOCS / "add_a_method.md").read_text()
    files = file_blocks(page)
    assert set(files) == {"film.py", "film_tiny_refshapes.py", "test_film.py"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    typed = commands(page)
    assert [words[0] for words in typed] == ["data", "train", "test", "predict", "report"]
    program = f"""
import glob
import test_film
from refseg.cli import main
for name in dir(test_film):
    if name.startswith("test_"):
        getattr(test_film, name)()
        print(name)
for words in {[small(words) for words in typed]}:
    argv = [found for word in words for found in (glob.glob(word) if "*" in word else [word])]
    assert main(argv) == 0, argv
"""
    printed = run(program, tmp_path)
    assert printed.count("test_a_") == files["test_film.py"].count("def test_") > 0
    work_dir = tmp_path / "work_dirs/film_tiny_refshapes"
    assert (work_dir / "epoch_1.pth").is_file()
    assert (work_dir / "report.html").is_file()
    _, *rows = (tmp_path / "film.jsonl").read_text().splitlines()
    assert len(rows) == 42  # the expressions of tiny's test split
    answers = (tmp_path / "answers/predictions.jsonl").read_text().splitlines()[1:]
    images = list((tmp_path / "data/refshapes_mini/images").glob("*.png"))
    assert len(answers) == len(images)
    assert all(json.loads(answer)["text"] == "the red circle" for answer in answers)
    assert len(list((tmp_path / "answers/pictures").glob("*.png"))) == len(images)


MESSAGES_OF_LIBRARIES = {
    "CUDA out of memory",
    "Expected to have finished reduction in the prior iteration",
    "Address already in use",
    "Gloo connectFullMesh failed ... remote=[127.0.0.1]",
}


def test_messages_on_the_troubleshooting_page_exist() -> None:
    """Their fixed parts, between "..." and numbers, are in the package's code."""
    sources = (file.read_text() for file in (REPOSITORY / "projects/refseg").rglob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", "\n".join(sources))
    page = (DOCS / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| `([^`|]+)` \|", page, re.MULTILINE)
    assert len(cells) > 15
    quoted = cells + re.findall(r"^`(a loss is not finite[^`]*)`", page, re.MULTILINE)
    parts = [
        part.strip()
        for cell in quoted
        if cell not in MESSAGES_OF_LIBRARIES
        for part in re.split(r"\.\.\.|\d+|'\S+'", cell)
    ]
    missing = [part for part in parts if part and part not in code]
    assert not missing


@pytest.mark.slow
def test_notebook(tmp_path: Path) -> None:
    """Run all code cells. The test split of tiny has 42 phrases."""
    notebook = json.loads((DOCS / "refseg.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    printed = run("\n".join("".join(cell["source"]) for cell in cells), tmp_path)
    assert "42 of them for testing" in printed
    assert "the model: work_dirs/notebook" in printed
    assert len((tmp_path / "answers/notebook/predictions.jsonl").read_text().splitlines()) == 1 + 42
    assert json.loads((tmp_path / "answers/notebook/score.json").read_text())
