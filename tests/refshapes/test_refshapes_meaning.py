"""Judgments of hand-made scenes, with answers derived by hand.

The image is 96 x 96. The margin is therefore 5.76 pixels, and the halves end at 48 -+ 7.68 pixels. Small radii are 8
pixels, large ones 14.
"""

import pytest

from refseg.refshapes.grammar import CHANGES, break_meaning, redundant
from refseg.refshapes.meaning import UNCLEAR, Match, Meaning, Most, Ordinal, Phrase, Place, Relative, Verdict
from refseg.refshapes.placement import random_scene
from refseg.refshapes.random_stream import Stream
from refseg.refshapes.scene import SceneSpec
from refseg.refshapes.skills import SKILLS, propose

RED_CIRCLE = Match(kind="circle", color="red")


def check(verdict, ids):
    """Compare a verdict with the expected ids, or with UNCLEAR."""
    assert verdict == (ids if ids is UNCLEAR else Verdict(ids))


@pytest.fixture
def scene(make_scene):
    return make_scene(
        ("circle", "red", "large", 20, 20),  # 0
        ("circle", "blue", "small", 75, 20),  # 1
        ("square", "red", "small", 20, 70, "striped"),  # 2
        ("star", "red", "small", 50, 72),  # 3
        ("star", "blue", "large", 78, 75),  # 4
    )


@pytest.mark.parametrize(
    "head, ids",
    [
        (Match(), (0, 1, 2, 3, 4)),
        (RED_CIRCLE, (0,)),
        (Match(color="red"), (0, 2, 3)),
        (Match(texture="striped"), (2,)),
        (Match(kind="star", size="small"), (3,)),
        (Match(kind="cross"), ()),
        (Match(kind="circle", without=("color", "red")), (1,)),
        (Match(color="red", without=("kind", "circle")), (2, 3)),
        (Most(Match(kind="circle"), "right"), (1,)),
        (Most(Match(), "right"), UNCLEAR),  # 78 against 75: less than the margin
        (Most(Match(kind="star"), "large"), (4,)),
        (Most(Match(size="small"), "large"), UNCLEAR),  # 8 against 8
        (Most(Match(kind="cross"), "left"), ()),
        (Most(Match(kind="square"), "left"), (2,)),  # the only one
        (Place(Match(kind="circle"), "left"), (0,)),
        (Place(Match(kind="star"), "right"), UNCLEAR),  # 3 is 2 pixels right of the middle
        (Place(Match(color="red"), "top"), (0,)),
        (Place(Match(color="blue"), "right"), (1, 4)),
        (Place(Match(color="blue"), "bottom right"), (4,)),
        (Place(Match(kind="square"), "right"), ()),  # one square, clearly on the left
        (Place(Match(color="blue"), "left"), UNCLEAR),  # two, none there: perhaps the leftmost is meant
    ],
)
def test_heads(scene, head, ids):
    check(head.judge(scene), ids)


@pytest.mark.parametrize(
    "of, side, anchor, ids",
    [
        (Match(kind="circle"), "left", Match(kind="circle", color="blue"), (0,)),  # the anchor is not beside itself
        (Match(kind="star"), "right", Match(kind="square"), (3, 4)),
        (Match(kind="star"), "left", Match(kind="square"), ()),
        (Match(kind="square"), "bottom", RED_CIRCLE, (2,)),
        (Match(kind="star"), "bottom", RED_CIRCLE, UNCLEAR),  # 4 is 58 to the right and only 55 below
        (Match(kind="star"), "right", Match(kind="cross"), ()),  # no cross at all
        (Match(kind="star"), "right", Match(kind="circle"), UNCLEAR),  # which circle?
        (Match(color="red"), "right", Match(kind="star", color="blue"), ()),
        (Match(color="blue", kind="circle"), "top", Match(color="blue", kind="star"), (1,)),
    ],
)
def test_relations(scene, of, side, anchor, ids):
    check(Relative(of, side, anchor).judge(scene), ids)


