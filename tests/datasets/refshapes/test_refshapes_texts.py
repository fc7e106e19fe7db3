"""Ground truth re-derived from the words alone, by a reader that shares no code with the grammar."""

import re
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.datasets.refshapes.arrange import random_scene
from refseg.datasets.refshapes.draw import drop_hidden, full_masks
from refseg.datasets.refshapes.grammar import ExpressionSpec, make_expressions
from refseg.datasets.refshapes.meaning import Expression, Match, Most, Phrase, Relative
from refseg.datasets.refshapes.presets import PRESETS
from refseg.datasets.refshapes.skills import SKILLS
from refseg.datasets.refshapes.stream import Stream
from refseg.datasets.refshapes.vocabulary import word_list
from refseg.datasets.refshapes.wording import ground_words, realise, text_of

ATTRIBUTES = {
    "kind": "circle:circle circles disc discs;square:square squares box boxes;triangle:triangle triangles;"
    "star:star stars;diamond:diamond diamonds rhombus rhombuses;cross:cross crosses plus pluses",
    "colour": "red:red;green:green;blue:blue;yellow:yellow;purple:purple violet;orange:orange;white:white;black:black",
    "size": "small:small tiny little;large:large big",
    "texture": "plain:plain;striped:striped stripy",
    "pose": "upright:upright;tilted:tilted slanted rotated",
}
MEANS = {
    word: (name, entry.split(":")[0])
    for name, table in ATTRIBUTES.items()
    for entry in table.split(";")
    for word in entry.split(":")[1].split()
}
SAYS_NOTHING = {"the", "a", "all", "both", "two", "three", "four", "every", "each"}
SAYS_NOTHING |= {"shape", "shapes", "object", "objects", "thing", "things", "one", "ones"}
SIZE_SIGN = {"largest": 1, "biggest": 1, "smallest": -1, "tiniest": -1}
SIDE_OF = {"upper": "top", "lower": "bottom", "leftmost": "left", "rightmost": "right", "topmost": "top"}
SIDE_OF |= {"highest": "top", "uppermost": "top", "bottommost": "bottom", "lowest": "bottom"}
SIDE_OF |= {side: side for side in ("left", "right", "top", "bottom")}
SUPERLATIVES = {"leftmost", "rightmost", "topmost", "highest", "uppermost", "bottommost", "lowest"}
RELATION = r"(?P<a>.+?) (?:to the )?(?P<r>left of|right of|above|higher than|below|under|lower than) (?P<b>.+)"
TURNED = (
    r"(?P<a>.+?) (?:with|that has) (?P<b>.+) (?P<r>(?:to|on) its right|(?:to|on) its left|below it|under it|above it)"
)
BEYOND = {  # dx, dy from anchor to target
    "left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "higher than": (0, -1), "below": (0, 1),
    "under": (0, 1), "lower than": (0, 1), "its right": (-1, 0), "its left": (1, 0), "below it": (0, -1),
    "under it": (0, -1), "above it": (0, 1),
}  # fmt: skip
ANCHORED = ("relation", "nearest", "inside", "behind")
RANKS = {"first": 1, "second": 2, "third": 3, "fourth": 4}
RANK = rf"(?P<r>{'|'.join(RANKS)})"
FROM = r"(?:counting )?from (?:the )?(?P<s>left|right|top|bottom)"
ORDINALS = (rf"(?:the )?{RANK} (?P<a>.+?) {FROM}", rf"(?P<a>.+?) {RANK} {FROM}")
NEAREST = (
    r"(?:the )?(?:nearest|closest) (?P<a>.+?) to (?P<b>.+)",
    r"(?P<a>.+?) (?:nearest to|closest to|nearest(?! the (?:top|bottom)$)) (?P<b>.+)",
)
DEPTH_WORDS = {
    "inside of": "inside", "inside": "inside", "within": "inside", "in": "inside", "partly behind": "behind",
    "behind": "behind", "partly hidden by": "behind", "in front of": "front", "partly covering": "front",
    "around it": "inside", "in front of it": "behind", "behind it": "front",
}  # fmt: skip
DEPTHS = (
    r"(?P<a>.+?) (?:with|that has) (?P<b>.+) (?P<r>around it|in front of it|behind it)",
    r"(?P<a>.+?) (?P<r>inside of|inside|within|in front of|in(?! the \w+ half)|partly behind|behind|partly hidden by"
    r"|partly covering) (?P<b>.+)",
)


def _covers(scene, over, under):
    """Whether one shape is drawn over another, and whether it is wholly within its outline."""
    full = full_masks(scene)
    both = full[over.id] & full[under.id]
    return over.id > under.id and both.any(), (both == full[over.id]).all()


def _has_depth(scene, shape, depth, anchor):
    if depth == "behind":
        return _covers(scene, anchor, shape) == (True, False)
    return _covers(scene, shape, anchor) == (True, depth == "inside")


