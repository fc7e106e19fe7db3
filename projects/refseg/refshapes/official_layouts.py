"""The annotations of one image in the official layouts of the field, as plain values.

Each layout has the splits that the real set has and the fields of its refs file: lists in a pickle (REFER) or in JSON
(gRefCOCO). All have an instances.json in COCO's form, with every instance of their images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refseg.refshapes.changes import break_expression
from refseg.refshapes.grammar import GroundedExpression
from refseg.refshapes.long_sentences import long_sentence
from refseg.refshapes.meaning import SIDES, Expression, Match, Most, Ordinal, Phrase, Place, Verdict
from refseg.refshapes.polygons import segmentation
from refseg.refshapes.presets import Preset
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.rules import Rule
from refseg.refshapes.sample import LONG_WORDS, NEGATIVES, Sample, stream_of
from refseg.refshapes.scene import COLORS, KINDS, UNIT
from refseg.refshapes.wording import realize, text_of

Ref = dict[str, Any]
CATEGORY_IDS = {kind: i + 1 for i, kind in enumerate(KINDS)}

# Ids of sentences in one image: those of refshapes.jsonl count from 0.
_PER_IMAGE, _LONG, _NEGATIVE = 1000, 300, 600
_LONG_PER_OBJECT = 2
_EMPTY_REF_EVERY = 12  # of so many images in a split, one has a ref without sentences in gRefCOCO's layout
_NEGATIVES_PER_OBJECT = 2


def refcoco_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """Expressions about one instance, grouped by the instance."""
    return _by_object(sample, _single(sample))


def refcoco_plus_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """The same without words about a place in the image; places beside other shapes may be told."""
    return _by_object(sample, [(k, e) for k, e in _single(sample) if not uses_position(e)])


def refcocog_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """Long sentences, two at most for each instance that an expression refers to."""
    stream = stream_of(preset, sample.split, sample.index, LONG_WORDS)
    rule = preset.rule(sample.split)
    texts: dict[int, list[str]] = {}
    for _, expression in _single(sample):
        (target,) = expression.referents
        said = texts.setdefault(target, [])
        text = long_sentence(expression.meaning, sample.scene, stream, rule) if len(said) < _LONG_PER_OBJECT else None
        if text is not None and text not in said:
            said.append(text)
    refs: list[Ref] = []
    number = _LONG
    for target, said in texts.items():
        if said:
            sentences = [_sentence(sample, number + i, text) for i, text in enumerate(said)]
            refs.append(_ref(sample, len(refs), target, sentences))
            number += len(said)
    return refs


def grefcoco_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """All expressions: one, several or no instances; those about the same instances share a ref."""
    groups: dict[Any, list[tuple[int, GroundedExpression]]] = {}
    for k, expression in enumerate(sample.expressions):
        groups.setdefault(expression.referents or f"nothing {k}", []).append((k, expression))
    refs: list[Ref] = []
    for group in groups.values():
        ids = group[0][1].referents
        ref = _ref(sample, len(refs), -1, [_sentence(sample, k, e.text) for k, e in group])
        ref["ann_id"] = [_annotation_id(sample, i) for i in ids] or [-1]
        ref["category_id"] = [_category_id(sample, i) for i in ids] or [-1]
        refs.append(ref | {"file_name": _file_name(sample)})
    return refs


def released_grefcoco_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """The same with `no_target` and, in a few images, a ref without sentences, both as in gRefCOCO's released file."""
    refs = grefcoco_refs(preset, sample)
    if sample.index % _EMPTY_REF_EVERY == 1 and len(sample.scene.shapes) > 1:
        ref = _ref(sample, len(refs), 0, []) | {"file_name": _file_name(sample)}
        ids = range(2)
        ref["ann_id"] = [_annotation_id(sample, i) for i in ids]
        ref["category_id"] = [_category_id(sample, i) for i in ids]
        refs.append(ref)
    return [ref | {"no_target": ref["ann_id"] == [-1]} for ref in refs]


