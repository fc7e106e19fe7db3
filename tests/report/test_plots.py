"""Curves from mmengine's scalars.json, and their SVG."""

import json
import math
import re
from xml.etree import ElementTree

import pytest

from refseg.report.plots import Curve, plot_svg, smooth
from refseg.report.report import training_plots
from refseg.report.work_dir import TrainingCurves, read_scalars, training_curves

# Rows as LocalVisBackend of mmengine 0.10.7 writes them, of a run that counts epochs (two iterations logged in each).
EPOCH_ROWS = [
    {"lr": 0.1, "data_time": 0.1, "loss": 3.0, "loss_mask": 2.0, "time": 0.1, "epoch": 1, "iter": 2, "step": 2},
    {"lr": 0.1, "data_time": 0.1, "loss": 2.0, "loss_mask": 1.0, "time": 0.1, "epoch": 1, "iter": 4, "step": 4},
    {"refseg/gIoU": 12.3, "data_time": 0.1, "time": 0.1, "step": 1},
    {"lr": 0.01, "loss": 1.0, "loss_mask": 0.5, "epoch": 2, "iter": 6, "step": 6},
    {"refseg/gIoU": 20.0, "step": 2},
]
ITERATION_ROWS = [
    {"lr": 0.1, "loss": 3.0, "iter": 2, "step": 2},
    {"refseg/gIoU": 12.3, "refseg/N_acc": 50, "time": 0.1, "step": 3},
    {"lr": 0.1, "loss": 2.0, "iter": 4, "step": 4},
]


