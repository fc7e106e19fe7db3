"""Consistency of the catalog with itself, published numbers, and docs/data.md."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from refseg.cli.data import COMMANDS
from refseg.datasets.annotations import check_arguments
from refseg.datasets.catalog import IMAGE_FOLDERS, SETS, Counts, Target, get_set
from refseg.errors import UsageError


@pytest.mark.parametrize("name", SETS)
def test_every_set_works_in_a_config(name: str) -> None:
    known = get_set(name)
    arguments = dict(known.annotations)
    check_arguments(arguments.pop("format"), arguments)
    assert known.name == name and known.image_root in IMAGE_FOLDERS
    assert known.refs.startswith(f"{known.folder}/") and known.source.startswith("https://")
    assert known.title and known.protocol and known.license


def test_usual_division_comes_first_in_its_folder() -> None:
    """`refseg data check` asks for the first one if a folder has no refs file."""
    first = {known.folder: known.name for known in reversed(SETS.values())}
    assert first == {folder: folder for folder in first}


def test_published_totals() -> None:
    """Sentences: RefCOCO 142,210, RefCOCO+ 141,564, RefCOCOg 95,010 in both divisions, gRefCOCO 259,859.

    Images: RefCOCO 19,994, RefCOCO+ 19,992. Refs: Google's RefCOCO 50,000.
    """
    totals = {name: sum(counts.sentences or 0 for counts in known.counts.values()) for name, known in SETS.items()}
    assert (totals["refcoco"], totals["refcoco+"], totals["grefcoco"]) == (142_210, 141_564, 259_859)
    assert totals["refcocog"] == totals["refcocog-google"] == 95_010
    images = {name: sum(counts.images or 0 for counts in known.counts.values()) for name, known in SETS.items()}
    assert (images["refcoco"], images["refcoco+"], images["grefcoco"]) == (19_994, 19_992, 19_994)
    assert sum(counts.refs or 0 for counts in SETS["refcoco-google"].counts.values()) == 50_000


@pytest.mark.parametrize(
    ("name", "hint"), [("RefCOCO", "did you mean refcoco"), ("ref-zoom", "ref-zom"), ("xyz", "available: refcoco,")]
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="no data set") as raised:
        get_set(name)
    assert hint in str(raised.value)


# docs/data.md ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("known", SETS.values(), ids=list(SETS))
def test_page_lists_every_set_with_its_counts(known: Target) -> None:
    assert f"| `{known.name}` | {known.title} | `{known.refs}` |" in PAGE
    assert known.source in PAGE
    rows = [line for line in PAGE.splitlines() if re.match(rf"\| `{re.escape(known.name)}` \| \w+ \| [\d?]", line)]
    shown = {}
    for row in rows:
        _, _, split, *numbers, mark, _ = (cell.strip() for cell in row.split("|"))
        shown[split] = Counts(*(None if number == "?" else int(number.replace(",", "")) for number in numbers))
        assert mark == ("" if known.verified else "unverified")
    assert shown == known.counts


def test_page_lists_every_option() -> None:
    from refseg.datasets.dataset import MixedDataset, ReferringDataset

    for cls in (ReferringDataset, MixedDataset):
        for name in set(inspect.signature(cls).parameters):
            assert f"`{name}`" in PAGE, f"{cls.__name__}.{name} is not in docs/data.md"


def test_page_lists_every_command() -> None:
    assert all(f"refseg data {name}" in PAGE for name in COMMANDS)