def refzom_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """The same, with ``source``, and a bare id where there is one instance.

    The official reader looks up the annotations of every ref and then decides by ``source``. Refs to nothing therefore
    name an annotation too: the image's first.
    """
    refs = grefcoco_refs(preset, sample)
    for ref in refs:
        ref["source"] = "zero" if ref["ann_id"] == [-1] else "one" if len(ref["ann_id"]) == 1 else "many"
        if ref["source"] == "zero":
            ref |= {"ann_id": [_annotation_id(sample, 0)], "category_id": [_category_id(sample, 0)]}
        if ref["source"] == "one":
            ref |= {"ann_id": ref["ann_id"][0], "category_id": ref["category_id"][0]}
    return refs


def rrefcoco_refs(preset: Preset, sample: Sample) -> list[Ref]:
    """RefCOCO's refs, each with one or two sentences that refer to nothing in the image: true ones with one change.

    Where no true sentence of a ref can be changed so, its object's kind and color are ("the red circle" -> "the blue
    circle"): the official evaluator divides by the number of a ref's negatives.
    """
    stream = stream_of(preset, sample.split, sample.index, NEGATIVES)
    rule = preset.rule(sample.split)
    refs = refcoco_refs(preset, sample)
    texts = {expression.text for expression in sample.expressions}
    number = _NEGATIVE
    for ref in refs:
        for sentence in ref["sentences"]:
            sentence["exist"] = True
        right = [sample.expressions[i % _PER_IMAGE].meaning for i in ref["sent_ids"]]
        for _ in range(_NEGATIVES_PER_OBJECT):
            broken, _change = break_expression(stream.choice(right), sample.scene, stream, rule.allows)
            text = text_of(realize(broken, stream)) if broken is not None else ""
            if text and text not in texts:
                texts.add(text)
                _add_negative(ref, sample, number, text)
                number += 1
    # A stream of their own for the rest, so that they leave the negatives above alone.
    for n, ref in enumerate(refs):
        if all(sentence["exist"] for sentence in ref["sentences"]):
            rest = stream_of(preset, sample.split, sample.index, NEGATIVES, n)
            text = _absent_pair(sample, ref["ann_id"] - _annotation_id(sample, 0), rest, rule, texts)
            texts.add(text)
            _add_negative(ref, sample, number, text)
            number += 1
    return refs


def _absent_pair(sample: Sample, instance: int, stream: Stream, rule: Rule, texts: set[str]) -> str:
    """A new text for a color and a kind, one of them the instance's, that no shape of the image has together."""
    shape = sample.scene.shapes[instance]
    pairs = [(color, shape.kind) for color in COLORS] + [(shape.color, kind) for kind in KINDS]
    wrong = [Expression((Phrase(Match(kind=kind, color=color)),)) for color, kind in pairs]
    wrong = [each for each in wrong if each.judge(sample.scene) == Verdict() and rule.allows(each)]  # clearly none
    for _ in range(100):
        text = text_of(realize(stream.choice(wrong), stream)) if wrong else ""
        if text and text not in texts:
            return text
    raise ValueError(f"image {sample.name} shows every color and kind, so that nothing is absent: allow fewer shapes")


@dataclass(frozen=True)
class Layout:
    """One folder: its refs file, the splits that the real set has, and what goes into it."""

    folder: str
    refs_file: str
    splits: tuple[str, ...]
    refs: Callable[[Preset, Sample], list[Ref]]
    lists_rles: bool = False  # an RLE stands in a list of one, as its official reader needs it


_REFCOCO = ("train", "val", "testA", "testB")
LAYOUTS = (
    Layout("refcoco", "refs(unc).p", _REFCOCO, refcoco_refs),
    Layout("refcoco+", "refs(unc).p", _REFCOCO, refcoco_plus_refs),
    Layout("refcocog", "refs(umd).p", ("train", "val", "test"), refcocog_refs),
    Layout("grefcoco", "grefs(unc).json", _REFCOCO, released_grefcoco_refs),
    Layout("ref-zom", "refs(final).p", ("train", "test"), refzom_refs, lists_rles=True),
    Layout("rrefcoco", "refs(unc).p", ("train", "val"), rrefcoco_refs, lists_rles=True),
)


