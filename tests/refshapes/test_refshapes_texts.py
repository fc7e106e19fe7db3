"""Texts of expressions. An independent reader finds the same referents from the words alone."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.refshapes.draw import drop_hidden
from refseg.refshapes.grammar import ExpressionSpec, make_expressions
from refseg.refshapes.meaning import Match, Meaning, Most, Phrase, Relative
from refseg.refshapes.placement import random_scene
from refseg.refshapes.presets import PRESETS
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.skills import SKILLS
from refseg.refshapes.vocabulary import word_list
from refseg.refshapes.wording import ground_words, realize, text_of
from refshapes_reader import ANCHORED, MEANS, read


def sample(seed, preset="mini"):
    preset = PRESETS[preset]
    spec = preset.scene
    scene, _ = drop_hidden(random_scene(*preset.image_size, spec, Stream(seed, 0), preset.rule("train")), spec)
    return scene, make_expressions(scene, preset.expressions, Stream(seed, 1), preset.rule("train")) or []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mini", "base", "base", "hard"]))
def test_words_alone_give_the_same_referents(seed, preset):
    """A phrase about several shapes is in the plural, and its number is right."""
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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mini", "base", "hard"]))
def test_texts_and_word_indices(seed, preset):
    """Words are from the word list. The words of a referent or an anchor are true of it."""
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


def test_every_outcome_and_skill_occurs():
    """Of 720 expressions, 15 % refer to nothing and 25 % to several shapes (standard deviation 1.3 %)."""
    expressions = [expression for seed in range(120) for expression in sample(seed)[1]]
    skills = Counter(expression.skill for expression in expressions)
    assert set(skills) == {"attribute", "size", "position", "relation", "group", "negation", "no_target"}
    assert skills["no_target"] / len(expressions) == pytest.approx(0.15, abs=0.04)
    assert sum(len(e.referents) > 1 for e in expressions) / len(expressions) == pytest.approx(0.25, abs=0.04)
    assert {e.change for e in expressions} == {None, "attribute", "side", "order", "anchor"}


def test_every_skill_of_base_occurs():
    """No-target expressions come from nearly every skill."""
    expressions = [expression for seed in range(100) for expression in sample(seed, "base")[1]]
    skills = Counter(expression.skill for expression in expressions)
    assert set(skills) == set(SKILLS) | {"no_target"}
    assert min(skills.values()) >= 8
    assert {e.change for e in expressions} == {None, "attribute", "side", "order", "anchor", "rank"}
    forms = {e.form for e in expressions if e.skill == "no_target"}
    assert forms >= {"ordinal", "nearest", "behind", "inside", "pose", "relation"}


def test_no_expression_for_a_scene_without_variety(make_scene):
    """No expression about several shapes fits a scene with one shape."""
    scene = make_scene(("star", "red", "small", 20, 20))
    assert make_expressions(scene, ExpressionSpec(per_image=1, none_percent=0, several_percent=100), Stream(0)) is None


def test_grounding_by_hand(make_scene):
    """In every wording of "the star left of the red square", the indices point to the star's and the anchor's words."""
    scene = make_scene(("star", "blue", "small", 20, 50), ("square", "red", "large", 70, 50))
    expression = Meaning((Phrase(Relative(Match(kind="star"), "left", Match("square", "red"))),))
    texts = set()
    for seed in range(60):
        words = realize(expression, Stream(seed))
        texts.add(text_of(words))
        referents, anchors = ground_words(expression, words, scene)
        assert [words[i].text for i in referents[0]] == ["star"]
        assert [words[i].text for i in anchors[1]] in (["red", "square"], ["red", "box"])
    assert {"the star left of the red square", "star with the red box to its right"} <= texts
    assert len(texts) > 15


def test_grounding_of_a_union(make_scene):
    """The words of each phrase belong to the shapes of that phrase."""
    scene = make_scene(
        ("circle", "red", "small", 20, 20), ("circle", "red", "small", 20, 60), ("star", "blue", "small", 70, 60)
    )
    expression = Meaning((Phrase(Match("circle", "red"), 2), Phrase(Match("star"))))
    words = realize(expression, Stream(3))
    referents, _ = ground_words(expression, words, scene)
    words_of = {instance: [words[i].text for i in indices] for instance, indices in referents.items()}
    assert words_of[0] == words_of[1]
    assert words_of[0][0] == "red"
    assert words_of[2] == ["star"]


def test_no_target_expressions_have_no_grounded_words(make_scene):
    scene = make_scene(("circle", "red", "small", 20, 20))
    expression = Meaning((Phrase(Most(Match("star"), "left")),))
    assert ground_words(expression, realize(expression, Stream(0)), scene) == ({}, {})


def test_word_list_is_sorted_and_clean():
    words = word_list()
    assert words == sorted(set(words))
    assert all(re.fullmatch("[a-z]+", word) for word in words)