@pytest.mark.parametrize(
    "of, rank, side, ids",
    [
        (Match(color="red"), 1, "bottom", UNCLEAR),  # 72 against 70: less than the margin
        (Match(color="red"), 3, "bottom", (0,)),  # the tie is among those before it
        (Match(kind="star"), 2, "left", (4,)),
        (Match(kind="star"), 2, "right", (3,)),
        (Match(kind="star"), 3, "right", ()),  # there are two
        (Match(kind="cross"), 1, "left", ()),
        (Match(size="small"), 2, "left", (3,)),  # 20, 50, 75
        (Match(color="red"), 2, "left", UNCLEAR),  # 20, 20, 50: of the first two, neither is the second
        (Match(color="red"), 3, "left", (3,)),
        (Match(), 3, "left", (3,)),
        (Match(), 4, "left", UNCLEAR),  # 75 against 78
    ],
)
def test_ordinals(scene, of, rank, side, ids):
    check(Ordinal(of, rank, side).judge(scene), ids)


@pytest.mark.parametrize(
    "of, anchor, ids",
    [
        (Match(color="red"), Match(kind="star", color="blue"), (3,)),  # 28 away; the square 58
        (Match(kind="circle"), Match(kind="square"), (0,)),  # 50 away; the other 74
        (Match(kind="star"), Match(kind="square"), (3,)),
        (Match(size="small"), RED_CIRCLE, UNCLEAR),  # 50 and 55: less than the margin of 5.76
        (Match(kind="square"), RED_CIRCLE, (2,)),  # the only one
        (Match(kind="cross"), RED_CIRCLE, ()),
        (Match(kind="star"), Match(kind="cross"), ()),
        (Match(kind="star"), Match(kind="circle"), UNCLEAR),  # which circle?
    ],
)
def test_nearest(scene, of, anchor, ids):
    check(Relative(of, "nearest", anchor).judge(scene), ids)


@pytest.mark.parametrize("x, ids", [(63, UNCLEAR), (67, (1,))])
def test_nearest_shape_also_has_the_smallest_gap(make_scene, x, ids):
    """The small star's center is 34 from the circle's, and its edge 26. The large one's are 39 and 25 at x = 63, within
    the margin of 5.76; at x = 67 they are 43 and 29, farther in both."""
    scene = make_scene(
        ("circle", "red", "small", 24, 48), ("star", "blue", "small", 24, 82), ("star", "red", "large", x, 48)
    )
    check(Relative(Match(kind="star"), "nearest", Match(kind="circle")).judge(scene), ids)


def test_nearest_center_with_a_larger_gap_is_unclear(make_scene):
    """The huge star's center is 42 away and its edge 18; the small one's 34 and 26: it leads by its center only."""
    scene = make_scene(
        ("circle", "red", "small", 24, 48), ("star", "blue", "small", 24, 82), ("star", "red", "huge", 66, 48)
    )
    check(Relative(Match(kind="star"), "nearest", Match(kind="circle")).judge(scene), UNCLEAR)


@pytest.mark.parametrize(
    "row, depth, ids",
    [
        (("star", "blue", "small", 50, 50), "inside", (1,)),
        (("star", "red", "small", 50, 50), "inside", UNCLEAR),  # red on red is invisible
        (("star", "blue", "small", 30, 50), "inside", UNCLEAR),  # half of it is inside
        (("star", "blue", "small", 12, 12), "inside", ()),
        (("square", "blue", "large", 28, 50), "front", (1,)),
        (("square", "blue", "large", 28, 50), "behind", ()),
        (("square", "red", "large", 28, 50), "front", UNCLEAR),  # one red shape or two?
        (("square", "blue", "small", 21, 50), "front", UNCLEAR),  # hides less than a tenth
        (("star", "blue", "small", 50, 50), "front", UNCLEAR),  # people may say that it is on the circle
        (("star", "blue", "small", 12, 12), "front", ()),
    ],
)
def test_depths(make_scene, row, depth, ids):
    """A circle of radius 24 at (48, 48); the later shape lies on it. The large square reaches 11.9 from its center: at
    x = 28 it covers the circle's columns from 24 to 39.9, far more than a tenth of it. The small one, 6.8, at x = 21
    covers columns 24 to 27.8 where the circle has few pixels."""
    scene = make_scene(("circle", "red", "huge", 48, 48), row)
    check(Relative(Match(kind=row[0]), depth, Match(kind="circle")).judge(scene), ids)


