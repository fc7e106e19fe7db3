"""The report of one run: a single HTML file without scripts, which asks nothing of the network.

Every section is a function from data to HTML; `render_report` joins them. All text from outside is escaped in
`_text`, the only way in which it enters the page; the page's own policy forbids scripts besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from refseg.files import write_atomically
from refseg.visualization.cases import RIGHT_IOU, Case, case_pictures, data_uri
from refseg.visualization.curves import TrainingCurves, training_plots
from refseg.visualization.glosses import Owners, bars, numbers
from refseg.visualization.instances import INSTANCE_COLOURS, own_phrases
from refseg.visualization.overlay import EMPTY_MASK, NOTHING_HERE
from refseg.visualization.report_style import style_sheet
from refseg.visualization.text import markup_text as _text

PROTOCOL_KEYS = ("protocol", "data set", "split")  # what `summary` must name: no number stands without them
NUM_CARDS = 6
HEADINGS = {"several": "several targets"}  # of groups whose name is no heading
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        "Breakdowns": breakdowns_section(breakdowns, protocol),
        "Curves": curves_section(curves),
        "Cases": cases_section(cases),
        "Environment and config": environment_section(environment, config_text),
    }
    return page(title, {heading: html for heading, html in sections.items() if html})


def page(title: str, sections: Mapping[str, str]) -> str:
    """A whole page: `sections` are HTML by heading."""
    ids = {heading: heading.lower().replace(" ", "-") for heading in sections}
    links = "".join(f'<li><a href="#{_text(ids[name])}">{_text(name)}</a></li>' for name in sections)
    body = "\n".join(
        f'<section id="{_text(ids[name])}"><h2>{_text(name)}</h2>\n{html}</section>' for name, html in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{style_sheet()}</style>
</head>
<body>
<header><h1>{_text(title)}</h1></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer></footer>
</body>
</html>
"""


# Sections -------------------------------------------------------------------------------------------------------------


def protocol_line(summary: Mapping[str, str]) -> str:
    """What every number is by: "protocol ..., data set ..., split ..."."""
    missing = [key for key in PROTOCOL_KEYS if not str(summary.get(key, "")).strip()]
    if missing:
        raise ValueError(f"the report's summary must name {missing}: a number means nothing without its protocol")
    return " \u00b7 ".join(f"{key}: {summary[key]}" for key in PROTOCOL_KEYS)


def summary_section(summary: Mapping[str, str], metrics: Mapping[str, float], protocol: str) -> str:
    cards = "".join(
        f'<div><dt>{_text(name)}</dt><dd class="value">{_text(_number(value))}</dd></div>'
        for name, value in list(metrics.items())[:NUM_CARDS]
    )
    others = {key: value for key, value in summary.items() if key not in PROTOCOL_KEYS}
    return f'<dl class="cards">{cards}</dl><p class="soft">By {_text(protocol)}</p>{_facts(others)}'


def metrics_section(metrics: Mapping[str, float], protocol: str) -> str:
    rows = [{"metric": name, "value": value} for name, value in metrics.items()]
    return table(rows, caption=protocol) if rows else '<p class="soft">No metrics.</p>'


def breakdowns_section(breakdowns: Mapping[str, Sequence[Mapping[str, Any]]], protocol: str) -> str:
    parts = [
        f"<div><h3>{_text(name)}</h3>{table(rows, caption=protocol)}</div>" for name, rows in breakdowns.items() if rows
    ]
    return f'<div class="tables">{"".join(parts)}</div>' if parts else ""


def curves_section(curves: TrainingCurves | None) -> str:
    plots = training_plots(curves) if curves else []
    return f'<div class="plots">{"".join(f"<div>{plot}</div>" for plot in plots)}</div>' if plots else ""


