"""The annotations of one image in the official layouts of the field, as plain values.

Each layout has the splits of the real data set and the fields of its refs file: a list in a pickle (REFER) or in JSON
(gRefCOCO). Each has an instances.json in COCO's form, with every instance of its images.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from refseg.refshapes.grammar import GroundedExpression, break_meaning
from refseg.refshapes.meaning import SIDES, Match, Meaning, Most, Ordinal, Phrase, Place, Rule, Verdict
from refseg.refshapes.presets import LONG_WORDS, NEGATIVES, GeneratedImage, Preset, stream_of
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import COLORS, KINDS, UNIT
from refseg.refshapes.wording import long_sentence, realize, text_of

Ref = dict[str, Any]
CATEGORY_IDS = {kind: i + 1 for i, kind in enumerate(KINDS)}

# Ids of sentences in one image. Those of refshapes.jsonl start at 0.
_PER_IMAGE, _LONG, _NEGATIVE = 1000, 300, 600
_LONG_PER_OBJECT = 2
_EMPTY_REF_EVERY = 12  # one image in 12 has a ref without sentences in gRefCOCO's layout
_NEGATIVES_PER_OBJECT = 2


def refcoco_refs(preset: Preset, image: GeneratedImage, *, with_positions: bool = True) -> list[Ref]:
    """Return the expressions about one instance, grouped by instance.

    Without positions, as in RefCOCO+, expressions about a place in the image are omitted. Relations to other shapes
    remain.
    """
    sentences: dict[int, list[dict[str, Any]]] = {}
    for k, expression in enumerate(image.expressions):
        if len(expression.referents) == 1 and (with_positions or not uses_position(expression)):
            sentences.setdefault(expression.referents[0], []).append(_sentence(image, k, expression.text))
    return [_ref(image, n, target, of_target) for n, (target, of_target) in enumerate(sentences.items())]


def refcocog_refs(preset: Preset, image: GeneratedImage) -> list[Ref]:
    """Return long sentences, at most two for each instance that an expression refers to."""
    stream = stream_of(preset, image.split, image.index, LONG_WORDS)
    rule = preset.rule(image.split)
    texts: dict[int, list[str]] = {}
    for expression in image.expressions:
        if len(expression.referents) == 1:
            of_target = texts.setdefault(expression.referents[0], [])
            if len(of_target) < _LONG_PER_OBJECT:
                text = long_sentence(expression.meaning, image.scene, stream, rule)
                if text is not None and text not in of_target:
                    of_target.append(text)
    numbers = itertools.count(_LONG)
    refs: list[Ref] = []
    for target, of_target in texts.items():
        if of_target:
            refs.append(_ref(image, len(refs), target, [_sentence(image, next(numbers), text) for text in of_target]))
    return refs


def grefcoco_refs(preset: Preset, image: GeneratedImage) -> list[Ref]:
    """Return all expressions, about one, several, or no instances; those about the same instances share a ref."""
    groups: dict[Any, list[int]] = {}  # no-target expressions have a group each
    for k, expression in enumerate(image.expressions):
        groups.setdefault(expression.referents or k, []).append(k)
    return [
        _group_ref(image, n, image.expressions[group[0]].referents, group) for n, group in enumerate(groups.values())
    ]


def released_grefcoco_refs(preset: Preset, image: GeneratedImage) -> list[Ref]:
    """Return the same with `no_target` and, in a few images, a ref without sentences, as in gRefCOCO's file."""
    refs = grefcoco_refs(preset, image)
    if image.index % _EMPTY_REF_EVERY == 1 and len(image.scene.shapes) > 1:
        refs.append(_group_ref(image, len(refs), (0, 1), []))
    return [ref | {"no_target": ref["ann_id"] == [-1]} for ref in refs]


def refzom_refs(preset: Preset, image: GeneratedImage) -> list[Ref]:
    """Return the same with ``source``, and with a bare id if there is one instance.

    The official reader looks up the annotations of every ref before it checks ``source``. No-target refs therefore name
    an annotation too: the image's first.
    """
    refs = grefcoco_refs(preset, image)
    for ref in refs:
        ref["source"] = "zero" if ref["ann_id"] == [-1] else "one" if len(ref["ann_id"]) == 1 else "many"
        if ref["source"] == "zero":
            ref |= {"ann_id": [image.annotation_id(0)], "category_id": [_category_id(image, 0)]}
        if ref["source"] == "one":
            ref |= {"ann_id": ref["ann_id"][0], "category_id": ref["category_id"][0]}
    return refs


