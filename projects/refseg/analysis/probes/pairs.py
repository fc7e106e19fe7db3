"""Pairs of phrases about one image that differ in one thing, and what each refers to."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {
    "left-right": "left and right change places",
    "above-below": "top and bottom, above and below change places",
    "colour": "another colour",
    "number": "one or all, another rank, fewer phrases",
    "negation": "with and without a \u201cnot\u201d",
    "absent": "what the image does not show",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """`truth`, `changed_truth`: RLEs at the image's size, empty where the phrase refers to nothing; None where nobody
    knows what the changed phrase refers to."""

    kind: str
    expression_id: str
    text: str
    changed: str
    truth: dict
    changed_truth: dict | None