def test_depths_are_not_symmetric(make_scene):
    """The circle around the star is not inside it. A covered circle is behind, and not in front."""
    around = make_scene(("circle", "red", "huge", 48, 48), ("star", "blue", "small", 50, 50))
    star, circle = Match(kind="star"), Match(kind="circle")
    check(Relative(circle, "inside", star).judge(around), ())
    check(Relative(circle, "behind", star).judge(around), UNCLEAR)  # people may or may not call it "behind"
    covered = make_scene(("circle", "red", "huge", 48, 48), ("star", "blue", "large", 28, 50))
    check(Relative(circle, "behind", star).judge(covered), (0,))
    check(Relative(circle, "front", star).judge(covered), ())


def test_no_side_relation_to_a_surrounding_shape(make_scene):
    """The star is 14 pixels left of the center of the circle around it, but not "left of the circle"."""
    scene = make_scene(("circle", "red", "huge", 48, 48), ("star", "blue", "small", 34, 48))
    check(Relative(Match(kind="star"), "left", Match(kind="circle")).judge(scene), UNCLEAR)
    check(Relative(Match(kind="star"), "nearest", Match(kind="circle")).judge(scene), UNCLEAR)


@pytest.mark.parametrize(
    "kind, angle, pose",
    [
        ("square", 1, "upright"),
        ("square", -7, "tilted"),
        ("star", 8, "tilted"),
        ("cross", 3, None),
        ("circle", 7, None),
    ],
)
def test_pose(make_scene, kind, angle, pose):
    shape = make_scene((kind, "red", "small", 48, 48, "plain", angle)).shapes[0]
    assert shape.pose == pose


@pytest.mark.parametrize(
    "match, sensible",
    [
        (Match(kind="star", pose="upright"), True),
        (Match(color="red", pose="tilted"), True),
        (Match(color="red", pose="upright"), False),  # are circles upright?
        (Match(kind="circle", pose="tilted"), False),
        (Match(kind="circle", without=("pose", "tilted")), False),
        (Match(kind="circle", without=("color", "red")), True),
    ],
)
def test_sensible_poses(match, sensible):
    assert match.sensible == sensible


@pytest.mark.parametrize("x, ids", [(27, (0,)), (25, UNCLEAR), (25.9, UNCLEAR)])
def test_leftmost_shape_also_has_the_leftmost_edge(make_scene, x, ids):
    """The small circle's center is at 20 and its edge at 12. A large one at 27 has its edge at 13: second in both. At
    25 its center is within the margin of 5.76; at 25.9 it is not, but its edge, at 11.9, is then the first."""
    scene = make_scene(("circle", "red", "small", 20, 20), ("circle", "blue", "large", x, 60))
    check(Most(Match(), "left").judge(scene), ids)


@pytest.mark.parametrize(
    "phrases, ids",
    [
        ([Phrase(RED_CIRCLE)], (0,)),
        ([Phrase(Match(kind="circle"))], UNCLEAR),  # "the circle": there are two
        ([Phrase(Match(kind="circle"), 2)], (0, 1)),
        ([Phrase(Match(color="red"), 2)], UNCLEAR),  # "the two red shapes": there are three
        ([Phrase(Match(kind="cross"), 2)], ()),
        ([Phrase(Match(kind="star"), None)], (3, 4)),
        ([Phrase(Match(kind="square"), None)], UNCLEAR),  # "all squares": there is one
        ([Phrase(Match(kind="circle"), 2), Phrase(Match(kind="square"))], (0, 1, 2)),
        ([Phrase(Match(kind="circle"), 2), Phrase(Match(kind="cross"))], UNCLEAR),  # no cross
        ([Phrase(Match(kind="diamond")), Phrase(Match(kind="cross"))], ()),
        ([Phrase(RED_CIRCLE), Phrase(Match(color="red"), 3)], UNCLEAR),  # overlap
    ],
)
def test_meanings(scene, phrases, ids):
    check(Meaning(tuple(phrases)).judge(scene), ids)


