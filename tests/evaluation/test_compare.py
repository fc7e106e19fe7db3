"""`refseg compare`: the arithmetic, the page, and the command on a small data set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.errors import DataError
from refseg.evaluation.compare import Comparison, compare_rows, headline
from refseg.evaluation.prediction_file import Answer, write_predictions
from refseg.evaluation.protocols import PROTOCOLS, get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.report.compare_page import metric_lines, render_comparison
from refseg.report.page import figure_of

REFSEG = get_protocol("refseg")


def row(name: str, intersection: int = 10, **changes: object) -> Row:
    """Return a row with a target of 20 pixels and IoU intersection / 20."""
    fields = dict(
        expression_id=name, image_id=name, object_id="o", intersection=intersection, predicted=intersection, target=20,
        has_target=True, no_target_prob=0.1, num_targets=1, num_words=2, target_area=20, image_area=100, skill="size",
    )  # fmt: skip
    return Row(**{**fields, **changes})


def without_target(name: str, predicted: int, prob: float) -> Row:
    return row(
        name, 0, predicted=predicted, target=0, has_target=False, num_targets=0, no_target_prob=prob, skill="no_target"
    )


def test_worth_of_masks() -> None:
    """Rows: IoU 1/2; rejected; and three without a target: masked, rejected, and empty but not rejected. The last one
    is right under R-RefCOCO, Ref-ZOM and refseg. GSVA scores rejected masks."""
    rows = Rows.of(
        [row("a"), row("b", no_target_prob=0.9), without_target("c", 9, 0.1), without_target("d", 9, 0.9),
         without_target("e", 0, 0.1)]
    )  # fmt: skip
    worth = {name: get_protocol(name).worth_of(rows).tolist() for name in PROTOCOLS}
    assert worth["refseg"] == [0.5, 0, 0, 1, 1]
    assert worth["gres"] == worth["deris"] == worth["refzom-score"] == [0.5, 0, 0, 1, 0]
    assert worth["gsva"] == [0.5, 0.5, 0, 1, 0] and worth["refzom"] == [0.5, 0.5, 0, 0, 1]
    assert worth["lavt"] == worth["cgformer"] == [0.5, 0.5, 0, 0, 0]
    assert worth["rrefcoco"] == worth["rrefcoco-original"] == [0.5, 0, 0, 1, 1]


def test_worth_of_boxes() -> None:
    """Rows: right; one box too many; one box of two; no target and no box; no target but a box."""
    counts = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (0, 0, 0), (0, 1, 0)]
    rows = Rows.of(
        row(str(i), boxes_matched=m, boxes_predicted=p, boxes_target=t, num_targets=t, has_target=t > 0)
        for i, (m, p, t) in enumerate(counts)
    )
    assert get_protocol("rec").worth_of(rows).tolist() == [1, 1, 0, 0, 0]
    assert get_protocol("grec").worth_of(rows).tolist() == [1, 0, 0, 1, 0]
    assert get_protocol("rec").score(rows) == {"Acc@0.5": 100.0}
    result = compare_rows(rows, rows, get_protocol("grec"), num=10)
    assert result.what == "match of boxes"


@pytest.mark.parametrize("name", ["refseg", "gres", "deris", "gsva", "lavt", "cgformer", "rec", "grec"])
def test_metric_is_mean_worth(name: str) -> None:
    """The metric is gIoU, or its counterpart. Rows have one target or none."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(50):
        changes = dict(no_target_prob=float(rng.random()), boxes_matched=int(rng.integers(2)), boxes_predicted=1)
        shared = int(rng.integers(20))
        rows.append(row(str(i), shared, boxes_target=1, **changes) if i % 3 else without_target(str(i), shared, 0.6))
    columns = Rows.of(rows)
    metrics = get_protocol(name).score(columns)
    metric = next(m for m in ("gIoU", "mIoU", "Acc@0.5", "Pr@(F1=1)") if m in metrics)
    chosen = columns.num_targets == 1 if name == "rec" else np.ones(50, bool)
    assert metrics[metric] == pytest.approx(100 * get_protocol(name).worth_of(columns)[chosen].mean())


def compared() -> Comparison:
    """Compare A (worth 0.5, 0.5, 0.5, 0) with B (worth 0.5, 1, 0.45, 1; it rightly rejects the last expression)."""
    a = Rows.of([row("e1"), row("e2"), row("e3"), without_target("e4", 5, 0.1)])
    b = Rows.of([row("e1"), row("e2", 20), row("e3", 9), without_target("e4", 5, 0.9)])
    return compare_rows(a, b, REFSEG, num=200)


