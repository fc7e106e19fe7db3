"""Choosing examples, judging them, and drawing them."""

import math
import random

import numpy as np
import pytest

from refseg.instance import Instance
from refseg.report.examples import (
    GROUPS,
    Example,
    choose_examples,
    contact_sheet,
    example_pictures,
)
from refseg.visualization.captions import caption
from refseg.visualization.instances import phrase_strip
from refseg.visualization.overlay import side_by_side


def _row(index, iou, *, no_target=False, rejected=False):
    return {
        "expression_id": f"{index:03d}",
        "iou": iou,
        "no_target": no_target,
        "rejected": rejected,
        "image_id": index,
    }


def _rows():
    """40 rows with a target, IoU 0.00 ... 0.39, and 20 without, every second of them rejected."""
    rows = [_row(index, index / 100) for index in range(40)]
    return rows + [_row(40 + index, float(index % 2), no_target=True, rejected=index % 2 == 1) for index in range(20)]


def _case(predicted, truth, iou, *, rejected=False):
    image = np.zeros((8, 8, 3), np.uint8)
    masks = [np.full((8, 8), value, bool) for value in (predicted, truth)]
    return Example(image, "a box", *masks, iou=iou, rejected=rejected, expression_id="7")


def test_groups():
    groups = choose_examples(_rows(), per_group=4)
    assert tuple(groups) == GROUPS
    assert {name: len(rows) for name, rows in groups.items()} == dict.fromkeys(GROUPS, 4) | {"several": 0}
    assert [row["iou"] for row in groups["worst"]] == [0.0, 0.01, 0.02, 0.03]
    assert [row["iou"] for row in groups["best"]] == [0.39, 0.38, 0.37, 0.36]
    assert sorted(row["rejected"] for row in groups["no-target"]) == [False, False, True, True]
    ids = [row["expression_id"] for rows in groups.values() for row in rows]
    assert len(set(ids)) == len(ids), "no row is in two groups"
    assert "image_id" in groups["random"][0], "the caller's own keys come back"