def rrefcoco_refs(preset: Preset, image: GeneratedImage) -> list[Ref]:
    """Return RefCOCO's refs, each with one or two negatives: true sentences with one change that refer to nothing.

    If no true sentence of a ref can be changed, the negative changes its object's kind or color ("the red circle" ->
    "the blue circle"), because the official evaluator divides by the number of a ref's negatives.
    """
    stream = stream_of(preset, image.split, image.index, NEGATIVES)
    rule = preset.rule(image.split)
    refs = refcoco_refs(preset, image)
    texts = {expression.text for expression in image.expressions}
    numbers = itertools.count(_NEGATIVE)

    def add_negative(ref: Ref, text: str) -> None:
        texts.add(text)
        ref["sentences"].append(_sentence(image, next(numbers), text) | {"exist": False})
        ref["sent_ids"].append(ref["sentences"][-1]["sent_id"])

    for ref in refs:
        for sentence in ref["sentences"]:
            sentence["exist"] = True
        true_meanings = [image.expressions[i % _PER_IMAGE].meaning for i in ref["sent_ids"]]
        for _ in range(_NEGATIVES_PER_OBJECT):
            broken, _change = break_meaning(stream.choice(true_meanings), image.scene, stream, rule)
            text = text_of(realize(broken, stream)) if broken is not None else ""
            if text and text not in texts:
                add_negative(ref, text)
    # The remaining refs have their own streams, so that they leave the negatives above alone.
    for n, ref in enumerate(refs):
        if all(sentence["exist"] for sentence in ref["sentences"]):
            stream = stream_of(preset, image.split, image.index, NEGATIVES, n)
            add_negative(ref, _absent_pair(image, ref["ann_id"] - image.annotation_id(0), stream, rule, texts))
    return refs


def _absent_pair(image: GeneratedImage, instance: int, stream: Stream, rule: Rule, texts: set[str]) -> str:
    """Return a new text for a color and a kind, one of them the instance's, that no shape of the image combines."""
    shape = image.scene.shapes[instance]
    pairs = [(color, shape.kind) for color in COLORS] + [(shape.color, kind) for kind in KINDS]
    meanings = [Meaning((Phrase(Match(kind=kind, color=color)),)) for color, kind in pairs]
    absent = [meaning for meaning in meanings if meaning.judge(image.scene) == Verdict() and rule.allows(meaning)]
    for _ in range(100):
        text = text_of(realize(stream.choice(absent), stream)) if absent else ""
        if text and text not in texts:
            return text
    raise ValueError(f"image {image.name} shows every color and kind, so nothing is absent. Allow fewer shapes")


@dataclass(frozen=True)
class Layout:
    """The folder of one official layout."""

    folder: str
    refs_file: str
    splits: tuple[str, ...]  # those of the real data set
    refs: Callable[[Preset, GeneratedImage], list[Ref]]
    lists_rles: bool = False  # its official reader needs each RLE in a list of one


_REFCOCO = ("train", "val", "testA", "testB")
LAYOUTS = (
    Layout("refcoco", "refs(unc).p", _REFCOCO, refcoco_refs),
    Layout("refcoco+", "refs(unc).p", _REFCOCO, partial(refcoco_refs, with_positions=False)),
    Layout("refcocog", "refs(umd).p", ("train", "val", "test"), refcocog_refs),
    Layout("grefcoco", "grefs(unc).json", _REFCOCO, released_grefcoco_refs),
    Layout("ref-zom", "refs(final).p", ("train", "test"), refzom_refs, lists_rles=True),
    Layout("rrefcoco", "refs(unc).p", ("train", "val"), rrefcoco_refs, lists_rles=True),
)


def uses_position(expression: GroundedExpression) -> bool:
    """Return whether an expression names a place in the image, or a rank from one of its sides."""
    heads = [phrase.head for phrase in expression.meaning.phrases]
    return any(isinstance(h, Place | Ordinal) or (isinstance(h, Most) and h.end in SIDES) for h in heads)


def image_entry(image: GeneratedImage) -> dict[str, Any]:
    """Return the image's entry in instances.json."""
    return {
        "id": image.image_id,
        "file_name": image.file_name,
        "height": image.scene.height,
        "width": image.scene.width,
        "license": 1,
        "coco_url": "",
        "flickr_url": "",
        "date_captured": "",
    }


