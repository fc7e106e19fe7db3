"""The table of zero-shot models: parameters, memory, and the page that shows them."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from conftest import REPOSITORY, load_script
from refseg.known_models import KNOWN_MODELS, WEIGHTS

PAGE = (REPOSITORY / "docs/zero_shot.md").read_text()


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return load_script("tools/analysis_tools/zero_shot_table.py")


def test_all_weights_are_counted(table: ModuleType) -> None:
    assert set(WEIGHTS) <= set(table.NETWORKS)


@pytest.mark.parametrize("weights", ["CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-large"])
def test_parameters(table: ModuleType, weights: str) -> None:
    """Published: CLIPSeg 150.7 M, and SAM 2.1 large 224.4 M, of which 7.5 M are the memory for video."""
    expected = {"CIDAS/clipseg-rd64-refined": 150.7, "facebook/sam2.1-hiera-large": 224.4 - 7.5}[weights]
    assert table.parameters(weights) == pytest.approx(expected, abs=0.06)
    assert WEIGHTS[weights].parameters == pytest.approx(expected, abs=0.06)
    assert table.network_row(weights) in PAGE


def test_memory_and_work_of_a_model(table: ModuleType) -> None:
    (_, one, work_of_one), (_, eight, work_of_eight) = (table.answer_on_paper("clipseg", count) for count in (1, 8))
    assert 0 < work_of_one < work_of_eight < 8 * work_of_one, "the image is encoded once"
    assert (round(one, 1), round(eight, 1)) == KNOWN_MODELS["clipseg"].memory
    assert table.model_row("clipseg") in PAGE


def test_the_page_shows_the_memory_of_every_model(table: ModuleType) -> None:
    for name, model in KNOWN_MODELS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |") and "GB" in line]
        cells = [cell.strip() for cell in row.split("|")]
        assert tuple(map(float, cells[3:5])) == model.memory
        assert cells[5:7] == [table.card_for(peak) for peak in model.memory]


def test_live_tensors_count_storages_once(table: ModuleType) -> None:
    """Two tensors of 400 bytes at once, then one: a view adds nothing."""
    with table.LiveTensors() as live:
        first = torch.zeros(100)
        view = first[:50]
        second = torch.zeros(100)
        del second
    assert (live.peak, live.bytes, len(view)) == (800, 400, 50)
