"""The model-index.yml of each method: complete, and with the numbers of its README and of docs/results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
METHODS = sorted(file.parent.name for file in CONFIGS.glob("*/README.md"))


def entries(method: str) -> list[dict[str, Any]]:
    return yaml.safe_load((CONFIGS / method / "model-index.yml").read_text())["Models"]


def results(method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in entries(method):
        for result in entry.get("Results", ()):
            yield entry["Name"], result


def readme_line(method: str, name: str) -> str:
    """Return the line of the README's table about a config."""
    lines = (CONFIGS / method / "README.md").read_text().splitlines()
    return next(line for line in lines if line.startswith("|") and f"`{name}`" in line.split("|")[1])


@pytest.mark.parametrize("method", METHODS)
def test_every_config_is_listed(method: str) -> None:
    """All configs directly in the folder are entries, in any order; ablations are not."""
    content = yaml.safe_load((CONFIGS / method / "model-index.yml").read_text())
    (collection,) = content["Collections"]
    assert (REPOSITORY / collection["README"]).is_file()
    listed = [entry["Config"] for entry in content["Models"]]
    assert sorted(listed) == sorted(str(file.relative_to(REPOSITORY)) for file in CONFIGS.glob(f"{method}/*.py"))
    for entry in content["Models"]:
        assert entry["Name"] == Path(entry["Config"]).stem and entry["In Collection"] == collection["Name"]


@pytest.mark.parametrize("method", METHODS)
def test_published_numbers_are_those_of_the_readme(method: str) -> None:
    """Each number is in the config's line of the README, and each number with decimals there is in the index."""
    for entry in entries(method):
        line = readme_line(method, entry["Name"])
        numbers = {float(text) for text in re.findall(r"\d+\.\d+", line.split("|")[-2])}
        papers = [one for one in entry.get("Results", ()) if one["Source"] == "paper"]
        indexed = {value for result in papers for value in result["Metrics"].values()}
        notes = {12.2} if "(section 12.2)" in line else set()
        assert indexed == numbers - notes, entry["Name"]
        for name in {name for result in papers for name in result["Metrics"]} - {"unknown"}:
            assert name in (CONFIGS / method / "README.md").read_text(), name


def test_own_numbers_are_those_of_the_results_page() -> None:
    found = [(name, one) for method in METHODS for name, one in results(method) if one["Source"] != "paper"]
    assert found
    for name, result in found:
        page = (REPOSITORY / result["Source"]).read_text()
        assert name in page and result["Note"]
        for value in result["Metrics"].values():
            assert str(value) in page, (name, value)