def test_choice_depends_on_the_seed_and_not_on_the_order():
    rows = _rows()
    shuffled = random.Random(3).sample(rows, len(rows))
    assert choose_examples(rows, seed=1) == choose_examples(shuffled, seed=1)
    assert choose_examples(rows, seed=1)["random"] != choose_examples(rows, seed=2)["random"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_rows(count):
    groups = choose_examples([_row(index, 0.5) for index in range(count)], per_group=8)
    assert sum(map(len, groups.values())) == count
    assert len(groups["worst"]) == count // 2


def test_no_iou_is_neither_best_nor_worst():
    groups = choose_examples([_row(0, math.nan), _row(1, 0.1), _row(2, 0.9)])
    assert [len(groups[name]) for name in ("worst", "best", "no-target", "random")] == [1, 1, 0, 1]
    assert math.isnan(groups["random"][0]["iou"])


def test_one_sided_no_target_rows_fill_the_group():
    rows = [_row(index, 0.0, no_target=True) for index in range(10)]
    assert len(choose_examples(rows, per_group=4)["no-target"]) == 4
    rows = [_row(index, 1.0, no_target=True, rejected=True) for index in range(10)]
    assert len(choose_examples(rows, per_group=4)["no-target"]) == 4


def _several_rows():
    """60 rows with several targets, IoU 0.20 ... 0.79, and as many with one."""
    rows = [_row(index, 0.2 + index / 100) | {"several": True} for index in range(60)]
    return rows + [_row(60 + index, 0.2 + index / 100) for index in range(60)]


def test_half_of_those_with_several_targets_are_found():
    groups = choose_examples(_several_rows(), per_group=6, found_all=lambda row: int(row["expression_id"]) % 2 == 0)
    assert len(groups["several"]) == 6 and all(row["several"] for row in groups["several"])
    assert [int(row["expression_id"]) % 2 for row in groups["several"]] == [0, 0, 0, 1, 1, 1]
    ids = [row["expression_id"] for rows in groups.values() for row in rows]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("answer", [True, False])
def test_few_rows_are_checked_for_several_targets(answer):
    checked = []
    groups = choose_examples(_several_rows(), per_group=5, found_all=lambda row: checked.append(row) or answer)
    assert len(groups["several"]) == 5 and len(checked) == 20


def test_several_targets_are_found_by_iou_by_default():
    rows = choose_examples(_several_rows(), per_group=6)["several"]
    assert [row["iou"] >= 0.5 for row in rows] == [True] * 3 + [False] * 3


def test_several_targets_do_not_change_other_groups():
    """The worst, best and no-target rows are the same with and without `several`."""
    rows = _rows()
    marked = [row | {"several": not row["no_target"]} for row in rows]
    plain, groups = choose_examples(rows, per_group=4), choose_examples(marked, per_group=4)
    for name in ("worst", "best", "no-target"):
        ids = [[row["expression_id"] for row in chosen[name]] for chosen in (plain, groups)]
        assert ids[0] == ids[1]


def test_missing_key_is_named():
    with pytest.raises(KeyError, match="no_target"):
        choose_examples([{"expression_id": "1", "iou": 0.0, "rejected": False}])


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


def test_wrong_mask_names_the_expression():
    with pytest.raises(ValueError, match="expression 7: predicted must be bool \\(8, 8\\)"):
        Example(np.zeros((8, 8, 3), np.uint8), "a", np.zeros((8, 9), bool), np.zeros((8, 8), bool), 0.0, False, "7")


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


def test_instances_are_in_the_picture_and_under_the_words():
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


def test_without_instances_a_cell_is_the_pair_of_panels():
    case = _case_with(())
    cell = side_by_side(case.image, case.predicted, case.ground_truth, text=case.text, iou=1.0, right=True)
    sheet = contact_sheet([case], margin=10)
    assert (sheet[10:-10, 10:-10] == cell).all()


def test_wrong_instance_names_the_expression():
    mask = np.zeros((40, 60), bool)
    with pytest.raises(ValueError, match="expression e: the mask of instance 1 must be bool \\(40, 60\\), not uint8"):
        _case_with([Instance(mask, 0.5), Instance(mask.astype(np.uint8), 0.5)])
    with pytest.raises(ValueError, match="expression e: instance 0 has 3 weights for 4 words"):
        _case_with([Instance(mask, 0.5, [0.1, 0.2, 0.3])])


def test_pictures_of_different_answers_differ():
    pictures = [example_pictures(case)[0].tobytes() for case in (_case(True, True, 1.0), _case(False, True, 0.0))]
    pictures.append(example_pictures(_case(False, True, 0.0, rejected=True))[0].tobytes())
    assert len(set(pictures)) == 3


def test_contact_sheet_is_a_grid():
    """5 equal cases in 3 columns: 2 rows; the last place of the second is white."""
    image = np.zeros((20, 20, 3), np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    case = Example(image, "a box", mask, mask, 1.0, False, "e")
    one, five = contact_sheet([case], margin=10), contact_sheet([case] * 5, margin=10)
    height, width = one.shape[0] - 10, one.shape[1] - 10
    assert five.shape == (2 * height + 10, 3 * width + 10, 3)
    assert np.array_equal(five[height : 2 * height, width : 2 * width], one[:height, :width])
    assert (five[height:, 2 * width + 10 :] == 255).all()
    with pytest.raises(ValueError, match="at least one example"):
        contact_sheet([])


def test_pictures_of_a_row_are_aligned():
    """One phrase needs more lines than the other: the two cells end on the same line."""
    short, long = _case_with(()), _case_with((), text="the red star " * 8)
    sheet, alone = contact_sheet([short, long], margin=10), contact_sheet([short], margin=10)
    height = alone.shape[0] - 20
    assert sheet.shape[0] > alone.shape[0]
    assert (sheet[-height - 10 : -10, 10 : alone.shape[1] - 10] == alone[10:-10, 10:-10]).all()
