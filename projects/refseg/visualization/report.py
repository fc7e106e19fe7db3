"""The report of one run: every section is a function from data to HTML, made of the pieces of
`refseg.visualization.page`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from refseg.files import write_atomically
from refseg.visualization.cases import RIGHT_IOU, Case, case_pictures
from refseg.visualization.curves import TrainingCurves, training_plots
from refseg.visualization.glosses import Owners, bars, numbers
from refseg.visualization.instances import INSTANCE_COLOURS, own_phrases
from refseg.visualization.overlay import EMPTY_MASK, NOTHING_HERE
from refseg.visualization.page import (
    card,
    cell,
    facts,
    figure,
    fold,
    gallery,
    headline,
    page,
    plots,
    soft,
    table,
    titled_tables,
)
from refseg.visualization.text import markup_text as _text

PROTOCOL_KEYS = ("protocol", "data set", "split")  # what `summary` must name: no number stands without them
NUM_CARDS = 6
HEADINGS = {"several": "several targets"}  # of groups whose name is no heading


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, str],
    metrics: Mapping[str, float],
    breakdowns: Mapping[str, Sequence[Mapping[str, Any]]],
    curves: TrainingCurves | None,
    cases: Sequence[Case],
    environment: Mapping[str, Any],
    config_text: str,
) -> None:
    """Writes the report. `summary` names at least the protocol, the data set and the split that the metrics are by;
    the first metrics become the headline. An existing file is replaced in one step, so no reader sees half of it."""
    html = render_report(
        title=title,
        summary=summary,
        metrics=metrics,
        breakdowns=breakdowns,
        curves=curves,
        cases=cases,
        environment=environment,
        config_text=config_text,
    )
    write_atomically(path, html)


def render_report(
    *,
    title: str,
    summary: Mapping[str, str],
    metrics: Mapping[str, float],
    breakdowns: Mapping[str, Sequence[Mapping[str, Any]]],
    curves: TrainingCurves | None,
    cases: Sequence[Case],
    environment: Mapping[str, Any],
    config_text: str,
) -> str:
    """The report's HTML. The arguments are those of `write_report`."""
    protocol = protocol_line(summary)
    sections = {
        "Summary": summary_section(summary, metrics, protocol),
        "Metrics": metrics_section(metrics, protocol),
        "Breakdowns": titled_tables(breakdowns, caption=protocol),
        "Curves": curves_section(curves),
        "Cases": cases_section(cases),
        "Environment and config": environment_section(environment, config_text),
    }
    return page(title, sections)


# Sections -------------------------------------------------------------------------------------------------------------


def protocol_line(summary: Mapping[str, str]) -> str:
    """What every number is by: "protocol ..., data set ..., split ..."."""
    missing = [key for key in PROTOCOL_KEYS if not str(summary.get(key, "")).strip()]
    if missing:
        raise ValueError(f"the report's summary must name {missing}: a number means nothing without its protocol")
    return " \u00b7 ".join(f"{key}: {summary[key]}" for key in PROTOCOL_KEYS)


def summary_section(summary: Mapping[str, str], metrics: Mapping[str, float], protocol: str) -> str:
    others = {key: value for key, value in summary.items() if key not in PROTOCOL_KEYS}
    return headline(dict(list(metrics.items())[:NUM_CARDS])) + soft(f"By {protocol}") + facts(others)


def metrics_section(metrics: Mapping[str, float], protocol: str) -> str:
    rows = [{"metric": name, "value": value} for name, value in metrics.items()]
    return table(rows, caption=protocol) if rows else soft("No metrics.")


def curves_section(curves: TrainingCurves | None) -> str:
    return plots(training_plots(curves)) if curves else ""


def cases_section(cases: Sequence[Case]) -> str:
    """The gallery, by group in the order of the cases."""
    groups: dict[str, list[Case]] = {}
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
        heading = f"{name[:1].upper()}{name[1:]} ({len(members)})"
        parts.append(f"<h3>{_text(heading)}</h3>{gallery(map(case_card, members))}")
    return "\n".join(parts)


def case_card(case: Case) -> str:
    """One case: phrase, prediction beside ground truth, verdict in words, tags."""
    pictures = case_pictures(case)
    mark = (
        '<span class="mark right">\u2713 right</span>' if case.right else '<span class="mark wrong">\u2717 wrong</span>'
    )
    tags = "".join(f" \u00b7 {key}: {cell(value)}" for key, value in case.tags.items())
    answer = NOTHING_HERE if case.rejected else EMPTY_MASK if case.answers_nothing else _area(case.predicted)
    goal = NOTHING_HERE if case.no_target else _area(case.ground_truth)
    iou = "\u2013" if math.isnan(case.iou) else f"{case.iou:.2f}"
    phrases = own_phrases(case.text, case.shown_instances)
    scores = [f" ({instance.score:.2f})" for instance in case.shown_instances]
    shown = [f"<bdi>{_text(phrase)}</bdi>" if phrase else "" for phrase in phrases]
    objects = f'<p class="objects">{_numbered(shown, scores)}</p>' if phrases else ""
    answer = f"{answer}; {_numbered(phrases, scores)}" if phrases else answer
    figures = [
        figure(picture, label=name, alt=f"{name} for \u201c{case.text}\u201d: {content}")
        for picture, name, content in zip(pictures, ("Prediction", "Ground truth"), (answer, goal), strict=True)
    ]
    return card(
        phrase_html=_phrase(case.text, case.owners),
        figures=figures,
        lines_html=[objects, f"<p>{mark}, IoU {iou}</p>"],
        tags=f"expression {case.expression_id}{tags}",
    )


def environment_section(environment: Mapping[str, Any], config_text: str) -> str:
    config = f"<pre><code>{_text(config_text)}</code></pre>" if config_text else ""
    return fold("Environment", facts(environment)) + fold("Config", config)


# Words of a case -----------------------------------------------------------------------------------------------------


def _numbered(phrases: Sequence[str], scores: Sequence[str]) -> str:
    """Such as "1: red star (0.93) · 2: blue circle (0.88)"; an instance without words has its number alone."""
    pairs = enumerate(zip(phrases, scores, strict=True), start=1)
    return " \u00b7 ".join(f"{number}{': ' if phrase else ''}{phrase}{score}" for number, (phrase, score) in pairs)


def _phrase(text: str, owners: Sequence[Owners]) -> str:
    """The phrase; a word that belongs to instances stands on a bar for each. Neighbours that belong to the same are one
    run, with the numbers below its first word. Bars and numbers are for eyes: the list below says the same."""
    if not any(owners):
        return _text(text)
    runs = []
    for owned, pairs in groupby(zip(owners, text.split(), strict=True), key=itemgetter(0)):
        words = [_text(word) for _, word in pairs]
        if owned:
            words = [_word(word, owned, first=i == 0, last=i == len(words) - 1) for i, word in enumerate(words)]
        runs.append(f'<span class="run">{" ".join(words)}</span>' if owned else " ".join(words))
    return " ".join(runs)


def _word(word: str, owners: Owners, *, first: bool, last: bool) -> str:
    lines = "".join(f'<i class="bar hue-{colour}"></i>' for colour in bars(owners, len(INSTANCE_COLOURS)))
    label = _text(numbers(owners)) if first else ""
    gloss = f'<span aria-hidden="true">{lines}<small>{label}</small></span>'
    return f'<span class="word{"" if last else " joined"}">{word}{gloss}</span>'


def _area(mask: np.ndarray) -> str:
    share = mask.mean()
    return f"{share:.0%} of the image" if share >= 0.01 else "under 1% of the image"