def uses_position(expression: GroundedExpression) -> bool:
    """Whether it tells a place in the image, or a rank from a side of it."""
    heads = [phrase.head for phrase in expression.meaning.phrases]
    return any(isinstance(h, Place | Ordinal) or (isinstance(h, Most) and h.end in SIDES) for h in heads)


def image_entry(sample: Sample) -> dict[str, Any]:
    """The image's entry in instances.json."""
    return {
        "id": sample.image_id,
        "file_name": _file_name(sample),
        "height": sample.scene.height,
        "width": sample.scene.width,
        "license": 1,
        "coco_url": "",
        "flickr_url": "",
        "date_captured": "",
    }


def annotation_entries(sample: Sample, rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of all instances of the image; ``attributes`` is ours."""
    entries = []
    for shape, mask, rle in zip(sample.scene.shapes, sample.masks, rles, strict=True):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)
        entries.append(
            {
                "id": _annotation_id(sample, shape.id),
                "image_id": sample.image_id,
                "category_id": CATEGORY_IDS[shape.kind],
                "bbox": [float(value) for value in box],
                "segmentation": segmentation(mask, rle),
                "area": float(np.count_nonzero(mask)),
                "iscrowd": 0,
                "attributes": {
                    "kind": shape.kind,
                    "colour": shape.color,
                    "size": shape.size,
                    "texture": shape.texture,
                    "pose": shape.pose,
                    "centre": [shape.x / UNIT, shape.y / UNIT],  # x, y in pixels
                    "radius": shape.radius / UNIT,
                },
            }
        )
    return entries


def instances_head() -> dict[str, Any]:
    """What instances.json says before its annotations and images."""
    return {
        "info": {"description": "RefShapes, a generated benchmark for referring segmentation"},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": [{"id": i, "name": kind, "supercategory": "shape"} for kind, i in CATEGORY_IDS.items()],
    }


# Parts of a ref -------------------------------------------------------------------------------------------------------


def _single(sample: Sample) -> list[tuple[int, GroundedExpression]]:
    """The expressions about one instance, with their places in the image's list."""
    return [(k, expression) for k, expression in enumerate(sample.expressions) if len(expression.referents) == 1]


def _by_object(sample: Sample, expressions: Iterable[tuple[int, GroundedExpression]]) -> list[Ref]:
    sentences: dict[int, list[dict[str, Any]]] = {}
    for k, expression in expressions:
        sentences.setdefault(expression.referents[0], []).append(_sentence(sample, k, expression.text))
    return [_ref(sample, n, target, said) for n, (target, said) in enumerate(sentences.items())]


def _sentence(sample: Sample, number: int, text: str) -> dict[str, Any]:
    return {"sent_id": sample.image_id * _PER_IMAGE + number, "sent": text, "raw": text, "tokens": text.split()}


def _ref(sample: Sample, number: int, target: int, sentences: list[dict[str, Any]]) -> Ref:
    """``file_name`` imitates REFER's, which is that of no file; ``image_id`` tells the image."""
    annotation = _annotation_id(sample, target)
    return {
        "ref_id": sample.image_id * 100 + number,
        "ann_id": annotation,
        "image_id": sample.image_id,
        "category_id": _category_id(sample, target),
        "split": sample.split,
        "file_name": f"{sample.name}_{annotation}.png",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _add_negative(ref: Ref, sample: Sample, number: int, text: str) -> None:
    ref["sentences"].append(_sentence(sample, number, text) | {"exist": False})
    ref["sent_ids"].append(ref["sentences"][-1]["sent_id"])


def _file_name(sample: Sample) -> str:
    return f"{sample.name}.png"


def _annotation_id(sample: Sample, instance: int) -> int:
    return sample.image_id * 100 + instance


def _category_id(sample: Sample, instance: int) -> int:
    return CATEGORY_IDS[sample.scene.shapes[instance].kind]
