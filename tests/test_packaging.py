"""The built package, its configs, the check of the documentation, and the targets of `make`."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cloning import REPO, clone


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_readme_and_ci_run_the_targets() -> None:
    """The README shows `make demo` and `make test` first. CI runs lint, the documentation's build and the tests."""
    first_screen = (REPO / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    targets = re.findall(r"^(\w+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in ("demo", "test"):
        assert target in targets and any(line.strip().startswith(f"make {target} ") for line in first_screen)
    steps = re.findall(r"^make .*-directory (\w+)", (REPO / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == ["lint", "docs", "test"]


@pytest.mark.slow
def test_wheel_from_the_sdist_works_outside_the_repository(tmp_path: Path) -> None:
    """Build sdist -> wheel -> installed folder, with configs, tools, version and requirements."""
    parts = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "requirements", "projects")
    repo = clone(tmp_path / "repo", *parts, "configs", "tools")
    files_of_model = ("model.safetensors", "README.md", "config.json", "words.txt", "alignment.json", "examples.jsonl")
    for name in files_of_model:  # a clone may lack the weights
        (repo / "projects/refseg/shipped/refshapes" / name).touch()
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=repo)
    (sdist,) = tmp_path.glob("refseg-*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    no_network = ("--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "wheel", *no_network, "-w", tmp_path, sdist, cwd=tmp_path)
    (wheel,) = tmp_path.glob("refseg-*.whl")

    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("refseg/.mim/") for name in names if name.startswith("refseg/.mim/")}
    for folder in ("configs", "tools"):
        sources = {str(file.relative_to(REPO)) for file in (REPO / folder).rglob("*.py") if "dev" not in file.parts}
        assert sources and sources <= shipped
    assert "tools/dist_train.sh" in shipped
    assert {f"refseg/shipped/refshapes/{name}" for name in (*files_of_model, "example_0.png")} <= set(names)
    assert not any("__pycache__" in name or name.startswith(("tests", "projects")) for name in names)

    run(*pip, "install", *no_network, "-q", "--target", tmp_path / "site", wheel, cwd=tmp_path)
    program = (
        "import refseg, refseg.paths as p; print(refseg.__file__); print(p.tools_dir());"
        "print(p.resolve_config('baseline_tiny_refshapes'))"
    )
    output = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    for line in output.splitlines():
        assert line.startswith(str(tmp_path / "site")), output
    metadata = (next((tmp_path / "site").glob("refseg-*.dist-info")) / "METADATA").read_text()
    assert "Requires-Dist: mmcv-lite" in metadata and "Requires-Python: >=3.10" in metadata
    assert "gradio" in metadata and "License-Expression: Apache-2.0" in metadata
    scripts = (next((tmp_path / "site").glob("refseg-*.dist-info")) / "entry_points.txt").read_text()
    assert "refseg = refseg.cli:main" in scripts


class TestPaths:
    def test_config_is_found_by_each_of_its_names(self) -> None:
        from refseg.paths import configs_dir, resolve_config

        wanted = (configs_dir() / "baseline_tiny_refshapes.py").resolve()
        for name in ("baseline_tiny_refshapes", "baseline_tiny_refshapes.py", "configs/baseline_tiny_refshapes.py"):
            assert resolve_config(name).resolve() == wanted
        assert resolve_config(wanted) == wanted

    def test_near_matches_are_suggested(self) -> None:
        from refseg.paths import resolve_config

        with pytest.raises(FileNotFoundError, match=r"did you mean .*baseline_tiny_refshapes"):
            resolve_config("baseline_tiny_refshape")


class TestDocs:
    @pytest.fixture
    def page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(str(REPO / "tools/dev"))
        checker = importlib.import_module("check_docs")
        repo = clone(tmp_path, "Makefile")
        monkeypatch.setattr(checker, "REPO", repo)
        return repo / "page.md"

    def problems(self, page: Path, text: str) -> list[str]:
        page.write_text(text)
        return importlib.import_module("check_docs").check(page)

    def test_broken_links_paths_and_targets_are_found(self, page: Path) -> None:
        text = (
            "# A title, *here*\n\n[a](page.md#a-title-here) [b](gone.md)\n[c](#no-heading)\n\n"
            "```\nmake test\nmake coffee\n```\nsee `tools/gone.py`, `configs/<name>.py`, `make doctor`\n"
        )
        found = self.problems(page, text)
        assert [line.partition(": ")[0] for line in found] == ["page.md:3", "page.md:4", "page.md:8", "page.md:10"]
        for line, word in zip(found, ("gone.md", "#no-heading", "coffee", "tools/gone.py"), strict=True):
            assert word in line

    def test_valid_references_are_accepted(self, page: Path) -> None:
        assert self.problems(page, "[x](https://example.org/y) [m](Makefile) `Makefile` `make`\n") == []


def test_make_lists_its_targets_by_default() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    output = run("make", "--no-print-directory", cwd=REPO)
    for target in ("setup", "demo", "test", "check", "lint", "format", "docs", "doctor", "wheel", "clean", "help"):
        assert re.search(rf"^  {target} ", output, re.MULTILINE), output


def test_importing_refseg_is_light() -> None:
    program = "import sys, refseg; print(sorted({'torch', 'mmengine', 'mmcv', 'numpy'} & set(sys.modules)))"
    assert run(sys.executable, "-c", program, cwd=REPO, PYTHONPATH=str(REPO / "projects")).strip() == "[]"


def test_commands_without_a_model_start_without_torch() -> None:
    program = "import sys, refseg.cli.{}; print('torch' in sys.modules)"
    for verb in ("score", "compare", "report", "data"):
        found = run(sys.executable, "-c", program.format(verb), cwd=REPO, PYTHONPATH=str(REPO / "projects"))
        assert found.strip() == "False", verb
