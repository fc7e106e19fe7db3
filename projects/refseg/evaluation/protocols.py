"""Protocols: frozen, named ways to score. docs/protocols.md describes each one in words.

The same predictions can differ by ten points between two protocols, so every result names its protocol. A protocol
consists of a view (the grid, and how masks get there), a rule for "nothing here", the metrics, the worth of a single
answer, and cautions for data that the protocol was not made for.
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
from refseg.evaluation import terms
from refseg.evaluation.rows import Rows
from refseg.evaluation.statistics import auroc
from refseg.evaluation.terms import Terms
from refseg.records import Crowds, NoTargetRule

Grid = Literal["original"] | tuple[int, int]
Nearest = Literal["pillow", "cv2"]  # two rules for "the nearest pixel"; see `refseg.evaluation.measure.resize_rle`


@dataclass(frozen=True)
class BoxRule:
    """Matching of predicted boxes to target boxes, greedily by IoU.

    Args:
        min_score: Score from which a box counts. None: only the box with the highest score counts.
        generalised: Match by generalized IoU (result files spell it this way).
        threshold: Overlap from which two boxes match.
    """

    min_score: float | None = None
    generalised: bool = False
    threshold: float = 0.5


@dataclass(frozen=True)
class InstanceRule:
    """Matching of predicted instances to target instances by mask IoU, with the largest sum of IoUs (Hungarian).

    Args:
        min_score: Score from which an instance counts.
        thresholds: IoUs from which two instances match.
        duplicate_iou: IoU with a larger instance of the answer above which an instance is left out. None: never.
    """

    min_score: float = 0.5
    thresholds: tuple[float, ...] = terms.HALF_TO_95
    duplicate_iou: float | None = None


@dataclass(frozen=True)
class View:
    """The grid on which masks are compared, and how they get there.

    A model's logits are first resized to its input, without padding, and from there to the grid. Predicted masks of
    the original size are resized by Pillow's nearest rule, which samples pixel centers as resized logits do.

    Args:
        grid: "original", or (height, width) to which the image and the target are squashed.
        negative_grid: Another grid for expressions without a target.
        interpolation: Interpolation of the logits, together with `align_corners`.
        resize: Interpolate logits, or their probabilities.
        threshold: A pixel belongs to the mask if its probability is at least this value (above it if `strict`).
        overlap: Whether pixels inside two polygons of one instance belong to its mask.
        target_by: "original" resizes the target from the original size, "input" draws its polygons on the grid.
        target_resize: Library whose nearest rule resizes the target.
        crowds: Whether crowd regions (COCO's `iscrowd`) belong to the target's mask. Their boxes always count, and an
            expression that refers only to crowd regions still has a target.
        boxes: Rule for boxes, in protocols that score them.
        instances: Rule for instances, in protocols that score them.
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
    instances: InstanceRule | None = None

    def grid_of(self, has_target: bool, original: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) on which an expression is scored."""
        grid = self.grid if has_target or self.negative_grid is None else self.negative_grid
        return original if grid == "original" else grid

    def for_masks(self) -> View:
        """Return the view without its rules for logits. Protocols that differ only in those share rows of a file."""
        plain = asdict(View())
        rules = ("interpolation", "align_corners", "resize", "threshold", "strict")
        return replace(self, **{name: plain[name] for name in rules})


@dataclass(frozen=True)
class NoTarget:
    """The rule that decides whether an expression is rejected ("nothing here").

    Args:
        rule: "head" rejects if the no-target probability exceeds `threshold` (a model without that head never
            rejects), "head-or-empty" also rejects if the mask is empty, "area" rejects masks with fewer than
            `min_area` pixels, and "none" never rejects.
    """

    rule: NoTargetRule = "head"
    threshold: float = 0.5
    min_area: int = 50

    def __post_init__(self) -> None:
        if self.rule not in get_args(NoTargetRule):
            raise ConfigError(
                f"no_target: unknown rule {self.rule!r}. Valid rules: {', '.join(get_args(NoTargetRule))}"
            )
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"no_target: threshold must be in [0, 1], got {self.threshold}")
        if self.min_area < 0:
            raise ConfigError(f"no_target: min_area must be at least 0, got {self.min_area}")

    def rejected(self, rows: Rows) -> np.ndarray:
        """Return (R,) bool: the rejected rows."""
        if self.rule == "none":
            return np.zeros(len(rows), bool)
        if self.rule == "area":
            return rows.predicted < self.min_area
        by_head = rows.no_target_prob > self.threshold  # NaN exceeds nothing
        return by_head | (rows.predicted == 0) if self.rule == "head-or-empty" else by_head


READ_BY = {"threshold": ("head", "head-or-empty"), "min_area": ("area",)}  # the rules that read each number


# Cautions: what a protocol does to data that it was not made for. Each takes the rows and the number of resized masks,
# and returns "" if there is nothing to say. -------------------------------------------------------------------------

Caution = Callable[[Rows, int], str]


def no_target_counts_as_zero(rows: Rows, resized: int) -> str:
    count = np.count_nonzero(~rows.has_target)
    return f"{count:,} expressions without a target count as IoU 0, whatever the answer" if count else ""


def one_target_only(rows: Rows, resized: int) -> str:
    count = np.count_nonzero(rows.num_targets != 1)
    return f"{count:,} expressions with no target or several targets are left out" if count else ""


def targets_without_pixels(rows: Rows, resized: int) -> str:
    count = np.count_nonzero(rows.has_target & (rows.target == 0))
    reason = "crowd regions only, or too small for the grid"
    return f"{count:,} targets have no pixels ({reason}): their IoU is 0 whatever the answer" if count else ""


def objects_of_both_kinds(rows: Rows, resized: int) -> str:
    unit, target = rows.unit, rows.has_target
    if np.intersect1d(unit[target], unit[~target]).size or not len(rows):
        return ""
    return (
        "no object has expressions with a target as well as without one, so rIoU and mRR do not mean what they do on "
        "R-RefCOCO. Give related rows of a JSONL file the same object_id (docs/data.md)"
    )


def thin_masks_vanish(rows: Rows, resized: int) -> str:
    message = "masks are checked for emptiness on the grid. A mask one pixel wide may vanish there and count as empty"
    return message if resized else ""


# Protocols ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """A named way to score rows: the metrics, and the worth of each answer from 0 to 1.

    `metrics` and `worth` take the rows and which of them are rejected.
    """

    name: str
    title: str
    metrics: Callable[[Rows, np.ndarray], Terms]
    view: View = View()
    no_target: NoTarget = NoTarget()
    worth: Callable[[Rows, np.ndarray], np.ndarray] = terms.worth
    cautions: tuple[Caution, ...] = ()

    @property
    def lists_objects(self) -> bool:
        """Whether files of predictions list objects: a pair without entries is answered with nothing, and entries of
        pairs that are not scored are left out."""
        return self.view.instances is not None

    def terms(self, rows: Rows) -> Terms:
        return self.metrics(rows, self.no_target.rejected(rows))

    def score(self, rows: Rows) -> dict[str, float]:
        """Return the metrics in percent.

        Protocols whose N-acc reads the no-target probability also have "AUC", the area under its ROC curve, which sums
        up N-acc and T-acc over all thresholds.
        """
        scores = terms.values(self.terms(rows))
        known = ~np.isnan(rows.no_target_prob)
        if "N-acc" in scores and self.no_target.rule in READ_BY["threshold"] and not self.lists_objects:
            area = auroc(rows.no_target_prob[known], ~rows.has_target[known])
            scores |= {} if area is None else {"AUC": 100.0 * area}
        return scores

    def worth_of(self, rows: Rows) -> np.ndarray:
        """Return (R,): the IoU under the protocol's rules, or, if it scores boxes, whether they are right."""
        return self.worth(rows, self.no_target.rejected(rows)).astype(np.float64)

    def describe(self) -> dict[str, Any]:
        """Return the protocol as JSON values, for result files."""
        return {"name": self.name, "title": self.title, "view": asdict(self.view), "no_target": asdict(self.no_target)}

    def with_no_target(self, **changes: Any) -> Protocol:
        """Return a copy with another rule for "nothing here", under a name that tells it from the published one."""
        keys = [field.name for field in fields(NoTarget)]
        unknown = sorted(set(changes) - set(keys))
        if unknown:
            raise ConfigError(f"no_target: unknown key {unknown[0]!r}. Valid keys: {', '.join(keys)}")
        if changes and self.no_target.rule == "none":
            raise UsageError(f"protocol {self.name} has no rule for 'nothing here', so it cannot be changed")
        rule = replace(self.no_target, **changes)
        for key, rules in READ_BY.items():
            if key in changes and rule.rule not in rules:
                raise ConfigError(
                    f"no_target: {key} applies only to rule {' or '.join(map(repr, rules))}, and the rule of "
                    f"{self.name} is {rule.rule!r}"
                )
        if rule == self.no_target:
            return self
        detail = {"area": f"<{rule.min_area}px", "none": ""}.get(rule.rule, f">{rule.threshold:g}")
        return replace(self, name=f"{self.name}+{rule.rule}{detail}", no_target=rule)


_SQUASHED = View(grid=(480, 480))
_DERIS = View(grid=(384, 384), target_resize="cv2", crowds="exclude")
_NEVER = NoTarget("none")
_AS_IT_IS = partial(terms.worth, empties=False)

_PROTOCOLS = (
    Protocol(
        "refseg",
        "ours: original size, union masks, probability >= 0.5, a rejected expression has an empty mask and the reverse",
        terms.refseg_default,
        View(crowds="exclude"),
        NoTarget("head-or-empty"),
        cautions=(targets_without_pixels,),
    ),
    Protocol(
        "lavt",
        "LAVT's test.py (CrossVLT's too): 480 x 480 squashed, argmax, pixels of two polygons are background",
        terms.single_target,
        replace(_SQUASHED, align_corners=True, strict=True, overlap="exclude"),
        _NEVER,
        cautions=(no_target_counts_as_zero,),
    ),
    Protocol(
        "cgformer",
        "CGFormer's test: original size, probabilities bicubic from 480, > 0.5, Pr@X with >",
        partial(terms.single_target, strict=True),
        View(interpolation="bicubic", align_corners=True, resize="probs", strict=True, overlap="exclude"),
        _NEVER,
        cautions=(no_target_counts_as_zero,),
    ),
    Protocol(
        "gres",
        "ReLA's evaluator (GRES): 480 x 480 squashed, polygons drawn there, argmax, the raw mask's union when rejected",
        terms.generalized,
        replace(_SQUASHED, strict=True, target_by="input", crowds="exclude"),
        cautions=(targets_without_pixels,),
    ),
    Protocol(
        "deris",
        "DeRIS: 384 x 384 squashed, probability >= 0.5, a rejected expression has an empty mask",
        partial(terms.generalized, rejected_target="emptied"),
        _DERIS,
        cautions=(targets_without_pixels,),
    ),
    Protocol(
        "gsva",
        "GSVA on gRefCOCO: original size, logit >= 0, a rejected expression with a target is scored as it is",
        partial(terms.generalized, rejected_target="kept"),
        worth=_AS_IT_IS,
    ),
    Protocol(
        "gsva-refzom",
        "GSVA on Ref-ZOM: as gsva, but a mask where nothing is referred to adds no pixels to cIoU",
        partial(terms.generalized, rejected_target="kept", union_of_accepted=False),
        worth=_AS_IT_IS,
    ),
    Protocol(
        "refzom",
        "Ref-ZOM as DMMI's test.py: 480 x 480 squashed, argmax; Acc asks for not one pixel",
        partial(terms.ref_zom, empties=False),
        replace(_SQUASHED, align_corners=True, strict=True),
        NoTarget("area", min_area=1),
        worth=_AS_IT_IS,
        cautions=(thin_masks_vanish,),
    ),
    Protocol(
        "refzom-score",
        "Ref-ZOM as DeRIS: 384 x 384 squashed, Acc by the no-target score, which empties the mask",
        partial(terms.ref_zom, empties=True),
        _DERIS,
    ),
    Protocol(
        "rrefcoco",
        "R-RIS: argmax; positives at the original size, negatives at 480 x 480; one pixel is a wrong answer",
        terms.robust,
        View(align_corners=True, strict=True, overlap="exclude", negative_grid=(480, 480)),
        worth=terms.robust_worth,
        cautions=(objects_of_both_kinds, thin_masks_vanish),
    ),
    Protocol(
        "rrefcoco-original",
        "as rrefcoco, negatives at the original size too",
        terms.robust,
        View(align_corners=True, strict=True, overlap="exclude"),
        worth=terms.robust_worth,
        cautions=(objects_of_both_kinds,),
    ),
    Protocol(
        "rec",
        "comprehension: the best box (or the mask's) with IoU >= 0.5",
        terms.comprehension,
        View(boxes=BoxRule()),
        _NEVER,
        worth=terms.best_box_matches,
        cautions=(one_target_only,),
    ),
    Protocol(
        "ref-l4",
        "Ref-L4's evaluation: as rec, but IoU > 0.5, 0.75 and 0.9, and mAcc, the mean over ten IoUs",
        terms.comprehension_by_iou,
        View(boxes=BoxRule()),
        _NEVER,
        worth=terms.best_box_matches,
        cautions=(one_target_only,),
    ),
    Protocol(
        "finecops",
        "FineCops-Ref: the best box with IoU >= 0.5, and the rejection of its negatives, by the head or without a box",
        terms.comprehension_or_nothing,
        View(boxes=BoxRule()),
        worth=terms.best_box_or_rejection,
    ),
    Protocol(
        "grec",
        "gRefCOCO's official code: boxes of score >= 0.7, matched by GENERALISED IoU >= 0.5, though it is called IoU",
        terms.generalized_comprehension,
        View(boxes=BoxRule(min_score=0.7, generalised=True)),
        _NEVER,
        worth=terms.all_boxes_match,
    ),
    Protocol(
        "grec-iou",
        "as grec, matched by IoU, as its paper says",
        terms.generalized_comprehension,
        View(boxes=BoxRule(min_score=0.7)),
        _NEVER,
        worth=terms.all_boxes_match,
    ),
    Protocol(
        "saco",
        "SA-Co's evaluator: instances of score >= 0.5, matched by mask IoU 0.5 to 0.95; cgF1 = pmF1 x IL_MCC",
        terms.concepts,
        View(crowds="exclude", instances=InstanceRule()),
        worth=terms.f1_of_pairs,
    ),
    Protocol(
        "pbench",
        "PBench's evaluation: as saco, without smaller instances that overlap by IoU > 0.5; mean F1 of positive pairs",
        terms.f1_of_positives,
        View(crowds="exclude", instances=InstanceRule(duplicate_iou=0.5)),
        worth=terms.f1_of_pairs,
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def get_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"valid protocols: {', '.join(PROTOCOLS)}"
        raise UsageError(f"unknown protocol {name!r}; {hint}")
    return PROTOCOLS[name]
