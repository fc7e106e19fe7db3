"""Packaging of refseg. Never runs pip; reads the version and the requirements as text."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("configs", "tools")  # copied to refseg/.mim, where OpenMMLab's packages keep theirs
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "dev")


def read_version() -> str:
    text = (ROOT / "projects/refseg/version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if not found:
        raise RuntimeError('projects/refseg/version.py has no line `__version__ = "..."`')
    return found.group(1)


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


class BuildPyWithConfigs(build_py):
    """Adds `configs` and `tools`: copies in a build, git-ignored links in an editable install."""

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


extras = {name: read_requirements(name) for name in ("demo", "log", "dev")}

setup(
    name="refseg",
    version=read_version(),
    description="The open toolbox for referring segmentation: a phrase and an image go in, masks come out.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    package_dir={"": "projects"},
    packages=find_packages("projects", include=["refseg", "refseg.*"]),
    package_data={"refseg": ["py.typed", "**/*.json", "**/*.txt", "**/*.html", "**/*.css", "**/*.js", "**/*.ttf"]},
    include_package_data=False,
    python_requires=">=3.10",
    install_requires=read_requirements("runtime"),
    extras_require={**extras, "all": sorted({one for names in extras.values() for one in names})},
    entry_points={"console_scripts": ["refseg = refseg.cli:main"]},
    cmdclass={"build_py": BuildPyWithConfigs},
    zip_safe=False,
)
