"""Protocols: frozen, named ways to score. The same predictions can differ by ten points between two of them, so every
result names its own. docs/protocols.md is the table in words.

A protocol is a view (on which grid, and how masks get there), a rule for "nothing here", the metrics, what one answer
is worth, and what to tell of data that it was not made for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from refseg.datasets.masks import Overlap
from refseg.errors import ConfigError, UsageError
from refseg.evaluation import cautions, terms
from refseg.evaluation.rows import Rows
from refseg.evaluation.terms import Terms
from refseg.records import Crowds, NoTargetRule

Grid = Literal["original"] | tuple[int, int]
Nearest = Literal["pillow", "cv2"]  # two rules for "the nearest pixel"; see `refseg.evaluation.measure.resize_rle`
Caution = Callable[[Rows, int], str]  # of rows and how many masks were resized


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
    there to the grid by `interpolation` (with `align_corners`), as logits or as probabilities (`resize`); a pixel
    belongs to the mask where its probability is >= `threshold` (`strict`: >). `overlap`, `target_by`: how the target's
    polygons become pixels. Those of two polygons of an instance are mask or are not; "original" resizes nearest from
    the original size, "input" draws on the grid. `target_resize`: the library whose nearest that is. Predicted masks
    of the original size are always resized by Pillow's, which samples pixel centers as resized logits do. `crowds`:
    whether crowd regions (COCO's `iscrowd`) are part of the target's mask. Their boxes always count, and an expression
    that refers to crowd regions only still has a target.
    """

    grid: Grid = "original"
    negative_grid: Grid | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    align_corners: bool = False
    resize: Literal["logits", "probs"] = "logits"
    threshold: float = 0.5
    strict: bool = False
    overlap: Overlap = "union"
    target_by: Literal["original", "input"] = "original"
    target_resize: Nearest = "pillow"
    crowds: Crowds = "include"
    boxes: BoxRule | None = None

    def grid_of(self, has_target: bool, original: tuple[int, int]) -> tuple[int, int]:
        """(height, width) on which an expression is scored."""
        grid = self.grid if has_target or self.negative_grid is None else self.negative_grid
        return original if grid == "original" else grid