def _write(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def test_validations_of_epochs_are_placed_at_iterations():
    curves = training_curves(EPOCH_ROWS)
    assert curves.metrics == (Curve("refseg/gIoU", (4, 6), (12.3, 20.0)),)
    assert curves.losses == (Curve("loss", (2, 4, 6), (3, 2, 1)), Curve("loss_mask", (2, 4, 6), (2, 1, 0.5)))
    assert curves.learning_rates == (Curve("lr", (2, 4, 6), (0.1, 0.1, 0.01)),)


def test_iterations_are_kept():
    curves = training_curves(ITERATION_ROWS)
    assert curves.metrics == (Curve("refseg/gIoU", (3,), (12.3,)), Curve("refseg/N_acc", (3,), (50,)))


@pytest.mark.parametrize("end", ["", "\n", '{"lr": 0.1, "lo', '{"lr": 0.1, "loss": 1.0, "st', "{", "12", "\x00\x00"])
def test_half_written_last_line_is_skipped(tmp_path, end, recwarn):
    assert read_scalars(_write(tmp_path / "scalars.json", EPOCH_ROWS, end)) == EPOCH_ROWS
    assert not recwarn


def test_warning_about_a_broken_line(tmp_path):
    path = tmp_path / "scalars.json"
    path.write_text('{"loss": 1, "iter": 1}\n{"los{"loss": 2, "iter": 3}\n{"loss": 3, "iter": 4}\n')
    with pytest.warns(UserWarning, match="line 2"):
        rows = read_scalars(path)
    assert [row["loss"] for row in rows] == [1, 3]


def test_empty_file_gives_no_curves(tmp_path):
    curves = training_curves(read_scalars(_write(tmp_path / "scalars.json", [])))
    assert curves.losses == curves.metrics == curves.learning_rates == ()
    assert training_plots(curves) == []


def test_resumed_run_overwrites_and_sorts():
    rows = [{"loss": 1.0, "iter": 10}, {"loss": 2.0, "iter": 20}, {"loss": 5.0, "iter": 10}]
    assert training_curves(rows).losses == (Curve("loss", (10, 20), (5.0, 2.0)),)


def test_repeated_validation_of_a_resumed_run():
    """The run died in epoch 3. Resumed, it began with the validation of epoch 2, which ended at iteration 20."""
    first = [{"loss": 1.0, "iter": 20, "epoch": 2}, {"gIoU": 7.0, "step": 2}, {"loss": 1.0, "iter": 25, "epoch": 3}]
    second = [{"gIoU": 7.0, "step": 2}, {"loss": 1.0, "iter": 30, "epoch": 3}, {"gIoU": 9.0, "step": 3}]
    assert training_curves([*first, *second]).metrics == (Curve("gIoU", (20, 30), (7.0, 9.0)),)


def test_validations_within_an_epoch():
    """Their steps are iterations, and stay where they are."""
    rows = [{"loss": 1.0, "iter": 10, "epoch": 1}, {"gIoU": 7.0, "step": 10}, {"loss": 1.0, "iter": 20, "epoch": 1}]
    assert training_curves([*rows, {"gIoU": 9.0, "step": 25}]).metrics == (Curve("gIoU", (10, 25), (7.0, 9.0)),)


def test_losses_of_single_layers_are_not_drawn():
    """The total loss comes first."""
    names = ["decode.d0.loss_mask", "d1.loss_dice", "loss_mask", "loss", "aux_head.loss"]
    (plot,) = training_plots(TrainingCurves(losses=tuple(Curve(name, (1,), (1.0,)) for name in names)))
    assert re.findall(r"([\w.]*loss[\w.]*) from", plot) == ["loss", "loss_mask"]


def test_smooth_by_hand():
    """Weight 0.5: 4, then (4/4 + 1/2) / (3/4) = 2. NaN stays. Then (4/8 + 1/4 + 9/2) / (7/8) = 6."""
    smoothed = smooth(Curve("a", (1, 2, 3, 4), (4.0, 1.0, math.nan, 9.0)), 0.5)
    assert smoothed.values[:2] == pytest.approx((4.0, 2.0)) and math.isnan(smoothed.values[2])
    assert smoothed.values[3] == pytest.approx(6.0)
    assert smooth(smoothed, 0.0).values[:2] == smoothed.values[:2]


def test_large_and_small_values_have_short_labels():
    texts = _texts(plot_svg([Curve("lr", (0, 12000, 60000), (0.0, 0.00005, 0.0001))], title="t"))
    assert {"10k", "60k", "0.0001"} <= set(texts)


def _texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [Curve("none", (), ())],
        [Curve("one", (5,), (1.0,))],
        [Curve("flat", (1, 2), (0.0, 0.0))],
        [Curve("nan", (1, 2, 3), (math.nan, math.inf, math.nan))],
        [Curve("gap", (1, 2, 3), (1.0, math.nan, 2.0))],
        [Curve(f"line {number}", (1, 2), (1.0, 2.0)) for number in range(9)],
        [Curve("long", tuple(range(5000)), tuple(map(float, range(5000))))],
        [Curve("<b>&\"'", (1, 2), (1e-9, 1e9))],
        [
            Curve('$\\frac{$ \x00\ud800 font-family: x; id="y" \u4e2d', (1, 2), (1.0, 2.0)),
            Curve("_hidden", (1, 2), (2.0, 1.0)),
        ],
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_svg_is_well_formed(curves, smoothing):
    text = plot_svg(curves, title="<title> & more", smoothing=smoothing)
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"].startswith("<title> & more")
    assert "nan" not in "".join(path.attrib.get("d", "") for path in root.iter("{http://www.w3.org/2000/svg}path"))
    assert len(text) < 60_000


def test_gaps_break_the_line_and_points_have_tooltips():
    text = plot_svg([Curve("gIoU", (1, 2, 3, 4, 5), (1.0, 1.5, math.nan, 2.0, 3.0))], title="t")
    root = ElementTree.fromstring(text)
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["gIoU: 1 at 1", "gIoU: 1.5 at 2", "gIoU: 2 at 4", "gIoU: 3 at 5"]
    lines = [
        path.attrib["d"]
        for path in root.iter("{http://www.w3.org/2000/svg}path")
        if "var(--line-0" in path.attrib["style"] and "clip-path" in path.attrib
    ]
    assert len(lines) == 1 and lines[0].count("M") == 2


def test_same_plot_twice_for_any_title():
    for title in ("none", "\ud800\x00", "x" * 5000):
        first, second = (plot_svg([Curve(title, (1, 2), (1.0, 2.0))], title=title) for _ in range(2))
        assert first == second and first.encode("utf-8")
        ElementTree.fromstring(first)


def test_tooltips_are_at_the_points():
    """Each transparent circle is where matplotlib drew the marker of the same point."""
    root = ElementTree.fromstring(plot_svg([Curve("a", (1, 2, 3), (1.0, 5.0, 2.0))], title="t"))
    circles = [(c.attrib["cx"], c.attrib["cy"]) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    markers = [
        (f"{float(u.attrib['x']):.1f}", f"{float(u.attrib['y']):.1f}")
        for u in root.iter("{http://www.w3.org/2000/svg}use")
        if "var(--line-0" in u.attrib["style"]
    ]
    assert len(circles) == 3 and circles == markers[:3]


def test_colors_and_ids_fit_any_page():
    """Text has the page's color, and lines have a variable. Unused ids, style sheets and addresses are removed."""
    text = plot_svg([Curve("a", (1, 2), (1.0, 2.0))], title="t")
    assert "currentColor" in text and "var(--line-0, #0072b2)" in text and "#010203" not in text
    assert "<style" not in text and "<?xml" not in text and "#ffffff" not in text
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    ids = {node.attrib["id"] for node in ElementTree.fromstring(text).iter() if "id" in node.attrib}
    assert ids and all(f"#{name}" in text for name in ids)
    assert text == plot_svg([Curve("a", (1, 2), (1.0, 2.0))], title="t")


def test_lines_without_a_style_are_counted():
    text = plot_svg([Curve(f"line {number}", (1, 2), (1.0, 2.0)) for number in range(10)], title="t")
    assert "and 3 more, not drawn" in text


def test_other_training_values_are_not_validation_metrics():
    """grad_norm has its own plot. A count that is always 0 has none. The first eight of many are drawn."""
    rows = [{**row, "grad_norm": 3.0, "num_nonfinite": 0.0} if "iter" in row else row for row in ITERATION_ROWS]
    curves = training_curves(rows)
    assert [curve.name for curve in curves.metrics] == ["refseg/gIoU", "refseg/N_acc"]
    assert curves.others == (Curve("grad_norm", (2, 4), (3, 3)), Curve("num_nonfinite", (2, 4), (0, 0)))
    plots = training_plots(curves)
    assert len(plots) == 4 and "grad_norm" in plots[-1] and not any("num_nonfinite" in plot for plot in plots)
    many = TrainingCurves(others=tuple(Curve(f"x{i}", (1, 2), (1, 2)) for i in range(20)))
    assert len(training_plots(many)) == 8
