"""The report of one run. This module prepares the data of each section; `templates/report.html` lays them out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refseg.report.examples import RIGHT_IOU, Example, example_pictures
from refseg.report.page import figure_of, format_cell, format_interval, numbered_html, phrase_html, render
from refseg.report.plots import Curve, plot_svg
from refseg.report.work_dir import TrainingCurves
from refseg.visualization.overlay import EMPTY_MASK, NOTHING_HERE
from refseg.visualization.word_bars import instance_phrases

DATA_KEYS = ("data set", "split")  # facts that `summary` must name: no number stands without its data
NUM_CARDS = 6  # metrics in large type
NUM_UNFOLDED = 6  # examples of a group that are visible at once
MAX_PICTURE_BYTES = 12 * 2**20  # all pictures together, as encoded in the file
HEADINGS = {"several": "several targets"}  # headings of groups whose name does not explain itself
_INTERVAL = "95 % interval"
_MAX_OTHER_PLOTS = 8
_AUXILIARY_LOSS = re.compile(r"(^|[./_])(d\d+|aux\w*)[./]")  # losses of single decoder layers: too many to draw

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """Contents of a report. Parts that are None or empty have no section.

    Args:
        title: Heading of the page.
        summary: Facts by name. Beside results, they must name the data set and the split.
        results: One per protocol, as `refseg score --json` writes them ("protocol", "metrics", and where known
            "intervals" and "by"). The first one is the headline, and the one that all other sections are by.
        no_target: Output of `analysis.calibration.no_target_report`.
        hits: Output of `analysis.objects.ObjectTable.hits`.
        instances: Output of `analysis.objects.ObjectTable.calibration`.
        probes: Output of `refseg probe --json`.
        curves: Training curves.
        cases: Examples with their pictures.
        notes: Facts that a reader must know to use the numbers.
        missing: Reason for the absence of results, with the commands that make them.
        environment: Versions and hardware, by name.
        config_text: The config of the run.
    """

    title: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    no_target: Mapping[str, Any] | None = None
    hits: Mapping[str, Lines] | None = None
    instances: Mapping[str, Any] | None = None
    probes: Mapping[str, Any] | None = None
    curves: TrainingCurves | None = None
    cases: Sequence[Example] = ()
    notes: Sequence[str] = ()
    missing: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""

    def source_of(self, result: Mapping[str, Any]) -> str:
        """Name the source of a result's numbers: "protocol: ... · data set: ... · split: ..."."""
        absent = [key for key in DATA_KEYS if not str(self.summary.get(key, "")).strip()]
        if absent:
            raise ValueError(f"The report's summary lacks {absent}: numbers mean nothing without their data.")
        named = {"protocol": result["protocol"], **{key: self.summary[key] for key in DATA_KEYS}}
        return " \u00b7 ".join(f"{key}: {value}" for key, value in named.items())


def render_report(report: Report) -> str:
    """Render the report as one HTML page."""
    first = report.results[0] if report.results else None
    hidden = DATA_KEYS if first else ()  # the source line names them
    return render(
        "report.html",
        title=report.title,
        report=report,
        source=report.source_of(first) if first else "",
        headline=dict(list(first["metrics"].items())[:NUM_CARDS]) if first else {},
        summary={key: value for key, value in report.summary.items() if key not in hidden},
        metrics=[metrics_table(report, result) for result in report.results],
        breakdowns={
            f"by {name}": [_with_interval(line) for line in lines]
            for name, lines in (first.get("by", {}) if first else {}).items()
        },
        hits={f"Expressions {name}": lines for name, lines in (report.hits or {}).items()},
        no_target=no_target_section(report.no_target) if report.no_target else None,
        instances=instances_section(report.instances) if report.instances else None,
        probes=probes_section(report.probes) if report.probes else None,
        training_plots=training_plots(report.curves) if report.curves else [],
        groups=example_groups(report.cases),
        num_unfolded=NUM_UNFOLDED,
        right_iou=RIGHT_IOU,
        has_instances=any(case.shown_instances for case in report.cases),
    )


