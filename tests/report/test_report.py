"""The page of a report: complete, escaped, and small."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from refseg.instance import Instance
from refseg.report import report
from refseg.report.examples import Example
from refseg.report.page import MAX_TABLE_ROWS, data_uri, macros
from refseg.report.plots import Curve
from refseg.report.report import MAX_PICTURE_BYTES, Report, render_report
from refseg.report.work_dir import TrainingCurves

_VOID = {"meta", "img", "br", "link", "input", "hr"}
_DATA = {"data set": "RefShapes", "split": "val"}


class _Checker(HTMLParser):
    """Collector of tags, attributes and text. It fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def _parse(html):
    checker = _Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def _case(index=0, *, text="the red box", group="random", size=96, no_target=False, rejected=False):
    """Return an example with a box on noise, which compresses no better than a photograph."""
    rng = np.random.default_rng(index)
    image = (rng.normal(140, 12, (size, size, 1)) + rng.normal(0, 4, (size, size, 3))).clip(0, 255).astype(np.uint8)
    truth = np.zeros((size, size), bool)
    truth[size // 4 : size // 2, size // 3 : size // 2] = not no_target
    image[truth] = (200, 40, 40)
    predicted = np.roll(truth, size // 20, 1)
    return Example(image, text, predicted, truth, 0.6, rejected, f"e{index}", {"skill": "color", "targets": 1}, group)


def _report(**changes):
    results = [
        {
            "protocol": "gres",
            "details": {"title": "as ReLA"},
            "metrics": {"gIoU": 71.2345, "expressions": 1200, "T-acc": 0.5, "share": float("nan")},
            "intervals": {"gIoU": [70.0, 72.005]},
            "bootstrap": {"resamples": 1000},
            "by": {
                "skill": [
                    {"skill": "color", "gIoU": 80.0, "interval": {"of": "gIoU", "ends": [75.0, 85.0]}},
                    {"skill": "size", "gIoU": None, "count": 3},
                ]
            },
        }
    ]
    parts = {
        "title": "First light",
        "summary": _DATA | {"model": "tiny"},
        "results": results,
        "curves": TrainingCurves(losses=(Curve("loss", (1, 2, 3), (3.0, 2.0, 1.0)),)),
        "cases": [_case(), _case(1, no_target=True, rejected=True, group="no-target")],
        "environment": {"torch": "2", "cores": 2},
        "config_text": "model = dict(type='X')",
    }
    return Report(**(parts | changes))


def test_report_is_complete_and_self_contained():
    html = render_report(_report())
    page = _parse(html)
    text = "".join(page.text)
    for words in (
        "71.23",
        "1200",
        "0.5000",
        "protocol: gres",
        "data set: RefShapes",
        "split: val",
        "✓ right",
    ):
        assert words in text
    assert text.count("protocol: gres") == 3, "the cards, the metrics and the breakdown each name the protocol"
    assert "[70.00,\u00a072.00]" in text and "[75.00,\u00a085.00]" in text and "1,000 resamples" in text
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/") or tag != "img"
        assert attributes.get("href", "#").startswith("#")
        assert tag != "img" or attributes["alt"]
        assert tag != "th" or attributes["scope"] in {"row", "col"}
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def _case_with_instances(text, weights):
    """Return an example with two instances, on the halves of its mask."""
    case = _case(text=text, group="several")
    halves = [case.predicted & (np.arange(96) % 2 == part) for part in (0, 1)]
    return replace(case, instances=[Instance(*pair) for pair in zip(halves, (0.934, 0.5), weights, strict=True)])


def test_bars_under_the_words_of_instances():
    """ "red" and "star" are one run of instance 1. "circle" belongs to both instances."""
    case = _case_with_instances("red star and circle", [[0.3, 0.3, 0.0, 0.3], [0.0, 0.1, 0.1, 0.8]])
    html = render_report(_report(cases=[case]))
    page = _parse(html)
    classes = [attributes["class"] for tag, attributes in page.tags if tag in {"span", "i"} and "class" in attributes]
    hues = ["bar hue-0", "bar hue-1"]
    words = ["run", "word joined", hues[0], "word", hues[0], "run", "word", *hues]
    assert classes == [*words, "mark right"]
    shown = "".join(page.text)
    assert "\u201cred1 star and circle1, 2\u201d" in shown
    listed = "1: red star circle (0.93) \u00b7 2: circle (0.50)"
    assert listed in shown and "Several targets (1)" in shown
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert listed in alts[0] and "(0.93)" not in alts[1]
    gloss = '<span aria-hidden="true"><i class="bar hue-0">'
    assert html.count(gloss) == 3, "hidden from screen readers, which get the list"


def test_instances_without_words_and_rejected_ones():
    case = _case_with_instances("red star", [None, None])
    html = render_report(_report(cases=[case]))
    assert "\u201c<bdi>red star</bdi>\u201d" in html and "1:  (" not in html
    assert "1 (0.93) \u00b7 2 (0.50)" in html
    rejected = render_report(_report(cases=[replace(case, rejected=True)]))
    assert "(0.93)" not in rejected and rejected == render_report(
        _report(cases=[replace(case, rejected=True, instances=())])
    )


def test_words_are_escaped():
    case = _case_with_instances('<b>red</b> "star" ', [[0.5, 0.5], [0.0, 1.0]])
    page = _parse(render_report(_report(cases=[case])))
    assert not {tag for tag, _ in page.tags} & {"b"}
    assert '1: <b>red</b> "star" (0.93)' in "".join(page.text)


def test_same_input_same_bytes():
    assert render_report(_report()) == render_report(_report())


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "a\x00b\ud800\x1b & <b>"]
)
def test_all_text_is_escaped(attack):
    """The attack is in every text. The page keeps its tags and shows the attack as text."""
    case = _case(text=attack, group=attack)
    hostile = Example(
        case.image, attack, case.predicted, case.ground_truth, 0.6, False, attack, {attack: attack}, attack
    )
    result = {
        "protocol": attack,
        "details": {"title": attack},
        "metrics": {attack: 1.0},
        "by": {attack: [{attack: attack, "b": 1}]},
    }
    changes = {
        "title": attack,
        "summary": dict.fromkeys(_DATA, attack) | {attack: attack},
        "results": [result],
        "hits": {attack: [{attack: attack}]},
        "notes": [attack],
        "curves": TrainingCurves(losses=(Curve(attack, (1, 2), (1.0, 2.0)),)),
        "environment": {attack: attack},
        "config_text": attack,
        "cases": [hostile],
    }
    page = _parse(render_report(_report(**changes)))
    assert not {tag for tag, _ in page.tags} & {"script", "b"}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    shown = attack.replace("\x00", "\ufffd").replace("\ud800", "\ufffd").replace("\x1b", "\ufffd")
    assert "".join(page.text).count(shown) >= 10
    render_report(_report(**changes)).encode("utf-8")