def test_redundant(scene):
    def is_redundant(head, count=1):
        return redundant(Meaning((Phrase(head, count),)), scene)

    assert is_redundant(Place(RED_CIRCLE, "left"))
    assert not is_redundant(Place(Match(kind="circle"), "left"))
    assert is_redundant(Match(kind="square", size="small"))
    assert is_redundant(Match(kind="square", pose="upright"))
    assert is_redundant(Ordinal(RED_CIRCLE, 1, "left"))
    assert not is_redundant(Relative(Match(kind="star"), "nearest", RED_CIRCLE))
    assert not is_redundant(Match(kind="star", size="small"))
    assert not is_redundant(RED_CIRCLE)


@pytest.mark.parametrize(
    "name, head, changed",
    [
        ("side", Place(Match(kind="square"), "left"), Place(Match(kind="square"), "right")),
        (
            "side",
            Relative(Match(kind="star"), "right", RED_CIRCLE),
            Relative(Match(kind="star"), "left", RED_CIRCLE),
        ),
        (
            "order",
            Relative(Match(kind="square"), "bottom", RED_CIRCLE),
            Relative(RED_CIRCLE, "bottom", Match(kind="square")),
        ),
        ("side", Relative(RED_CIRCLE, "inside", Match(kind="star")), None),
        (
            "side",
            Relative(RED_CIRCLE, "behind", Match(kind="star")),
            Relative(RED_CIRCLE, "front", Match(kind="star")),
        ),
        (
            "order",
            Relative(RED_CIRCLE, "inside", Match(kind="star")),
            Relative(Match(kind="star"), "inside", RED_CIRCLE),
        ),
        ("rank", Ordinal(RED_CIRCLE, 3, "left"), Ordinal(RED_CIRCLE, 4, "left")),
        ("rank", Ordinal(RED_CIRCLE, 4, "left"), None),
        ("rank", RED_CIRCLE, None),
        ("side", RED_CIRCLE, None),
        ("order", Place(RED_CIRCLE, "left"), None),
        ("anchor", RED_CIRCLE, None),
        ("attribute", Most(Match(), "left"), None),
    ],
)
def test_changes(scene, name, head, changed):
    assert CHANGES[name](head, scene, Stream(0)) == changed


@pytest.mark.parametrize("seed", range(5))
def test_attribute_change_changes_one_attribute(scene, seed):
    changed = CHANGES["attribute"](RED_CIRCLE, scene, Stream(seed))
    assert (changed.kind == "circle") != (changed.color == "red")
    assert (changed.size, changed.texture, changed.without) == (None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_broken_meanings_refer_to_nothing(scene, seed):
    meaning = Meaning((Phrase(Relative(Match(kind="square"), "bottom", RED_CIRCLE)),))
    broken, name = break_meaning(meaning, scene, Stream(seed))
    assert name in CHANGES
    assert broken.judge(scene).ids == ()
    assert not broken.judge(scene).unclear


def test_meaning_that_cannot_be_broken(make_scene):
    """ "The leftmost shape" has no attribute that could be changed."""
    expression = Meaning((Phrase(Most(Match(), "left")),))
    assert break_meaning(expression, make_scene(("star", "red", "small", 20, 20)), Stream(0)) == (None, None)


@pytest.mark.parametrize("skill", SKILLS)
def test_skills_accept_a_scene_with_one_shape(make_scene, skill):
    scene = make_scene(("star", "red", "small", 20, 20))
    for seed in range(20):
        propose(skill, scene, Stream(seed), False)


def test_most_scenes_have_twins():
    """Scenes have few kinds and colors, so most of them have two shapes of the same kind and color."""
    twins = 0
    for seed in range(50):
        looks = [(shape.kind, shape.color) for shape in random_scene(96, 96, SceneSpec(), Stream(seed)).shapes]
        twins += len(set(looks)) < len(looks)
    assert twins >= 35
