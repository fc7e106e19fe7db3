"""Pairs for RefShapes: change an expression's meaning and judge it on the scene, so that both truths are known.

Scenes and meanings are not in the annotation files. They are generated again from the preset, which is deterministic.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from refseg.analysis.probes.measure import KINDS, Pair
from refseg.errors import DataError
from refseg.evaluation.metrics import encode_masks
from refseg.evaluation.overlap import union_rle
from refseg.records import Record
from refseg.refshapes.generate import EXPRESSIONS, META
from refseg.refshapes.grammar import change_attribute
from refseg.refshapes.meaning import (
    LAST_RANK,
    OPPOSITE,
    SIDES,
    Head,
    Match,
    Meaning,
    Most,
    Ordinal,
    Phrase,
    Place,
    Relative,
)
from refseg.refshapes.presets import PRESETS, Preset, make_image
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import COLORS, Scene
from refseg.refshapes.vocabulary import UNSAID
from refseg.refshapes.wording import realize, text_of

TRIES = 30  # proposed changes of a kind
WORDINGS = 80  # wordings of a changed meaning, of which the one nearest to the phrase is taken

Propose = Callable[[Meaning, Scene, Stream], Meaning | None]


# Changes of meaning. They return None if there is nothing to change. --------------------------------------------------


def mirrored(head: Head, axis: tuple[str, str]) -> Head | None:
    """Exchange the two sides of an axis in a head. None if it has no side of the axis."""
    flip = {side: OPPOSITE[side] for side in axis}
    if isinstance(head, Place):
        changed: Head = replace(head, region=" ".join(flip.get(side, side) for side in head.region.split()))
    elif isinstance(head, Most):
        changed = replace(head, end=flip.get(head.end, head.end))
    elif isinstance(head, Relative | Ordinal):
        changed = replace(head, side=flip.get(head.side, head.side))
    else:
        return None
    return changed if changed != head else None


def change_sides(axis: tuple[str, str]) -> Propose:
    def change(expression: Meaning, scene: Scene, stream: Stream) -> Meaning | None:
        heads = [mirrored(phrase.head, axis) or phrase.head for phrase in expression.phrases]
        return with_heads(expression, heads, scene)

    return change


def change_color(expression: Meaning, scene: Scene, stream: Stream) -> Meaning | None:
    """Change the color in one phrase, or its anchor's color if it has none."""
    at = stream.below(len(expression.phrases))
    head = expression.phrases[at].head
    if head.of.color is not None:
        recolored = _recolored(head.of, stream)
        return _with_head(expression, at, recolored if isinstance(head, Match) else replace(head, of=recolored), scene)
    if isinstance(head, Relative) and head.anchor.color is not None:
        return _with_head(expression, at, replace(head, anchor=_recolored(head.anchor, stream)), scene)
    return None


def change_number(expression: Meaning, scene: Scene, stream: Stream) -> Meaning | None:
    """Drop a phrase, turn the extreme one into all or all into the extreme one, or change a rank."""
    phrases = expression.phrases
    if len(phrases) > 1:
        at = stream.below(len(phrases))
        return Meaning(phrases[:at] + phrases[at + 1 :])
    head = phrases[0].head
    if isinstance(head, Most):
        return _with_head(expression, 0, head.of, scene)
    if isinstance(head, Ordinal):
        return _with_head(expression, 0, replace(head, rank=stream.between(1, LAST_RANK)), scene)
    if isinstance(head, Match) and head.without is None and phrases[0].count != 1:
        return _with_head(expression, 0, Most(head, stream.choice(SIDES)), scene)
    return None


def change_negation(expression: Meaning, scene: Scene, stream: Stream) -> Meaning | None:
    """Turn "the red circle" into "the circle that is not red", or back."""
    at = stream.below(len(expression.phrases))
    head = expression.phrases[at].head
    if not isinstance(head, Match):
        return None
    if head.without is not None:
        denied = dict([head.without])
        if denied.keys() & head.given.keys():
            return None
        return _with_head(expression, at, Match(**(head.given | denied), without=None), scene)
    names = [name for name, value in head.given.items() if value not in UNSAID]  # not "not plain" either
    if not names or len(head.given) < 2:
        return None
    name = stream.choice(names)
    rest = {other: value for other, value in head.given.items() if other != name}
    return _with_head(expression, at, Match(**rest, without=(name, head.given[name])), scene)


def change_to_absent(expression: Meaning, scene: Scene, stream: Stream) -> Meaning | None:
    """Change an attribute in every phrase, as RefShapes does for expressions that refer to nothing."""
    heads = [change_attribute(phrase.head, scene, stream) for phrase in expression.phrases]
    pairs = zip(expression.phrases, heads, strict=True)
    phrases = tuple(replace(phrase, head=head) for phrase, head in pairs if head is not None)
    return Meaning(phrases) if len(phrases) == len(heads) else None