def read_far(text, scene):
    """Phrases of the larger presets; None where it is not one."""
    for pattern in ORDINALS:
        if match := re.fullmatch(pattern, text):
            shapes = sorted(read_phrase(match["a"], scene), key=lambda s: -_toward(s, match["s"]))
            return shapes[RANKS[match["r"]] - 1 : RANKS[match["r"]]]
    for pattern in (*NEAREST, *DEPTHS):
        if match := re.fullmatch(pattern, text):
            (anchor,) = read_phrase(match["b"], scene) or [None]
            if anchor is None:
                return []
            others = [s for s in read_phrase(match["a"], scene) if s is not anchor]
            if pattern in NEAREST:
                return sorted(others, key=lambda s: (s.x - anchor.x) ** 2 + (s.y - anchor.y) ** 2)[:1]
            return [s for s in others if _has_depth(scene, s, DEPTH_WORDS[match["r"]], anchor)]
    return None


def _toward(shape, side):
    return {"left": -shape.x, "right": shape.x, "top": -shape.y, "bottom": shape.y}[side]


def _bigness(shape, sign):
    return sign * shape.radius


def _in_region(shape, sides, scene):
    middle = {"left": -scene.width, "right": scene.width, "top": -scene.height, "bottom": scene.height}
    return all(_toward(shape, side) > middle[side] * 8 for side in sides)


def read_phrase(text, scene):
    """The shapes that one noun phrase names."""
    if (far := read_far(text, scene)) is not None:
        return far
    for pattern in (TURNED, RELATION):
        if match := re.fullmatch(pattern, text):
            (anchor,) = read_phrase(match["b"], scene) or [None]
            if anchor is None:
                return []
            dx, dy = BEYOND[re.sub(r"^(to|on) ", "", match["r"])]
            beyond = [s for s in read_phrase(match["a"], scene) if (s.x - anchor.x) * dx + (s.y - anchor.y) * dy > 0]
            return [s for s in beyond if s is not anchor]
    if match := re.fullmatch(
        r"(.+) (?:on|in|at)(?: the)? ((?:left|right|top|bottom|upper|lower| )+)( side| half)?", text
    ):
        sides = [SIDE_OF[word] for word in match[2].split()]
        return [s for s in read_phrase(match[1], scene) if _in_region(s, sides, scene)]
    if match := re.fullmatch(r"(.+) (?:farthest|farthest to the|nearest the) (left|right|top|bottom)", text):
        return sorted(read_phrase(match[1], scene), key=lambda s: _toward(s, match[2]))[-1:]
    if match := re.fullmatch(r"(.+) (?:except|(?:that|which) (?:is|are) not) (.+)", text):
        excluded = read_phrase(match[2], scene)
        return [s for s in read_phrase(match[1], scene) if s not in excluded]
    if match := re.fullmatch(r"(.+) (?:that|which) (?:is|are) (.+)", text):
        return [s for s in read_phrase(match[1], scene) if s in read_phrase(match[2], scene)]
    if match := re.fullmatch(r"(.+) (with|without) stripes", text):
        return [s for s in read_phrase(match[1], scene) if (s.texture == "striped") == (match[2] == "with")]
    return read_words(text.split(), scene)


def read_words(words, scene):
    """Adjectives and a noun; a superlative ranks what the rest of the words leave."""
    shapes, rank, places = list(scene.shapes), None, []
    for before, word in zip([""] + words, words, strict=False):
        if word in MEANS:
            name, value = MEANS[word]
            shapes = [s for s in shapes if (getattr(s, name) == value) != (before == "non")]
        elif word in SUPERLATIVES:
            rank = partial(_toward, side=SIDE_OF[word])
        elif word in SIZE_SIGN:
            rank = partial(_bigness, sign=SIZE_SIGN[word])
        elif word in SIDE_OF:
            places.append(SIDE_OF[word])
        else:
            assert word in SAYS_NOTHING or word == "non", word
    shapes = [s for s in shapes if _in_region(s, places, scene)]
    return shapes if rank is None else sorted(shapes, key=rank)[-1:]


def read(text, scene):
    parts = re.split(r" (?:and also|and|as well as) ", text)
    return [s.id for part in parts for s in read_phrase(part, scene)], len(parts)


def sample(seed, preset="mini"):
    preset = PRESETS[preset]
    spec = preset.scene
    scene, _ = drop_hidden(random_scene(*preset.image_size, spec, Stream(seed, 0), preset.rule("train")), spec)
    return scene, make_expressions(scene, preset.expressions, Stream(seed, 1), preset.rule("train")) or []


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mini", "base", "base", "hard"]))
def test_words_alone_give_the_same_referents(seed, preset):
    """For every skill; and a singular phrase names one shape, not several."""
    scene, expressions = sample(seed, preset)
    for expression in expressions:
        ids, parts = read(expression.text, scene)
        assert sorted(ids) == list(expression.referents), (expression.text, scene)
        plural = re.match(r"(all|both|every|each|two|three|four|the (two|three|four)) ", expression.text)
        if parts == 1 and len(ids) > 1 and not plural:
            assert re.search(r"\w(s|es)\b", expression.text), expression.text
        numbers = re.findall(r"\b(two|three|four|both)\b", expression.text)
        if parts == 1 and ids and numbers:
            assert len(ids) == {"two": 2, "both": 2, "three": 3, "four": 4}[numbers[0]]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mini", "base", "hard"]))
