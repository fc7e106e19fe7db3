"""docs/protocols.md agrees with the code: the tests rebuild its tables of protocols and golden numbers, and check that
the tool of its example is deterministic."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.evaluation.breakdowns import BREAKDOWNS
from refseg.evaluation.prediction_file import read_predictions
from refseg.evaluation.protocols import PROTOCOLS, Grid, Protocol
from refseg.evaluation.rows import Row, Rows

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs/protocols.md").read_text(encoding="utf-8")
LIBRARIES = {"pillow": "Pillow", "cv2": "cv2"}
COLUMNS = ("gIoU", "cIoU", "oIoU", "mIoU", "Pr@0.7", "N-acc", "T-acc", "Acc")


def named(grid: Grid) -> str:
    return "original" if grid == "original" else f"{grid[0]} x {grid[1]}"


def protocol_line(protocol: Protocol) -> str:
    """Return a protocol's line in the table of protocols."""
    view, rule = protocol.view, protocol.no_target
    grid = named(view.grid) + (f"; no target: {named(view.negative_grid)}" if view.negative_grid else "")
    way = view.interpolation + (", align_corners" if view.align_corners else "")
    way += " (of probabilities)" if view.resize == "probs" else ""
    pixel = f"{'>' if view.strict else '>='} {view.threshold:g}"
    target = "drawn on the grid" if view.target_by == "input" else f"nearest ({LIBRARIES[view.target_resize]})"
    if view.grid == "original" and view.negative_grid is None:
        target = "as annotated"
    nothing = {
        "head": f"probability > {rule.threshold:g}",
        "head-or-empty": f"probability > {rule.threshold:g}, or no pixel",
        "area": f"fewer than {rule.min_area} pixels",
        "none": "never",
    }[rule.rule]
    cells = [f"`{protocol.name}`", grid, way, pixel, f"{target}, {view.overlap}", nothing]
    return f"| {' | '.join(cells)} |"


def golden() -> Rows:
    """Return the golden samples of test_protocols.py: intersection, prediction, target, and whether it is rejected."""
    samples = [(16, 20, 20, False), (10, 20, 20, True), (0, 5, 0, True), (0, 8, 0, False), (25, 25, 25, False)]
    return Rows.of(
        Row(
            expression_id=str(i), image_id=str(i), object_id="o", intersection=both, predicted=predicted, target=target,
            has_target=target > 0, no_target_prob=0.9 if rejected else 0.1, num_targets=int(target > 0), num_words=2,
            target_area=target, image_area=100,
        )
        for i, (both, predicted, target, rejected) in enumerate(samples)
    )  # fmt: skip


def golden_line(protocol: Protocol) -> str:
    scores = protocol.score(golden())
    cells = [f"`{protocol.name}`", *(f"{scores[name]:.2f}" if name in scores else "-" for name in COLUMNS)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_page_describes_every_protocol(protocol: Protocol) -> None:
    assert protocol_line(protocol) in PAGE, "the line should be: " + protocol_line(protocol)
    if protocol.view.boxes is not None:
        rule = protocol.view.boxes
        kept = "the best box" if rule.min_score is None else f"boxes of score >= {rule.min_score:g}"
        match = f"{'GIoU' if rule.generalised else 'IoU'} >= {rule.threshold:g}"
        if "mAcc" in protocol.terms(Rows.of(())):
            match = "IoU > 0.5, 0.55, ..., 0.95"
        line = f"| `{protocol.name}` | {kept} | {match} |"
        assert line in PAGE, "the line should be: " + line


def test_page_names_protocols_without_crowds() -> None:
    names = [f"`{name}`" for name, protocol in PROTOCOLS.items() if protocol.view.crowds == "exclude"]
    assert f"{', '.join(names[:-1])} and {names[-1]} leave them out of the target's mask" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    "name", ["refseg", "gres", "deris", "gsva", "gsva-refzom", "refzom", "refzom-score", "lavt", "cgformer"]
)
def test_page_golden_numbers(name: str) -> None:
    line = golden_line(PROTOCOLS[name])
    assert line in PAGE, "the line should be: " + line


def test_page_names_exist() -> None:
    table = PAGE.split("## The protocols")[1].split("\n\n")[1]
    names = {line.split("|")[1].strip().strip("`") for line in table.splitlines() if line.startswith("| `")}
    assert names == set(PROTOCOLS)
    for name in BREAKDOWNS:
        assert f"`{name}`" in PAGE


def test_perturbed_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds give equal files. At severity 0 the masks are the ground truth."""
    pixels = np.zeros((20, 20), np.uint8, order="F")
    pixels[4:12, 4:12] = 1
    rle = coco_mask.encode(pixels)
    target = {"size": [20, 20], "counts": rle["counts"].decode()}
    common = {"image": "i.png", "size": [20, 20], "text": "square"}
    rows = [{"expression_id": str(i), "targets": [target] if i else None, **common} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.fromarray(pixels).save(tmp_path / "i.png")
    monkeypatch.syspath_prepend(str(REPO / "tools/analysis_tools"))
    tool = importlib.import_module("perturb_predictions")

    def made(name: str, *more: str) -> bytes:
        monkeypatch.setattr("sys.argv", ["perturb", str(tmp_path / "data.jsonl"), str(tmp_path / name), *more])
        tool.main()
        return (tmp_path / name).read_bytes()

    first = made("a.jsonl")
    assert first == made("b.jsonl") and first != made("c.jsonl", "--seed", "1")
    made("exact.jsonl", "--severity", "0")
    answers = {row.expression_id: row for row in read_predictions(tmp_path / "exact.jsonl")}
    assert all(answers[str(i)].source["counts"] == rle["counts"] for i in (1, 2, 3))
    assert answers["1"].no_target_prob == pytest.approx(1 / (1 + np.exp(2)), abs=1e-6)
    assert answers["0"].no_target_prob == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