@dataclass(frozen=True)
class NoTarget:
    """When "nothing here" is the answer. "head": its probability exceeds `threshold`; a model without that head never
    says so. "head-or-empty": so, or the mask has no pixel. "area": the mask has fewer than `min_area` pixels. "none":
    never."""

    rule: NoTargetRule = "head"
    threshold: float = 0.5
    min_area: int = 50

    def __post_init__(self) -> None:
        if self.rule not in get_args(NoTargetRule):
            raise ConfigError(f"no_target: rule must be one of {', '.join(get_args(NoTargetRule))}, not {self.rule!r}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"no_target: threshold must be in [0, 1], not {self.threshold}")
        if self.min_area < 0:
            raise ConfigError(f"no_target: min_area must be at least 0, not {self.min_area}")

    def rejected(self, rows: Rows) -> np.ndarray:
        """(R,) bool."""
        if self.rule == "none":
            return np.zeros(len(rows), bool)
        if self.rule == "area":
            return rows.predicted < self.min_area
        by_head = rows.no_target_prob > self.threshold  # NaN exceeds nothing
        return by_head | (rows.predicted == 0) if self.rule == "head-or-empty" else by_head


READ_BY = {"threshold": ("head", "head-or-empty"), "min_area": ("area",)}  # the rules that each number belongs to


@dataclass(frozen=True)
class Protocol:
    name: str
    title: str
    view: View
    no_target: NoTarget
    metrics: Callable[[Rows, np.ndarray], Terms]  # of rows and `rejected`
    worth: Callable[[Rows, np.ndarray], np.ndarray]  # of the same: what each answer is worth, from 0 to 1
    cautions: tuple[Caution, ...] = ()

    def terms(self, rows: Rows) -> Terms:
        return self.metrics(rows, self.no_target.rejected(rows))

    def score(self, rows: Rows) -> dict[str, float]:
        """Metrics in percent."""
        return terms.values(self.terms(rows))

    def worth_of(self, rows: Rows) -> np.ndarray:
        """(R,) float: the IoU with the protocol's rules; for protocols of boxes, whether the answer is right."""
        return self.worth(rows, self.no_target.rejected(rows))

    def describe(self) -> dict[str, Any]:
        """What a result says of its protocol, as JSON values."""
        return {"name": self.name, "title": self.title, "view": asdict(self.view), "no_target": asdict(self.no_target)}

    def with_no_target(self, **changes: Any) -> Protocol:
        """The same with another rule for "nothing here"; it is no longer the published one, and its name says so."""
        known = [field.name for field in fields(NoTarget)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ConfigError(f"no_target: unknown key {unknown[0]!r}; keys are {', '.join(known)}")
        if changes and self.no_target.rule == "none":
            raise UsageError(f"protocol {self.name} has no rule for 'nothing here' that could be changed")
        rule = replace(self.no_target, **changes)
        idle = [key for key, reader in READ_BY.items() if key in changes and rule.rule not in reader]
        if idle:
            raise ConfigError(
                f"no_target: {idle[0]} is of rule {READ_BY[idle[0]][0]!r}; {self.name}'s is {rule.rule!r}"
            )
        if rule == self.no_target:
            return self
        detail = {"area": f"<{rule.min_area}px", "none": ""}.get(rule.rule, f">{rule.threshold:g}")
        return replace(self, name=f"{self.name}+{rule.rule}{detail}", no_target=rule)


def _all(function: Callable[[Rows], Any], rows: Rows, rejected: np.ndarray) -> Any:
    """For protocols that know no rejection."""
    return function(rows)


_SQUASHED = View(grid=(480, 480))
_DERIS = View(grid=(384, 384), target_resize="cv2", crowds="exclude")
_NEVER = NoTarget("none")
_BOXES = View(boxes=BoxRule())
_EMPTIED, _KEPT = (partial(terms.worth, empties=empties) for empties in (True, False))

_PROTOCOLS = (
    Protocol(
        "refseg",
        "ours: original size, union masks, probability >= 0.5, a rejected expression has an empty mask and the reverse",
        View(crowds="exclude"),
        NoTarget("head-or-empty"),
        terms.refseg_default,
        _EMPTIED,
        (cautions.targets_without_pixels,),
    ),
    Protocol(
        "lavt",
        "LAVT's test.py (CrossVLT's too): 480 x 480 squashed, argmax, pixels of two polygons are background",
        replace(_SQUASHED, align_corners=True, strict=True, overlap="exclude"),
        _NEVER,
        partial(_all, terms.single_target),
        _KEPT,
        (cautions.no_target_counts_as_zero,),
    ),
    Protocol(
        "cgformer",
        "CGFormer's test: original size, probabilities bicubic from 480, > 0.5, Pr@X with >",
        View(interpolation="bicubic", align_corners=True, resize="probs", strict=True, overlap="exclude"),
        _NEVER,
        partial(_all, partial(terms.single_target, strict=True)),
        _KEPT,
        (cautions.no_target_counts_as_zero,),
    ),
    Protocol(
        "gres",
        "ReLA's evaluator (GRES): 480 x 480 squashed, polygons drawn there, argmax, the raw mask's union when rejected",
        replace(_SQUASHED, strict=True, target_by="input", crowds="exclude"),
        NoTarget(),
        terms.generalized,
        _EMPTIED,
        (cautions.targets_without_pixels,),
    ),
    Protocol(
        "deris",
        "DeRIS: 384 x 384 squashed, probability >= 0.5, a rejected expression has an empty mask",
        _DERIS,
        NoTarget(),
        partial(terms.generalized, rejected_target="emptied"),
        _EMPTIED,
        (cautions.targets_without_pixels,),
    ),
    Protocol(
        "gsva",
        "GSVA on gRefCOCO: original size, logit >= 0, a rejected expression with a target is scored as it is",
        View(),
        NoTarget(),
        partial(terms.generalized, rejected_target="kept"),
        _KEPT,
    ),
    Protocol(
        "gsva-refzom",
        "GSVA on Ref-ZOM: as gsva, but a mask where nothing is referred to adds no pixels to cIoU",
        View(),
        NoTarget(),
        partial(terms.generalized, rejected_target="kept", union_of_accepted=False),
        _KEPT,
    ),
    Protocol(
        "refzom",
        "Ref-ZOM as DMMI's test.py: 480 x 480 squashed, argmax; Acc asks for not one pixel",
        replace(_SQUASHED, align_corners=True, strict=True),
        NoTarget("area", min_area=1),
        partial(terms.ref_zom, empties=False),
        _KEPT,
        (cautions.thin_masks_vanish,),
    ),
    Protocol(
        "refzom-score",
        "Ref-ZOM as DeRIS: 384 x 384 squashed, Acc by the no-target score, which empties the mask",
        _DERIS,
        NoTarget(),
        partial(terms.ref_zom, empties=True),
        _EMPTIED,
    ),
    Protocol(
        "rrefcoco",
        "R-RIS: argmax; positives at the original size, negatives at 480 x 480; one pixel is a wrong answer",
        View(align_corners=True, strict=True, overlap="exclude", negative_grid=(480, 480)),
        NoTarget(),
        terms.robust,
        terms.robust_worth,
        (cautions.objects_of_both_kinds, cautions.thin_masks_vanish),
    ),
    Protocol(
        "rrefcoco-original",
        "as rrefcoco, negatives at the original size too",
        View(align_corners=True, strict=True, overlap="exclude"),
        NoTarget(),
        terms.robust,
        terms.robust_worth,
        (cautions.objects_of_both_kinds,),
    ),
    Protocol(
        "rec",
        "comprehension: the best box (or the mask's) with IoU >= 0.5",
        _BOXES,
        _NEVER,
        partial(_all, terms.comprehension),
        partial(_all, terms.comprehension_worth),
        (cautions.one_target_only,),
    ),
    Protocol(
        "grec",
        "gRefCOCO's official code: boxes of score >= 0.7, matched by GENERALISED IoU >= 0.5, though it is called IoU",
        View(boxes=BoxRule(min_score=0.7, generalised=True)),
        _NEVER,
        partial(_all, terms.generalized_comprehension),
        partial(_all, terms.generalized_comprehension_worth),
    ),
    Protocol(
        "grec-iou",
        "as grec, matched by IoU, as its paper says",
        View(boxes=BoxRule(min_score=0.7)),
        _NEVER,
        partial(_all, terms.generalized_comprehension),
        partial(_all, terms.generalized_comprehension_worth),
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def get_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(PROTOCOLS)}"
        raise UsageError(f"no protocol {name!r}; {hint}")
    return PROTOCOLS[name]