def test_comparison() -> None:
    """mIoU is 50 and 65, gIoU 37.5 and 73.75. e4 differs by 1, e2 by 0.5, and e3 by 0.05, which is below CLEARLY."""
    result = compared()
    assert result.metrics["mIoU"].a == 50 and result.metrics["mIoU"].difference == pytest.approx(15.0)
    assert (result.metrics["gIoU"].a, result.metrics["gIoU"].b) == pytest.approx((37.5, 73.75))
    assert result.by_disagreement().tolist() == [3, 1, 2]
    assert result.tally() == {"a": 0, "b": 2, "neither": 2}
    skills = result.breakdowns["skill"]
    assert [(line["skill"], line["expressions"]) for line in skills] == [("no_target", 1), ("size", 3)]
    assert skills[0]["N-acc"] == (0.0, 100.0) and skills[1]["mIoU"] == pytest.approx((50.0, 65.0))
    assert headline(["Pr@0.5", "gIoU", "cIoU", "N-acc"]) == ["gIoU", "cIoU"] and headline(["Pr@(F1=1)"]) == [
        "Pr@(F1=1)"
    ]
    assert metric_lines(result, ("x", "y"))[0]["difference"] == "+36.25"


def test_compares_only_common_expressions() -> None:
    a, b = Rows.of([row("e1"), row("e2", 5)]), Rows.of([row("e3"), row("e2", 15), row("e4")])
    result = compare_rows(a, b, REFSEG, num=10)
    assert result.rows_a.expression_id.tolist() == result.rows_b.expression_id.tolist() == ["e2"]
    assert result.metrics["mIoU"].difference == pytest.approx(50.0)
    with pytest.raises(DataError, match="no expression in common"):
        compare_rows(a[:1], b, REFSEG)


def mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    pixels = np.zeros((40, 40), bool)
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = True
    return pixels


def rle(pixels: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


def test_page_escapes_text_and_uses_no_network() -> None:
    picture = figure_of(np.full((40, 40, 3), 9, np.uint8), label="<A>: IoU 0.30", alt="<A>: nothing here")
    card = {"phrase": "<script>alert(1)</script>", "pictures": [picture], "tags": "skill: si&ze"}
    html = render_comparison(
        compared(),
        names=("<A>", 'B"'),
        facts={"data": "<d>"},
        cards=[card],
        problems=["gone: <x>.png"],
        notes=["<n>"],
    )
    assert "<script" not in html and "&lt;script&gt;" in html and "&lt;A&gt;" in html and "si&amp;ze" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html) and "default-src 'none'" in html
    assert "1 of the images cannot be shown" in html and "gone: &lt;x&gt;.png" in html
    assert html.count("<img ") == 1 and html.count('loading="lazy"') == 1 and "prefers-color-scheme: dark" in html
    assert "nothing here" in html and "<li>&lt;n&gt;</li>" in html