def cases_section(cases: Sequence[Case]) -> str:
    """The gallery, by group in the order of the cases."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    if not groups:
        return ""
    parts = [
        '<p class="soft">Examples, not a score. A picture shows what the mask picks in its own colours, and fades the '
        "rest. "
        f"\u201cRight\u201d: IoU at least {RIGHT_IOU:g}; without a target: that nothing was picked.</p>"
    ]
    if any(case.shown_instances for case in cases):
        parts.append(
            '<p class="soft">Outlines with numbers are the objects that the model means. The bars and '
            "numbers under a word tell the objects that it belongs to.</p>"
        )
    for group, members in groups.items():
        name = HEADINGS.get(group, group)
        heading = f"{name[:1].upper()}{name[1:]} ({len(members)})"
        parts.append(f'<h3>{_text(heading)}</h3><div class="cases">{"".join(map(case_card, members))}</div>')
    return "\n".join(parts)


def case_card(case: Case) -> str:
    """One case: phrase, prediction beside ground truth, verdict in words, tags."""
    prediction, truth = case_pictures(case)
    mark = (
        '<span class="mark right">\u2713 right</span>' if case.right else '<span class="mark wrong">\u2717 wrong</span>'
    )
    tags = "".join(f" \u00b7 {_text(key)}: {_text(_cell(value))}" for key, value in case.tags.items())
    answer = NOTHING_HERE if case.rejected else EMPTY_MASK if case.answers_nothing else _area(case.predicted)
    goal = NOTHING_HERE if case.no_target else _area(case.ground_truth)
    iou = "\u2013" if math.isnan(case.iou) else f"{case.iou:.2f}"
    phrases = own_phrases(case.text, case.shown_instances)
    scores = [f" ({instance.score:.2f})" for instance in case.shown_instances]
    shown = [f"<bdi>{_text(phrase)}</bdi>" if phrase else "" for phrase in phrases]
    objects = f'<p class="objects">{_numbered(shown, scores)}</p>' if phrases else ""
    answer = f"{answer}; {_numbered(phrases, scores)}" if phrases else answer
    return (
        f'<article class="case"><p class="phrase">\u201c<bdi>{_phrase(case.text, case.owners)}</bdi>\u201d</p>'
        f'<div class="pair">{_figure(prediction, "Prediction", answer, case.text)}'
        f"{_figure(truth, 'Ground truth', goal, case.text)}</div>"
        f"{objects}<p>{mark}, IoU {iou}</p>"
        f'<p class="tags">expression {_text(case.expression_id)}{tags}</p></article>\n'
    )


def environment_section(environment: Mapping[str, Any], config_text: str) -> str:
    parts = []
    if environment:
        parts.append(f"<details><summary>Environment</summary>{_facts(environment)}</details>")
    if config_text:
        parts.append(f"<details><summary>Config</summary><pre><code>{_text(config_text)}</code></pre></details>")
    return "".join(parts)


# Parts ----------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], *, caption: str) -> str:
    """Rows as an HTML table. Columns come in the order of first appearance; the first one heads its row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in columns[1:] if all(_is_number(row.get(name, 0)) or row[name] is None for row in rows)}
    kinds = {name: ' class="number"' if name in numeric else "" for name in columns}
    head = "".join(f'<th scope="col"{kinds[name]}>{_text(name)}</th>' for name in columns)
    body = []
    for row in rows:
        first = f'<th scope="row">{_text(_cell(row.get(columns[0])))}</th>'
        rest = "".join(f"<td{kinds[name]}>{_text(_cell(row.get(name)))}</td>" for name in columns[1:])
        body.append(f"<tr>{first}{rest}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(f"Table by {columns[0]}")}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(_cell(value))}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _figure(picture: np.ndarray, name: str, content: str, text: str) -> str:
    height, width = picture.shape[:2]
    alt = f"{name} for \u201c{text}\u201d: {content}"
    image = f'<img src="{data_uri(picture)}" width="{width}" height="{height}" alt="{_text(alt)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{_text(name)}</figcaption></figure>"


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


def _cell(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value))
    return _number(value) if _is_number(value) else str(value)


def _number(value: float) -> str:
    """Two decimals, four below one; whole numbers as they are; a dash where there is no value."""
    if isinstance(value, Integral):
        return str(int(value))
    if math.isnan(value):
        return "\u2013"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