def test_texts_and_word_indices(seed, preset):
    """Words are from the closed list; a referent's words are true of it and, but for "shape" and the like, name it."""
    closed = set(word_list())
    scene, expressions = sample(seed, preset)
    assert len({expression.text for expression in expressions}) == len(expressions)
    for expression in expressions:
        words = expression.text.split()
        assert words
        assert set(words) <= closed
        assert expression.text == " ".join(words)
        assert sorted(expression.words) == sorted(expression.referents)
        assert (expression.skill == "no_target") == (not expression.referents)
        assert not expression.anchors or expression.form in ANCHORED
        for table in (expression.words, expression.anchors):
            for instance, indices in table.items():
                assert indices
                assert all(0 <= i < len(words) for i in indices)
                for name, value in (MEANS[words[i]] for i in indices if words[i] in MEANS):
                    assert getattr(scene.shapes[instance], name) == value, expression.text


def test_every_outcome_and_skill_comes_up():
    """Of 200 scenes with 6 expressions each, 15 % refer to nothing and 25 % to several (standard deviation 1.3 %)."""
    found = [expression for seed in range(200) for expression in sample(seed)[1]]
    skills = Counter(expression.skill for expression in found)
    assert set(skills) == {"attribute", "size", "position", "relation", "group", "negation", "no_target"}
    assert skills["no_target"] / len(found) == pytest.approx(0.15, abs=0.04)
    assert sum(len(e.referents) > 1 for e in found) / len(found) == pytest.approx(0.25, abs=0.04)
    assert {e.change for e in found} == {None, "attribute", "side", "order", "anchor"}


def test_every_skill_of_base_comes_up():
    """In 100 scenes with 6 expressions each; and what refers to nothing comes from nearly every skill."""
    found = [expression for seed in range(100) for expression in sample(seed, "base")[1]]
    skills = Counter(expression.skill for expression in found)
    assert set(skills) == set(SKILLS) | {"no_target"}
    assert min(skills.values()) >= 8
    assert {e.change for e in found} == {None, "attribute", "side", "order", "anchor", "rank"}
    forms = {e.form for e in found if e.skill == "no_target"}
    assert forms >= {"ordinal", "nearest", "behind", "inside", "pose", "relation"}


def test_no_expression_for_a_scene_without_variety(make_scene):
    """One shape has no expression that refers to several."""
    scene = make_scene(("star", "red", "small", 20, 20))
    assert make_expressions(scene, ExpressionSpec(per_image=1, none_percent=0, several_percent=100), Stream(0)) is None


def test_grounding_by_hand(make_scene):
    """ "the star left of the red square": word 1 is the star's, words 5 and 6 are the anchor's; other wordings and
    synonyms move them, so the words at the indices are compared, not the indices."""
    scene = make_scene(("star", "blue", "small", 20, 50), ("square", "red", "large", 70, 50))
    expression = Expression((Phrase(Relative(Match(kind="star"), "left", Phrase(Match("square", "red")))),))
    texts = set()
    for seed in range(60):
        words = realise(expression, Stream(seed))
        texts.add(text_of(words))
        referents, anchors = ground_words(expression, words, scene)
        assert [words[i].text for i in referents[0]] == ["star"]
        assert [words[i].text for i in anchors[1]] in (["red", "square"], ["red", "box"])
    assert {"the star left of the red square", "star with the red box to its right"} <= texts
    assert len(texts) > 15


def test_grounding_of_a_union(make_scene):
    """Each part's words belong to the shapes of that part."""
    scene = make_scene(
        ("circle", "red", "small", 20, 20), ("circle", "red", "small", 20, 60), ("star", "blue", "small", 70, 60)
    )
    expression = Expression((Phrase(Match("circle", "red"), 2), Phrase(Match("star"))))
    words = realise(expression, Stream(3))
    referents, _ = ground_words(expression, words, scene)
    said = {instance: [words[i].text for i in indices] for instance, indices in referents.items()}
    assert said[0] == said[1]
    assert said[0][0] == "red"
    assert said[2] == ["star"]


def test_no_words_for_what_is_not_there(make_scene):
    scene = make_scene(("circle", "red", "small", 20, 20))
    expression = Expression((Phrase(Most(Match("star"), "left")),))
    assert ground_words(expression, realise(expression, Stream(0)), scene) == ({}, {})


def test_word_list_is_sorted_and_clean():
    words = word_list()
    assert words == sorted(set(words))
    assert all(re.fullmatch("[a-z]+", word) for word in words)