PROPOSALS: dict[str, Propose] = {
    "left-right": change_sides(("left", "right")),
    "above-below": change_sides(("top", "bottom")),
    "color": change_color,
    "number": change_number,
    "negation": change_negation,
    "absent": change_to_absent,
}


def with_heads(expression: Meaning, heads: Sequence[Head], scene: Scene) -> Meaning | None:
    """Replace the heads and adapt the counts ("the star" if there is one star). None if nothing changes."""
    phrases = []
    for phrase, head in zip(expression.phrases, heads, strict=True):
        number = len(head.judge(scene).ids)
        fits = number >= 2 if phrase.count is None else number == phrase.count
        phrases.append(Phrase(head, phrase.count if fits else 1 if number == 1 else None))
    changed = Meaning(tuple(phrases))
    return changed if changed != expression else None


def _with_head(expression: Meaning, at: int, head: Head, scene: Scene) -> Meaning | None:
    heads = [head if i == at else phrase.head for i, phrase in enumerate(expression.phrases)]
    return with_heads(expression, heads, scene)


def _recolored(match: Match, stream: Stream) -> Match:
    return replace(match, color=stream.choice([color for color in COLORS if color != match.color]))


def changed_meaning(
    expression: Meaning, kind: str, scene: Scene, stream: Stream, allows: Callable[[Meaning], bool]
) -> Meaning | None:
    """Propose changes until one has a clear meaning on the scene that differs from the expression's.

    The changed expression refers to nothing for the kind "absent", and to something for all other kinds.

    Returns:
        The changed meaning, or None if TRIES proposals give none.
    """
    before = expression.judge(scene).ids
    for _ in range(TRIES):
        changed = PROPOSALS[kind](expression, scene, stream)
        if changed is None or not all(phrase.head.of.sensible for phrase in changed.phrases):
            continue
        verdict = changed.judge(scene)
        wanted = verdict.ids != before and bool(verdict.ids) != (kind == "absent")
        if wanted and not verdict.unclear and allows(changed):
            return changed
    return None


# Words ----------------------------------------------------------------------------------------------------------------


def nearest_wording(expression: Meaning, text: str, stream: Stream) -> str:
    """Return the one of many wordings that differs from the text in the fewest words."""
    words = text.split()
    wordings = dict.fromkeys(text_of(realize(expression, stream)) for _ in range(WORDINGS))
    return min(wordings, key=lambda wording: edits(words, wording.split()))


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the Levenshtein distance of two lists of words."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


# Scenes ---------------------------------------------------------------------------------------------------------------


def preset_of(annotations: Path) -> Preset | None:
    """Return the preset that a RefShapes folder was made from.

    None for other data, and for folders of another generator version.
    """
    meta = annotations.parent / META
    if annotations.name != EXPRESSIONS or not meta.is_file():
        return None
    try:
        info = json.loads(meta.read_text(encoding="utf-8"))
        preset = PRESETS.get(info["preset"]["name"])
        identity = {key: info.get(key) for key in ("preset", "generator_version")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{meta} is damaged. Make the folder again with `refseg data refshapes`") from None
    return preset if preset is not None and preset.identity() == identity else None


_NAME = re.compile(r"(\w+)_(\d{6})\.png")


def pairs_of_scenes(preset: Preset, record: Record) -> Iterator[Pair]:
    """Yield, for each expression with a target, one pair of every kind that its meaning and scene allow."""
    file = _NAME.fullmatch(Path(record.image_path).name)
    if file is None or file[1] not in preset.images:
        raise DataError(f"{record.image_path} is no image of RefShapes {preset.name}")
    sample = make_image(preset, file[1], int(file[2]))
    size = (sample.scene.height, sample.scene.width)
    known = {expression.text: expression for expression in sample.expressions}
    rles = encode_masks(torch.from_numpy(sample.masks))
    allows = preset.rule(sample.split).allows

    def truth(meaning: Meaning) -> dict:
        return union_rle([rles[i] for i in meaning.judge(sample.scene).ids], size)

    for expression in record.expressions:
        name, text = expression.expression_id, expression.text
        if text not in known:
            raise DataError(
                f"expression {name} ({text!r}) is not what RefShapes {preset.name} says of {sample.name}: the file was "
                "changed; --rules changes words instead"
            )
        for number, kind in enumerate(KINDS if expression.referents else ()):
            stream, meaning = Stream(zlib.crc32(name.encode()), number), known[text].meaning
            changed = changed_meaning(meaning, kind, sample.scene, stream, allows)
            if changed is not None:
                changed_text = nearest_wording(changed, text, stream)
                yield Pair(kind, name, text, changed_text, truth(meaning), truth(changed))
