"""The report of one run: every section is a function from data to HTML, made of the pieces of
`refseg.report.page`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refseg.files import write_atomically
from refseg.report.curves import TrainingCurves, training_plots
from refseg.report.examples import RIGHT_IOU, Example, example_pictures
from refseg.report.page import (
    bullets,
    card,
    cell,
    facts,
    figure,
    fold,
    gallery,
    headline,
    interval,
    page,
    plots,
    soft,
    table,
    titled_tables,
)
from refseg.report.phrases import numbered, numbered_html, phrase_html
from refseg.report.plots import Curve, plot_svg
from refseg.report.text import markup_text as _text
from refseg.visualization.instances import own_phrases
from refseg.visualization.overlay import EMPTY_MASK, NOTHING_HERE

DATA_KEYS = ("data set", "split")  # what `summary` must name beside results: no number stands without them
NUM_CARDS = 6
NUM_UNFOLDED = 6  # cases of a group that are there at once
MOST_BYTES = 12 * 2**20  # of the pictures of all cases, as they stand in the file
HEADINGS = {"several": "several targets"}  # of groups whose name is no heading

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """`results`: one per protocol, as `refseg score --json` has them ("protocol", "metrics", and where they are known
    "intervals", "by"); the first is the headline, and what everything else is by. `summary` names the data set and the
    split that results are of. `no_target`: as `analysis.calibration` has it; `hits`, `instances`: as `analysis.objects`
    has them; `probes`: as `refseg probe --json` has them. `notes`: what a reader must know to use
    the numbers. `missing`: why there are no results, and commands that make them.
    """

    title: str
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

    @property
    def source(self) -> str:
        """What every number is by: "protocol ..., data set ..., split ..."."""
        absent = [key for key in DATA_KEYS if not str(self.summary.get(key, "")).strip()]
        if absent:
            raise ValueError(f"the report's summary must name {absent}: a number means nothing without its data")
        return self.source_of(self.results[0])

    def source_of(self, result: Mapping[str, Any]) -> str:
        named = {"protocol": result["protocol"], **{key: self.summary[key] for key in DATA_KEYS}}
        return " \u00b7 ".join(f"{key}: {value}" for key, value in named.items())


def write_report(path: str | Path, report: Report) -> None:
    """An existing file is replaced in one step, so no reader sees half of it."""
    write_atomically(path, render_report(report))


def render_report(report: Report) -> str:
    source = report.source if report.results else ""
    sections = {
        "Summary": summary_section(report, source),
        "Metrics": metrics_section(report),
        "Breakdowns": breakdowns_section(report.results, source),
        "Objects hit": hits_section(report.hits, source),
        "Nothing here": no_target_section(report.no_target, source),
        "Scores of instances": instances_section(report.instances),
        "Probes": probes_section(report.probes),
        "Curves": plots(training_plots(report.curves)) if report.curves else "",
        "Cases": cases_section(report.cases),
        "Environment and config": environment_section(report.environment, report.config_text),
    }
    return page(report.title, sections)


# Numbers --------------------------------------------------------------------------------------------------------------


def summary_section(report: Report, source: str) -> str:
    told = facts({key: value for key, value in report.summary.items() if not source or key not in DATA_KEYS})
    if not report.results:
        return f"<p>There are no scores in this report.</p><pre><code>{_text(report.missing)}</code></pre>{told}"
    metrics = report.results[0]["metrics"]
    return headline(dict(list(metrics.items())[:NUM_CARDS])) + soft(f"By {source}") + told + bullets(report.notes)


def metrics_section(report: Report) -> str:
    """A table per protocol."""
    tables = {}
    for result in report.results:
        details, resampled = result.get("details", {}), result.get("bootstrap")
        told = [report.source_of(result), details.get("title", "")]
        told.append(f"intervals from {resampled['resamples']:,} resamples of images" if resampled else "")
        caption = " \u00b7 ".join(filter(None, told))
        tables[f"by protocol {result['protocol']}"] = (metric_lines(result), caption)
    parts = [
        f"<div><h3>{_text(name)}</h3>{table(lines, caption=caption) if lines else soft('No metrics.')}</div>"
        for name, (lines, caption) in tables.items()
    ]
    return f'<div class="tables">{"".join(parts)}</div>' if parts else ""


_INTERVAL = "95 % interval"


def metric_lines(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    intervals = result.get("intervals")
    return [
        {"metric": name, "value": value} | ({} if intervals is None else {_INTERVAL: interval(intervals.get(name))})
        for name, value in result["metrics"].items()
    ]


def breakdowns_section(results: Sequence[Mapping[str, Any]], source: str) -> str:
    groups = results[0].get("by", {}) if results else {}
    tables = {f"by {name}": [_with_interval(line) for line in lines] for name, lines in groups.items()}
    return titled_tables(tables, caption=source)


def _with_interval(line: Mapping[str, Any]) -> dict[str, Any]:
    """An interval stands behind the metric that it is of."""
    found = line.get("interval")
    out: dict[str, Any] = {}
    for name, value in line.items():
        if name != "interval":
            out[name] = value
        if found is not None and name == found["of"]:
            out[_INTERVAL] = interval(found["ends"])
    return out


def hits_section(hits: Mapping[str, Lines] | None, source: str) -> str:
    if not hits or not any(hits.values()):
        return ""
    told = soft(
        "Which of the image's annotated objects an answer hits: those of which it covers at least half of the pixels. "
        "What nobody annotated cannot be hit. The last column is the mean, from 0 to 1, of what the protocol gives "
        "these answers."
    )
    return told + titled_tables({f"Expressions {name}": lines for name, lines in hits.items()}, caption=source)


def no_target_section(report: Mapping[str, Any] | None, source: str) -> str:
    """Confusion, and where the predictions have a probability of "nothing here", what it is worth."""
    if report is None:
        return ""
    confusion, found, curve = report["confusion"], report["calibration"], report["curve"]
    tables = {
        "Target against rejection": [
            {"expressions": name, "count": count} for name, count in confusion["counts"].items()
        ],
        "Rates, in percent": [{"rate": name, "value": value} for name, value in confusion["rates"].items()],
        "Rejected, by number of targets, in percent": confusion["by_targets"],
    }
    parts = [titled_tables(tables, caption=source)]
    if found is None:
        return parts[0] + soft("The predictions have no probability of \u201cnothing here\u201d to calibrate.")
    parts.append(facts({name: found[name] for name in ("AUROC", "Brier", "ECE", "expressions", "no_target")}))
    svgs = [
        reliability_plot(found["reliability"], title="Reliability of \u201cnothing here\u201d", share="no target"),
        threshold_plot(curve) if curve else "",
    ]
    parts.append(plots([svg for svg in svgs if svg]))
    parts.append(soft("Rejected: the probability exceeds the threshold. A threshold chosen here is not one to report."))
    bins = table(_bins(found["reliability"]), caption="Bins of the probability of \u201cnothing here\u201d")
    return "".join(parts) + fold("Bins", bins)


def reliability_plot(lines: Lines, *, title: str, share: str) -> str:
    """Probability against the share that it stands for: a calibrated one lies on the diagonal."""
    points = [line["probability"] for line in lines], [line["share"] for line in lines]
    curves = [Curve(f"share: {share}", *map(tuple, points)), Curve("calibrated", (0.0, 1.0), (0.0, 1.0))]
    return plot_svg(curves, title=title, x_label="mean probability of the bin")


def threshold_plot(lines: Lines) -> str:
    names = [name for name in lines[0] if name != "threshold"]
    steps = tuple(line["threshold"] for line in lines)
    curves = [Curve(name, steps, tuple(line[name] for line in lines)) for name in names]
    return plot_svg(curves, title="Metrics over the threshold of \u201cnothing here\u201d", x_label="threshold")


def _bins(lines: Lines) -> list[dict[str, Any]]:
    return [{"bin": f"{line['low']:.2f} to {line['high']:.2f}", **_without(line, ("low", "high"))} for line in lines]


def _without(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


def instances_section(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    told = soft(
        "Scores of predicted instances as probabilities that the instance is one of the referents (one to one, IoU of "
        "at least 0.5), over the expressions with a target."
    )
    plot = reliability_plot(found["reliability"], title="Reliability of instance scores", share="a referent")
    bins = table(_bins(found["reliability"]), caption="Bins of the score")
    return told + facts(_without(found, ("reliability",))) + plots([plot]) + fold("Bins", bins)


def probes_section(probes: Mapping[str, Any] | None) -> str:
    """A table by kind, and pairs that were answered alike though they mean something else."""
    if probes is None:
        return ""
    data, same = probes["data"], probes["same_iou"]
    told = soft(
        f"One thing of a phrase is changed, by {probes['by']}; the answer should change too. Right: IoU at least "
        f"{RIGHT_IOU:g}, or nothing where the phrase refers to nothing. Same answer: the two answers have an IoU of at "
        f"least {same:g}. \u201cRight\u201d of changed phrases is of those whose truth is known."
    )
    lines = [
        {
            "probe": line["kind"],
            "pairs": line["pairs"],
            "truth known": line["known"],
            **{
                name: None if value is None else f"{value:.1f} {interval(line['intervals'].get(name), digits=1)}"
                for name, value in line["metrics"].items()
            },
        }
        for line in probes["probes"]
    ]
    split = ", ".join(data["split"] or ["all"])
    caption = f"percent, with 95 % intervals \u00b7 data set: {data['set']} \u00b7 split: {split}"
    alike = [pair for pair in probes["pairs"] if pair["iou"] >= same]
    pairs = [
        {
            "probe": pair["kind"],
            "phrase": pair["text"],
            "changed": pair["changed"],
            "right": _yes(pair["right"]),
            "changed right": _yes(pair["changed_right"]),
        }
        for pair in alike
    ]
    shown = table(pairs, caption="the two answers are the same") if pairs else ""
    return told + table(lines, caption=caption) + fold(f"{len(alike):,} pairs with the same answer", shown)


def _yes(value: bool | None) -> str:
    return "\u2013" if value is None else "yes" if value else "no"


# Cases ----------------------------------------------------------------------------------------------------------------


def cases_section(cases: Sequence[Example]) -> str:
    """The gallery, by group in the order of the cases: some at once, the others behind a click. The groups share
    MOST_BYTES."""
    groups: dict[str, list[Example]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    if not groups:
        return ""
    parts = [
        soft(
            "Examples, not a score. A picture shows what the mask picks in its own colours, and fades the rest. "
            f"\u201cRight\u201d: IoU at least {RIGHT_IOU:g}; without a target: that nothing was picked."
        )
    ]
    if any(case.shown_instances for case in cases):
        parts.append(
            soft(
                "Outlines with numbers are the objects that the model means. The bars and numbers under a word tell "
                "the objects that it belongs to."
            )
        )
    for group, members in groups.items():
        name = HEADINGS.get(group, group)
        cards = _cards(members, MOST_BYTES // len(groups))
        left_out = len(members) - len(cards)
        parts.append(f"<h3>{_text(f'{name[:1].upper()}{name[1:]} ({len(cards)})')}</h3>{gallery(cards[:NUM_UNFOLDED])}")
        parts.append(
            fold(f"{len(cards) - NUM_UNFOLDED} more", gallery(cards[NUM_UNFOLDED:]) if cards[NUM_UNFOLDED:] else "")
        )
        parts.append(soft(f"{left_out} more are left out, to keep the file small.") if left_out else "")
    return "\n".join(parts)


def _cards(cases: Sequence[Example], most_bytes: int) -> list[str]:
    """The cards of the first cases, as many as fit."""
    cards, size = [], 0
    for case in cases:
        html = case_card(case)
        size += len(html)
        if size > most_bytes:
            break
        cards.append(html)
    return cards


def case_card(case: Example) -> str:
    """One case: phrase, prediction beside ground truth, verdict in words, tags."""
    pictures = example_pictures(case)
    mark = (
        '<span class="mark right">\u2713 right</span>' if case.right else '<span class="mark wrong">\u2717 wrong</span>'
    )
    tags = "".join(f" \u00b7 {key}: {cell(value)}" for key, value in case.tags.items())
    answer = NOTHING_HERE if case.rejected else EMPTY_MASK if case.answers_nothing else _area(case.predicted)
    goal = NOTHING_HERE if case.no_target else _area(case.ground_truth)
    iou = "\u2013" if math.isnan(case.iou) else f"{case.iou:.2f}"
    phrases = own_phrases(case.text, [one.words for one in case.shown_instances])
    scores = [instance.score for instance in case.shown_instances]
    objects = f'<p class="objects">{numbered_html(phrases, scores)}</p>' if phrases else ""
    answer = f"{answer}; {numbered(phrases, scores)}" if phrases else answer
    figures = [
        figure(picture, label=name, alt=f"{name} for \u201c{case.text}\u201d: {content}")
        for picture, name, content in zip(pictures, ("Prediction", "Ground truth"), (answer, goal), strict=True)
    ]
    return card(
        phrase_html=phrase_html(case.text, case.owners),
        figures=figures,
        lines_html=[objects, f"<p>{mark}, IoU {iou}</p>"],
        tags=f"expression {case.expression_id}{tags}",
    )


def environment_section(environment: Mapping[str, Any], config_text: str) -> str:
    config = f"<pre><code>{_text(config_text)}</code></pre>" if config_text else ""
    return fold("Environment", facts(environment)) + fold("Config", config)


def _area(mask: np.ndarray) -> str:
    share = mask.mean()
    return f"{share:.0%} of the image" if share >= 0.01 else "under 1% of the image"
