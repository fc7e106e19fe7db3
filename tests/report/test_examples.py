"""Choosing examples, judging them, and drawing them."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from refseg.instance import Instance
from refseg.report.examples import GROUPS, Candidate, Example, choose_examples, contact_sheet, example_pictures
from refseg.visualization.captions import caption
from refseg.visualization.instances import phrase_strip


def _candidate(index, iou, **changes):
    return Candidate(f"{index:03d}", iou, **changes)


def _candidates():
    """Return 40 candidates with a target, IoU 0.00 ... 0.39, and 20 without, every second of them rejected."""
    some = [_candidate(index, index / 100) for index in range(40)]
    return some + [_candidate(40 + i, float(i % 2), no_target=True, rejected=i % 2 == 1) for i in range(20)]


def test_groups():
    groups = choose_examples(_candidates(), per_group=4)
    assert tuple(groups) == GROUPS
    assert {name: len(members) for name, members in groups.items()} == dict.fromkeys(GROUPS, 4) | {"several": 0}
    assert [one.iou for one in groups["worst"]] == [0.0, 0.01, 0.02, 0.03]
    assert [one.iou for one in groups["best"]] == [0.39, 0.38, 0.37, 0.36]
    assert sorted(one.rejected for one in groups["no-target"]) == [False, False, True, True]
    ids = [one.expression_id for members in groups.values() for one in members]
    assert len(set(ids)) == len(ids), "no candidate is in two groups"


def test_choice_depends_on_the_seed_and_not_on_the_order():
    candidates = _candidates()
    shuffled = random.Random(3).sample(candidates, len(candidates))
    assert choose_examples(candidates, seed=1) == choose_examples(shuffled, seed=1)
    assert choose_examples(candidates, seed=1)["random"] != choose_examples(candidates, seed=2)["random"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_candidates(count):
    groups = choose_examples([_candidate(index, 0.5) for index in range(count)], per_group=8)
    assert sum(map(len, groups.values())) == count
    assert len(groups["worst"]) == count // 2


def test_candidate_without_iou_is_neither_best_nor_worst():
    groups = choose_examples([_candidate(0, math.nan), _candidate(1, 0.1), _candidate(2, 0.9)])
    assert [len(groups[name]) for name in ("worst", "best", "no-target", "random")] == [1, 1, 0, 1]
    assert math.isnan(groups["random"][0].iou)


@pytest.mark.parametrize("rejected", [False, True])
def test_no_target_candidates_of_one_kind_fill_the_group(rejected):
    candidates = [_candidate(index, float(rejected), no_target=True, rejected=rejected) for index in range(10)]
    assert len(choose_examples(candidates, per_group=4)["no-target"]) == 4


@pytest.mark.parametrize(
    ("num_found", "expected"), [(30, [True] * 3 + [False] * 2), (0, [False] * 5), (60, [True] * 5)]
)
def test_half_of_those_with_several_targets_are_found(num_found, expected):
    """60 candidates have several targets, and as many have one."""
    candidates = [_candidate(i, 0.2 + i / 100, several=True, found_all=i < num_found) for i in range(60)]
    candidates += [_candidate(60 + i, 0.2 + i / 100) for i in range(60)]
    groups = choose_examples(candidates, per_group=5)
    assert all(one.several for one in groups["several"])
    assert [one.found_all for one in groups["several"]] == expected
    ids = [one.expression_id for members in groups.values() for one in members]
    assert len(set(ids)) == len(ids)


def test_several_targets_do_not_change_other_groups():
    """The worst, best and no-target candidates are the same with and without `several`."""
    candidates = _candidates()
    marked = [replace(one, several=not one.no_target) for one in candidates]
    plain, groups = choose_examples(candidates, per_group=4), choose_examples(marked, per_group=4)
    for name in ("worst", "best", "no-target"):
        ids = [[one.expression_id for one in chosen[name]] for chosen in (plain, groups)]
        assert ids[0] == ids[1]


def _case(predicted, truth, iou, *, rejected=False, size=(8, 8)):
    """Return an example whose masks are full or empty."""
    masks = [np.full(size, value, bool) for value in (predicted, truth)]
    return Example(np.zeros((*size, 3), np.uint8), "a box", *masks, iou=iou, rejected=rejected, expression_id="7")


@pytest.mark.parametrize(
    ("case", "right"),
    [
        (_case(True, True, 0.5), True),
        (_case(True, True, 0.49), False),
        (_case(True, True, math.nan), False),
        (_case(True, True, 0.9, rejected=True), False),
        (_case(True, False, 0.0), False),
        (_case(True, False, 0.0, rejected=True), True),
        (_case(False, False, 1.0), True),
    ],
)
def test_right(case, right):
    assert case.right is right


def _case_with(instances, *, text="red star and circle", **changes):
    image = np.full((40, 60, 3), 120, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[5:20, 5:20] = mask[20:35, 30:50] = True
    arguments = {"iou": 1.0, "rejected": False, "expression_id": "e", "instances": instances} | changes
    return Example(image, text, arguments.pop("predicted", mask), mask, **arguments)


def _two_instances():
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:20, 5:20] = masks[1, 20:35, 30:50] = True
    weights = [[0.5, 0.4, 0.0, 0.1], [0.1, 0.1, 0.1, 0.7]]
    return [Instance(mask, 0.9, words) for mask, words in zip(masks, weights, strict=True)]


def _strip(case):
    return phrase_strip(case.text, case.shown_instances, 400)


def test_instances_in_the_picture_and_under_the_words():
    plain, case = _case_with(()), _case_with(_two_instances())
    assert case.owners == [(0,), (0,), (), (1,)] and plain.owners == [()] * 4
    pictures = [example_pictures(c) for c in (plain, case)]
    assert (pictures[0][0] != pictures[1][0]).any() and (pictures[0][1] == pictures[1][1]).all()
    assert _strip(case).shape[0] > _strip(plain).shape[0]
    wordless = _case_with([Instance(instance.mask, 0.9) for instance in case.instances])
    assert (_strip(wordless) == caption(case.text, 400, quoted=True)).all()
    assert (example_pictures(wordless)[0] == pictures[1][0]).all()


@pytest.mark.parametrize("changes", [{"rejected": True}, {"predicted": np.zeros((40, 60), bool)}])
def test_empty_answers_show_no_instances(changes):
    cases = [_case_with(instances, **changes) for instances in ((), _two_instances())]
    assert contact_sheet(cases[:1]).tobytes() == contact_sheet(cases[1:]).tobytes()


def test_pictures_of_different_answers_differ():
    pictures = [example_pictures(case)[0].tobytes() for case in (_case(True, True, 1.0), _case(False, True, 0.0))]
    pictures.append(example_pictures(_case(False, True, 0.0, rejected=True))[0].tobytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (96, 96), (30, 200), (700, 500)])
@pytest.mark.parametrize("truth", [True, False])
def test_contact_sheet_at_any_size(size, truth):
    """Images are in the sheet as `example_pictures` draws them, with their names below."""
    case = replace(_case(False, truth, 0.5, size=size), text="the " * 60)
    sheet, (prediction, _) = contact_sheet([case]), example_pictures(case)
    height, width = prediction.shape[:2]
    name_height = caption("ground truth", max(160, width), size=max(14, min(20, max(160, width) // 20))).shape[0]
    bottom = sheet.shape[0] - 16 - name_height
    assert sheet.shape[1] >= 2 * 160 and sheet.dtype == np.uint8
    assert (sheet[bottom - height : bottom, 16 : 16 + width] == prediction).all()


def test_contact_sheet_is_a_grid():
    """5 equal cases in 3 columns: 2 rows; the last place of the second is white."""
    case = _case(True, True, 1.0, size=(20, 20))
    one, five = contact_sheet([case]), contact_sheet([case] * 5)
    height, width = one.shape[0] - 16, one.shape[1] - 16
    assert five.shape == (2 * height + 16, 3 * width + 16, 3)
    assert np.array_equal(five[height : 2 * height, width : 2 * width], one[:height, :width])
    assert (five[height:, 2 * width + 16 :] == 255).all()
    with pytest.raises(ValueError, match="at least one example"):
        contact_sheet([])


def test_pictures_of_a_row_are_aligned():
    """One phrase needs more lines than the other. The two cells end on the same line."""
    short, long = _case_with(()), _case_with((), text="the red star " * 8)
    sheet, alone = contact_sheet([short, long]), contact_sheet([short])
    height = alone.shape[0] - 32
    assert sheet.shape[0] > alone.shape[0]
    assert (sheet[-height - 16 : -16, 16 : alone.shape[1] - 16] == alone[16:-16, 16:-16]).all()
