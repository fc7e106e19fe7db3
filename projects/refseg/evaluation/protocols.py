"""Protocols: frozen, named ways to score. The same predictions can differ by ten points between two of them, so every
result names its own. docs/protocols.md is the table in words.

A protocol is a view (on which grid, and how masks get there), a rule for "nothing here", and the metrics.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from refseg.datasets.masks import Overlap
from refseg.errors import UsageError
from refseg.evaluation import terms
from refseg.evaluation.rows import Rows
from refseg.evaluation.terms import Terms

Grid = Literal["original"] | tuple[int, int]


@dataclass(frozen=True)
class BoxRule:
    """How boxes are compared: those with a score of at least `min_score` (None: the best one alone), matched greedily
    by IoU, or by generalised IoU, of at least `threshold`."""

    min_score: float | None = None
    generalised: bool = False
    threshold: float = 0.5


@dataclass(frozen=True)
class View:
    """On which grid masks are compared, and how they get there.

    `grid`: the original size, or (height, width) that image and target are squashed to. `negative_grid`: another one
    for expressions without target. A model's logits are brought to the size of its input, without padding, and from
    there to the grid by `interpolation` (with `align_corners`); a pixel belongs to the mask where its probability is
    >= `threshold` (`strict`: >). `overlap`, `target_by`: how the target's polygons become pixels. Those of two polygons
    of an instance are mask or are not; "original" resizes nearest from the original size, "input" draws on the grid.
    """

    grid: Grid = "original"
    negative_grid: Grid | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    align_corners: bool = False
    threshold: float = 0.5
    strict: bool = False
    overlap: Overlap = "union"
    target_by: Literal["original", "input"] = "original"
    boxes: BoxRule | None = None

    def grid_of(self, has_target: bool, original: tuple[int, int]) -> tuple[int, int]:
        """(height, width) on which an expression is scored."""
        grid = self.grid if has_target or self.negative_grid is None else self.negative_grid
        return original if grid == "original" else grid


@dataclass(frozen=True)
class NoTarget:
    """When "nothing here" is the answer. "head": its probability exceeds `threshold`; a model without that head never
    says so. "area": the predicted mask has fewer than `min_area` pixels. "none": never."""

    rule: Literal["head", "area", "none"] = "head"
    threshold: float = 0.5
    min_area: int = 50

    def rejected(self, rows: Rows) -> np.ndarray:
        """(R,) bool."""
        if self.rule == "head":
            return rows.no_target_prob > self.threshold  # NaN exceeds nothing
        if self.rule == "area":
            return rows.predicted < self.min_area
        return np.zeros(len(rows), bool)


@dataclass(frozen=True)
class Protocol:
    name: str
    title: str
    view: View
    no_target: NoTarget
    metrics: Callable[[Rows, np.ndarray], Terms]  # of rows and `rejected`

    def terms(self, rows: Rows) -> Terms:
        return self.metrics(rows, self.no_target.rejected(rows))

    def score(self, rows: Rows) -> dict[str, float]:
        """Metrics in percent."""
        return terms.values(self.terms(rows))

    def describe(self) -> dict[str, Any]:
        """What a result says of its protocol, as JSON values."""
        return {"name": self.name, "title": self.title, "view": asdict(self.view), "no_target": asdict(self.no_target)}

    def with_no_target(self, **changes: Any) -> Protocol:
        """The same with another rule for "nothing here"; it is no longer the published one, and its name says so."""
        rule = replace(self.no_target, **changes)
        if rule == self.no_target:
            return self
        detail = {"head": f">{rule.threshold:g}", "area": f"<{rule.min_area}px", "none": ""}[rule.rule]
        return replace(self, name=f"{self.name}+{rule.rule}{detail}", no_target=rule)


def _all(metrics: Callable[[Rows], Terms], rows: Rows, rejected: np.ndarray) -> Terms:
    """For protocols that know no rejection."""
    return metrics(rows)


_SQUASHED = View(grid=(480, 480))
_NEVER = NoTarget("none")
_BOXES = View(boxes=BoxRule())

_PROTOCOLS = (
    Protocol(
        "refseg",
        "ours: original size, union masks, probability >= 0.5, a rejected expression has an empty mask",
        View(),
        NoTarget(),
        terms.refseg_default,
    ),
    Protocol(
        "lavt",
        "LAVT's test.py (CrossVLT's too): 480 x 480 squashed, argmax, pixels of two polygons are background",
        replace(_SQUASHED, align_corners=True, strict=True, overlap="exclude"),
        _NEVER,
        partial(_all, terms.single_target),
    ),
    Protocol(
        "cgformer",
        "CGFormer's test: original size, bicubic from 480, probability > 0.5, Pr@X with >",
        View(interpolation="bicubic", align_corners=True, strict=True, overlap="exclude"),
        _NEVER,
        partial(_all, partial(terms.single_target, strict=True)),
    ),
    Protocol(
        "gres",
        "ReLA's evaluator (GRES): 480 x 480 squashed, polygons drawn there, argmax, the raw mask's union when rejected",
        replace(_SQUASHED, strict=True, target_by="input"),
        NoTarget(),
        terms.generalized,
    ),
    Protocol(
        "deris",
        "DeRIS: 384 x 384 squashed, probability >= 0.5, a rejected expression has an empty mask",
        View(grid=(384, 384)),
        NoTarget(),
        partial(terms.generalized, rejected_target="emptied"),
    ),
    Protocol(
        "gsva",
        "GSVA: original size, logit >= 0, a rejected expression with a target is scored as it is",
        View(),
        NoTarget(),
        partial(terms.generalized, rejected_target="kept"),
    ),
    Protocol(
        "refzom",
        "Ref-ZOM as DMMI's test.py: 480 x 480 squashed, argmax; Acc asks for not one pixel",
        replace(_SQUASHED, align_corners=True, strict=True),
        NoTarget("area", min_area=1),
        partial(terms.ref_zom, emptied=False),
    ),
    Protocol(
        "refzom-score",
        "Ref-ZOM as DeRIS: 384 x 384 squashed, Acc by the no-target score, which empties the mask",
        View(grid=(384, 384)),
        NoTarget(),
        partial(terms.ref_zom, emptied=True),
    ),
    Protocol(
        "rrefcoco",
        "R-RIS: argmax; positives at the original size, negatives at 480 x 480; one pixel is a wrong answer",
        View(align_corners=True, strict=True, overlap="exclude", negative_grid=(480, 480)),
        NoTarget(),
        terms.robust,
    ),
    Protocol(
        "rrefcoco-original",
        "as rrefcoco, negatives at the original size too",
        View(align_corners=True, strict=True, overlap="exclude"),
        NoTarget(),
        terms.robust,
    ),
    Protocol(
        "rec",
        "comprehension: the best box (or the mask's) with IoU >= 0.5",
        _BOXES,
        _NEVER,
        partial(_all, terms.comprehension),
    ),
    Protocol(
        "grec",
        "gRefCOCO's official code: boxes of score >= 0.7, matched by GENERALISED IoU >= 0.5, though it is called IoU",
        View(boxes=BoxRule(min_score=0.7, generalised=True)),
        _NEVER,
        partial(_all, terms.generalized_comprehension),
    ),
    Protocol(
        "grec-iou",
        "as grec, matched by IoU, as its paper says",
        View(boxes=BoxRule(min_score=0.7)),
        _NEVER,
        partial(_all, terms.generalized_comprehension),
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def get_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(PROTOCOLS)}"
        raise UsageError(f"no protocol {name!r}; {hint}")
    return PROTOCOLS[name]
