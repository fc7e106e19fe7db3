"""Add the configs and tools to the wheel. All other metadata is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("configs", "tools")  # copied to refseg/.mim, where OpenMMLab's packages keep theirs
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "dev")


class BuildPyWithConfigs(build_py):
    """Add `configs` and `tools`: copies in a build, git-ignored links in an editable install."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            self.link_shipped()
            return
        for source, target in self.shipped():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=NOT_SHIPPED)

    def shipped(self) -> list[tuple[Path, Path]]:
        built = Path(self.build_lib, "refseg", ".mim")
        return [(ROOT / name, built / name) for name in SHIPPED if (ROOT / name).is_dir()]

    def link_shipped(self) -> None:
        for source, _ in self.shipped():
            link = ROOT / "projects/refseg/.mim" / source.name
            link.parent.mkdir(exist_ok=True)
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                try:
                    link.symlink_to(os.path.relpath(source, link.parent), target_is_directory=True)
                except OSError:  # no links on this file system: refseg.paths finds the folders of the repository
                    return

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return outputs + [str(file) for _, target in self.shipped() for file in target.rglob("*") if file.is_file()]


setup(cmdclass={"build_py": BuildPyWithConfigs})