# Numbers --------------------------------------------------------------------------------------------------------------


def metrics_table(report: Report, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one protocol, with their intervals where they have been computed."""
    intervals, resampled = result.get("intervals"), result.get("bootstrap")
    rows = [{"metric": name, "value": value} for name, value in result["metrics"].items()]
    if intervals is not None:
        rows = [row | {_INTERVAL: format_interval(intervals.get(row["metric"]))} for row in rows]
    caption = [report.source_of(result), result.get("details", {}).get("title", "")]
    caption.append(f"intervals from {resampled['resamples']:,} resamples of images" if resampled else "")
    return {"protocol": result["protocol"], "rows": rows, "caption": " \u00b7 ".join(filter(None, caption))}


def _with_interval(line: Mapping[str, Any]) -> dict[str, Any]:
    """Put the interval of a line behind its metric."""
    interval = line.get("interval")
    out: dict[str, Any] = {}
    for name, value in line.items():
        if name != "interval":
            out[name] = value
        if interval is not None and name == interval["of"]:
            out[_INTERVAL] = format_interval(interval["ends"])
    return out


def no_target_section(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the confusion of targets and rejections, and the calibration of no-target probabilities if there are
    any."""
    confusion, calibration, curve = report["confusion"], report["calibration"], report["curve"]
    tables = {
        "Target against rejection": [
            {"expressions": name, "count": count} for name, count in confusion["counts"].items()
        ],
        "Rates, in percent": [{"rate": name, "value": value} for name, value in confusion["rates"].items()],
        "Rejected, by number of targets, in percent": confusion["by_targets"],
    }
    section: dict[str, Any] = {"tables": tables, "calibration": calibration}
    if calibration is not None:
        facts = ("AUROC", "Brier", "ECE", "AURC", "expressions", "no_target")
        section["facts"] = {name: calibration[name] for name in facts}
        title = "Reliability of \u201cnothing here\u201d"
        section |= _reliability(calibration["reliability"], title=title, share="no target")
        kept, risks = (tuple(line[name] for line in calibration["risk_coverage"]) for name in ("coverage", "risk"))
        title = "Share of wrong decisions among the surest ones"
        section["plots"].append(plot_svg([Curve("risk", kept, risks)], title=title, x_label="share of the decisions"))
        if curve:
            steps = tuple(line["threshold"] for line in curve)
            names = [name for name in curve[0] if name != "threshold"]
            curves = [Curve(name, steps, tuple(line[name] for line in curve)) for name in names]
            title = "Metrics over the threshold of \u201cnothing here\u201d"
            section["plots"].append(plot_svg(curves, title=title, x_label="threshold"))
    return section


def instances_section(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the calibration of the scores of predicted instances."""
    facts = {name: value for name, value in calibration.items() if name != "reliability"}
    title = "Reliability of instance scores"
    return {"facts": facts} | _reliability(calibration["reliability"], title=title, share="a referent")


def _reliability(lines: Lines, *, title: str, share: str) -> dict[str, Any]:
    """Plot the predicted probability of each bin against the measured share, and return the plot and a table.

    Calibrated bins lie on the diagonal.
    """
    probabilities, shares = (tuple(line[key] for line in lines) for key in ("probability", "share"))
    curves = [Curve(f"share: {share}", probabilities, shares), Curve("calibrated", (0.0, 1.0), (0.0, 1.0))]
    bins = [
        {"bin": f"{line['low']:.2f} to {line['high']:.2f}"}
        | {name: value for name, value in line.items() if name not in ("low", "high")}
        for line in lines
    ]
    return {"plots": [plot_svg(curves, title=title, x_label="mean probability of the bin")], "bins": bins}


def probes_section(probes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the kinds of probes, and the pairs with the same answer although they differ in meaning."""
    data, same_iou = probes["data"], probes["same_iou"]
    rows = [
        {"probe": line["kind"], "pairs": line["pairs"], "truth known": line["known"]}
        | {
            name: None if value is None else f"{value:.1f} {format_interval(line['intervals'].get(name), digits=1)}"
            for name, value in line["metrics"].items()
        }
        for line in probes["probes"]
    ]
    words = {None: "\u2013", True: "yes", False: "no"}
    same_answers = [
        {
            "probe": pair["kind"],
            "phrase": pair["text"],
            "changed": pair["changed"],
            "right": words[pair["right"]],
            "changed right": words[pair["changed_right"]],
        }
        for pair in probes["pairs"]
        if pair["iou"] >= same_iou
    ]
    source = f"data set: {data['set']} \u00b7 split: {', '.join(data['split'] or ['all'])}"
    return {"by": probes["by"], "same_iou": same_iou, "rows": rows, "source": source, "same_answers": same_answers}


def training_plots(curves: TrainingCurves) -> list[str]:
    """Plot a training as SVG elements. Values that were not logged have no plot.

    There are the losses (smoothed; the total first, and none of single decoder layers), validation metrics, learning
    rates, and the first other values that are not always 0.
    """
    losses = [curve for curve in curves.losses if not _AUXILIARY_LOSS.search(curve.name)]
    losses.sort(key=lambda curve: curve.name != "loss")
    others = [curve for curve in curves.others if any(curve.values)][:_MAX_OTHER_PLOTS]
    plots = [
        ("Train loss (smoothed; the raw line is pale)", losses, 0.8),
        ("Validation metrics", curves.metrics, 0.0),
        ("Learning rate", curves.learning_rates, 0.0),
        *((curve.name, [curve], 0.0) for curve in others),
    ]
    return [plot_svg(lines, title=title, smoothing=smoothing) for title, lines, smoothing in plots if lines]


# Examples -------------------------------------------------------------------------------------------------------------


def example_groups(cases: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the cards of each group, in order of first appearance. The groups share MAX_PICTURE_BYTES equally."""
    groups: dict[str, list[Example]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    prepared = []
    for name, members in groups.items():
        cards: list[dict[str, Any]] = []
        room = MAX_PICTURE_BYTES // len(groups)
        for case in members:
            card = example_card(case)
            room -= sum(len(picture["uri"]) for picture in card["pictures"])
            if room < 0:
                break
            cards.append(card)
        heading = HEADINGS.get(name, name)
        prepared.append(
            {
                "heading": f"{heading[:1].upper()}{heading[1:]} ({len(cards)})",
                "cards": cards,
                "num_left_out": len(members) - len(cards),
            }
        )
    return prepared


def example_card(case: Example) -> dict[str, Any]:
    """Return the contents of one card: phrase, prediction beside ground truth, verdict in words, and tags."""
    phrases = instance_phrases(case.text, [one.words for one in case.shown_instances])
    objects = numbered_html(phrases, [one.score for one in case.shown_instances])
    # Descriptions of the pictures
    answer = NOTHING_HERE if case.rejected else EMPTY_MASK if case.answers_nothing else _area(case.predicted)
    answer += f"; {objects.striptags()}" if objects else ""
    goal = NOTHING_HERE if case.no_target else _area(case.ground_truth)
    contents = zip(example_pictures(case), ("Prediction", "Ground truth"), (answer, goal), strict=True)
    tags = [f"expression {case.expression_id}", *(f"{key}: {format_cell(value)}" for key, value in case.tags.items())]
    return {
        "phrase": phrase_html(case.text, case.owners),
        "pictures": [
            figure_of(picture, label=name, alt=f"{name} for \u201c{case.text}\u201d: {content}")
            for picture, name, content in contents
        ],
        "objects": objects,
        "right": case.right,
        "iou": "\u2013" if math.isnan(case.iou) else f"{case.iou:.2f}",
        "tags": " \u00b7 ".join(tags),
    }


def _area(mask: np.ndarray) -> str:
    share = mask.mean()
    return f"{share:.0%} of the image" if share >= 0.01 else "under 1% of the image"