def test_page_of_equal_predictions() -> None:
    rows = Rows.of([row("e1"), row("e2")])
    html = render_comparison(compare_rows(rows, rows, REFSEG, num=10), names=("a", "b"), facts={}, cards=[])
    assert "no expression on which the two differ in IoU" in html


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write data with three expressions on two images, and prediction files A and B. The second image has no file.

    A always answers with the left square. B finds the right square for both squares and rejects the third expression.
    """
    left, right = mask((2, 2, 10, 10)), mask((22, 22, 10, 10))
    to_json = lambda pixels: {"size": [40, 40], "counts": rle(pixels)["counts"].decode()}  # noqa: E731
    lines = [
        {"expression_id": "1", "image": "one.png", "text": "left <square>", "targets": [to_json(left)]},
        {"expression_id": "2", "image": "two.png", "text": "right square", "targets": [to_json(right)]},
        {"expression_id": "3", "image": "two.png", "text": "no circle", "targets": None},
    ]
    rows = [{**line, "size": [40, 40], "split": "val", "tags": {"skill": "position"}} for line in lines]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "one.png")
    write_predictions(
        tmp_path / "a.jsonl",
        [Answer("1", rle(left), 0.1), Answer("2", rle(left), 0.1), Answer("3", rle(left), 0.4)],
    )
    write_predictions(
        tmp_path / "b.jsonl",
        [Answer("3", rle(left), 0.6), Answer("2", rle(right), 0.1), Answer("1", rle(right), 0.1)],
    )
    return tmp_path


def test_command(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A has IoU 1, 0, 0 and B has 0, 1, 1, so gIoU is 33.33 and 66.67."""
    a, b, data = str(files / "a.jsonl"), str(files / "b.jsonl"), f"{files / 'data.jsonl'}:val"
    out, page = files / "out.json", files / "out.html"
    assert main(["compare", a, b, "--data", data, "--json", str(out), "--html", str(page), "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    assert "a on 1 expressions, b on 2" in printed and "+33.33" in printed
    result = json.loads(out.read_text())
    assert result["protocol"] == "refseg" and result["names"] == ["a", "b"] and result["expressions"] == 3
    assert result["metrics"]["gIoU"]["a"] == pytest.approx(100 / 3)
    assert result["metrics"]["N-acc"]["difference"] == 100.0
    assert result["by"]["skill"][0]["gIoU"] == pytest.approx([100 / 3, 200 / 3])
    assert result["disagreements"] == [
        {"expression_id": "1", "a": 1.0, "b": 0.0},
        {"expression_id": "2", "a": 0.0, "b": 1.0},
        {"expression_id": "3", "a": 0.0, "b": 1.0},
    ]
    html = page.read_text()
    assert html.count("<article") == 3 and "left &lt;square&gt;" in html and "2 of the images cannot be shown" in html
    assert html.count("<img ") == 9 and "b: nothing here" in html


def test_limit_and_names_options(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, data = str(files / "a.jsonl"), str(files / "b.jsonl"), f"{files / 'data.jsonl'}:val"
    page = files / "out.html"
    common = ["compare", a, b, "--data", data, "--resamples", "10"]
    assert main([*common, "--html", str(page), "--cases", "1", "--names", "old, new"]) == 0
    html = page.read_text()
    assert html.count("<article") == 1 and "1 of the 3 expressions" in html and "old against new" in html
    assert main([*common, "--names", "same,same"]) == 1 and "two different names" in capsys.readouterr().err
    assert main([*common, "--protocol", "gres,deris"]) == 1 and "one protocol" in capsys.readouterr().err
    assert main([*common, "--by", "lenght"]) == 1 and "did you mean length" in capsys.readouterr().err
    assert main(["compare", a, a, "--data", data, "--resamples", "10"]) == 0
    assert "A against B" in capsys.readouterr().out


def test_metrics_without_a_denominator(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One resample of two images. By seed it lacks the image with the expression without target, in which case N-acc
    has no interval."""
    a, b, data = str(files / "a.jsonl"), str(files / "b.jsonl"), f"{files / 'data.jsonl'}:val"
    for seed, drawn in ((11, False), (0, True)):
        common = ["compare", a, b, "--data", data, "--resamples", "1", "--seed", str(seed), "--by", ""]
        assert main([*common, "--json", str(files / "o.json")]) == 0
        metric = json.loads((files / "o.json").read_text(), parse_constant=pytest.fail)["metrics"]["N-acc"]
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("N-acc")]
        assert (metric["low"] is not None) == drawn and ("[" in line) == drawn


def test_invalid_options(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["compare", str(files / "a.jsonl"), str(files / "b.jsonl"), "--data", f"{files / 'data.jsonl'}:val"]
    for option, value in (("--seed", "-1"), ("--cases", "-1"), ("--resamples", "0"), ("--min-area", "x")):
        with pytest.raises(SystemExit):
            main([*common, option, value])
        assert f"{value!r} is not a whole number of at least" in capsys.readouterr().err
    assert main([*common, "--by", "length,"]) == 1 and "is not a list of names" in capsys.readouterr().err
    assert main([*common, "--by", "tag:skil"]) == 1 and "there are: skill" in capsys.readouterr().err
    assert main([*common, "--resamples", "9", "--by", "tag:skill"]) == 0 and "position" in capsys.readouterr().out


def test_box_protocol_without_masks(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A has the target's box, and B has no box. The page shows the two expressions with a target."""
    boxes = {"1": [2, 2, 10, 10, 0.9], "2": [22, 22, 10, 10, 0.9]}
    write_predictions(files / "a.jsonl", [Answer(n, None, boxes=[boxes[n]] if n in boxes else []) for n in "123"])
    write_predictions(files / "b.jsonl", [Answer(n, None, boxes=[]) for n in "123"])
    page = files / "out.html"
    call = ["compare", str(files / "a.jsonl"), str(files / "b.jsonl"), "--data", f"{files / 'data.jsonl'}:val"]
    assert main([*call, "--protocol", "grec", "--resamples", "9", "--html", str(page)]) == 0
    assert "match of boxes higher by 0.1 or more: a on 2 expressions, b on 0, neither on 1" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<article") == 2 and "a: match of boxes 1.00" in html and "b: match of boxes 0.00" in html


def test_partial_predictions(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B lacks two expressions. That is an error, or, with --allow-partial, only common expressions count."""
    write_predictions(files / "b.jsonl", [Answer("2", rle(mask((22, 22, 10, 10))), 0.1)])
    call = ["compare", str(files / "a.jsonl"), str(files / "b.jsonl"), "--data", f"{files / 'data.jsonl'}:val"]
    call += ["--resamples", "10"]
    assert main(call) == 1 and "2 expressions without a prediction" in capsys.readouterr().err
    assert main([*call, "--allow-partial"]) == 0
    printed = capsys.readouterr().out
    assert "by refseg: 1 expressions" in printed and "PARTIAL" in printed