def annotation_entries(image: GeneratedImage, rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of all instances of the image in instances.json; COCO has no ``attributes``."""
    entries = []
    for shape, mask, rle in zip(image.scene.shapes, image.masks, rles, strict=True):
        entries.append(
            {
                "id": image.annotation_id(shape.id),
                "image_id": image.image_id,
                "category_id": CATEGORY_IDS[shape.kind],
                "bbox": mask_tools.toBbox(rle).tolist(),
                "segmentation": segmentation(mask, rle),
                "area": float(mask_tools.area(rle)),
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
    """Return the content of instances.json before its annotations and images."""
    return {
        "info": {"description": "RefShapes, a generated benchmark for referring segmentation"},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": [{"id": i, "name": kind, "supercategory": "shape"} for kind, i in CATEGORY_IDS.items()],
    }


# Parts of a ref -------------------------------------------------------------------------------------------------------


def _sentence(image: GeneratedImage, number: int, text: str) -> dict[str, Any]:
    return {"sent_id": image.image_id * _PER_IMAGE + number, "sent": text, "raw": text, "tokens": text.split()}


def _ref(image: GeneratedImage, number: int, target: int, sentences: list[dict[str, Any]]) -> Ref:
    """Return a ref. As in REFER, ``file_name`` is the name of no file; ``image_id`` identifies the image."""
    annotation = image.annotation_id(target)
    return {
        "ref_id": image.image_id * 100 + number,
        "ann_id": annotation,
        "image_id": image.image_id,
        "category_id": _category_id(image, target),
        "split": image.split,
        "file_name": f"{image.name}_{annotation}.png",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _group_ref(image: GeneratedImage, number: int, targets: Sequence[int], expressions: Iterable[int]) -> Ref:
    """Return gRefCOCO's ref: ids are lists, or [-1] if nothing is referred to, and ``file_name`` is the image's."""
    sentences = [_sentence(image, k, image.expressions[k].text) for k in expressions]
    return _ref(image, number, 0, sentences) | {
        "ann_id": [image.annotation_id(i) for i in targets] or [-1],
        "category_id": [_category_id(image, i) for i in targets] or [-1],
        "file_name": image.file_name,
    }


def _category_id(image: GeneratedImage, instance: int) -> int:
    return CATEGORY_IDS[image.scene.shapes[instance].kind]


# Masks as COCO stores them ------------------------------------------------------------------------------------------

Polygon = list[float]  # x, y, x, y, ...: corners of pixels


def trace(mask: np.ndarray) -> list[Polygon]:
    """Return the closed outlines of a mask (H, W): one for each part whose pixels share sides, and one for each hole.

    In each row of pixel corners, a horizontal side joins the first turning point to the second, the third to the
    fourth, and so on. Vertical sides do the same in each column. Where two pixels touch only at a corner, the corner
    is two turning points, ordered so that each belongs to one of the pixels.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    touching = (nw == se) & (ne == sw) & (nw != ne)  # (H + 1, W + 1)
    ys, xs = np.nonzero(((nw + ne + sw + se) % 2 == 1) | touching)
    twice = touching[ys, xs]
    ys, xs = np.repeat(ys, 1 + twice), np.repeat(xs, 1 + twice)
    # Nodes are sorted by y, then x: the order along rows. Of two equal ones, the second comes first in its column if
    # the pixels are NE and SW.
    second = np.zeros(len(ys), dtype=bool)
    second[1:] = (ys[1:] == ys[:-1]) & (xs[1:] == xs[:-1])
    place = np.where(second != (ne[ys, xs] == 1) & touching[ys, xs], 1, 0)
    columns = np.lexsort((place, ys, xs))
    beside = np.arange(len(ys)) ^ 1  # the partner in the row
    below = np.empty_like(beside)  # the partner in the column
    below[columns[0::2]], below[columns[1::2]] = columns[1::2], columns[0::2]
    xs, ys, beside, below = (nodes.tolist() for nodes in (xs, ys, beside, below))

    # Follow the sides, horizontal and vertical in turn, from each node that was not passed yet.
    passed = [False] * len(xs)
    loops = []
    for start in range(len(xs)):
        loop: Polygon = []
        node = start
        while not passed[node]:
            other = beside[node]
            passed[node] = passed[other] = True
            loop += [xs[node], ys[node], xs[other], ys[other]]
            node = below[other]
        if loop:
            loops.append(loop)
    return loops


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encode (N, H, W) bool masks as compressed COCO run lengths, with counts as str."""
    encoded = mask_tools.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def segmentation(mask: np.ndarray, rle: dict[str, Any]) -> list[Polygon] | dict[str, Any]:
    """Return polygons if pycocotools makes exactly the mask of them, else run lengths (for masks with holes)."""
    height, width = mask.shape
    polygons = trace(mask)
    if not polygons:
        return rle
    drawn = mask_tools.merge(mask_tools.frPyObjects(polygons, height, width))
    return polygons if drawn["counts"].decode("ascii") == rle["counts"] else rle