def test_page_of_many_cases_is_small():
    html = render_report(_report(cases=[_case(index, size=320) for index in range(20)]))
    assert len(html.encode()) < 1_000_000
    page = _parse(html)
    assert sum(tag == "img" for tag, _ in page.tags) == 40
    assert page.tags.count(("details", {})) == 3 and "14 more" in "".join(page.text)


def test_examples_over_the_limit_are_counted(monkeypatch):
    """Two groups share the limit, so each has room for two of its five cards. The page counts the others."""
    cases = [_case(index, size=320, group="random" if index % 2 else "worst") for index in range(10)]
    card = sum(len(picture["uri"]) for picture in report.example_card(cases[0])["pictures"])
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", 5 * card)
    html = render_report(_report(cases=cases))
    assert html.count("<article") == 4 and html.count("3 more are left out") == 2
    assert 5 * card < MAX_PICTURE_BYTES, "the real limit is larger"


def test_empty_report():
    changes = {"summary": {}, "results": [], "curves": None, "cases": [], "environment": {}, "config_text": ""}
    text = "".join(_parse(render_report(_report(**changes, missing="refseg test <x>"))).text)
    assert "Curves" not in text and "Cases" not in text and "Metrics" not in text
    assert "There are no scores" in text and "refseg test <x>" in text


@pytest.mark.parametrize("key", list(_DATA))
def test_numbers_need_their_data(key):
    summary = {name: value for name, value in _DATA.items() if name != key}
    with pytest.raises(ValueError, match=key):
        render_report(_report(summary=summary))


def test_no_target_plots_and_table():
    """There are plots of reliability, risk and thresholds, and a table of the bins. Without probabilities the page says
    so."""
    found = {
        "confusion": {"counts": {"target, accepted": 3}, "rates": {"N-acc": None}, "by_targets": []},
        "calibration": {
            "AUROC": 0.75,
            "Brier": 0.1,
            "ECE": 0.05,
            "AURC": 0.125,
            "risk_coverage": [{"coverage": 0.5, "risk": 0.0}, {"coverage": 1.0, "risk": 0.25}],
            "expressions": 4,
            "no_target": 1,
            "reliability": [{"low": 0.0, "high": 0.5, "expressions": 4, "probability": 0.2, "share": 0.25}],
        },
        "curve": [{"threshold": 0.0, "N-acc": 100.0, "T-acc": 0.0}, {"threshold": 1.0, "N-acc": 0.0, "T-acc": 100.0}],
    }
    page = _parse(render_report(_report(no_target=found)))
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert any("share: no target from 0.25 to 0.25" in label for label in labels)
    assert any("risk from 0 to 0.25" in label for label in labels)
    assert any("N-acc from 100 to 0; T-acc from 0 to 100" in label for label in labels)
    assert "0.00 to 0.50" in "".join(page.text)
    bare = render_report(_report(no_target=found | {"calibration": None, "curve": None}))
    assert "no probability of “nothing here”" in bare


def test_table_fills_gaps_and_aligns_numbers():
    html = _table([{"skill": "a", "n": np.int64(2)}, {"skill": "b", "iou": np.float32(0.25)}])
    assert '<th scope="col">skill</th><th scope="col" class="number">n</th>' in html
    assert '<th scope="row">b</th><td class="number">–</td><td class="number">0.2500</td>' in html


def _table(rows):
    return str(macros().table(rows, caption="c"))


def test_no_target_alt_texts():
    page = _parse(render_report(_report()))
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert [alt.rsplit(": ", 1)[1] for alt in alts[2:]] == ["nothing here", "nothing here"]


def test_long_tables_are_cut():
    html = _table([{"tag": f"t{i}"} for i in range(MAX_TABLE_ROWS + 1200)])
    assert html.count("<tr>") == MAX_TABLE_ROWS + 1 and "and 1,200 more lines, not shown" in html


def _decode(uri):
    head, content = uri.split(",", 1)
    return head, Image.open(io.BytesIO(base64.b64decode(content)))


def test_data_uri_looks_like_the_picture():
    flat = np.full((50, 70, 3), (10, 200, 30), np.uint8)
    ramp = np.stack([np.tile(np.arange(256, dtype=np.uint8), (200, 1))] * 3, axis=2)
    for picture in (flat, ramp):
        head, image = _decode(data_uri(picture))
        assert head in {"data:image/png;base64", "data:image/webp;base64", "data:image/jpeg;base64"}
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture).mean() < 3
    assert data_uri(flat) == data_uri(flat)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert "png" not in data_uri(noise)[:20]


def test_data_uri_without_webp(monkeypatch):
    monkeypatch.setattr("refseg.report.page.features.check", lambda name: False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg")
