"""Expressions by image."""

import pytest
import torch

from refseg.models.layers import Groups

COUNTS = [[2, 2], [1, 3], [3, 0, 1], [1], [1, 1, 1]]


@pytest.mark.parametrize("counts", COUNTS)
def test_ungroup_inverts_group(counts: list[int]) -> None:
    rows = torch.randn(sum(counts), 3, 4)
    groups = Groups(counts, "cpu")
    grouped = groups.group(rows)
    assert grouped.shape == (len(counts), max(counts) * 3, 4)
    torch.testing.assert_close(groups.ungroup(grouped), rows)


def test_group_by_hand() -> None:
    """One image with one expression (7), one with two (8, 9), of one row each: the first image's second place is 0."""
    grouped = Groups([1, 2], "cpu").group(torch.tensor([7.0, 8.0, 9.0])[:, None, None])
    assert grouped[..., 0].tolist() == [[7.0, 0.0], [8.0, 9.0]]


@pytest.mark.parametrize("counts", COUNTS)
def test_dot_uses_the_image_of_each_expression(counts: list[int]) -> None:
    groups = Groups(counts, "cpu")
    vectors, maps = torch.randn(sum(counts), 2, 5), torch.randn(len(counts), 5, 3, 4)
    wanted = torch.einsum("etc,echw->ethw", vectors, maps[groups.rows])
    torch.testing.assert_close(groups.dot(vectors, maps), wanted, atol=1e-5, rtol=1e-5)


def test_a_number_stands_for_expressions_with_rows_of_their_own() -> None:
    groups, rows = Groups(3, "cpu"), torch.randn(3, 2, 4)
    assert groups.group(rows).equal(rows) and groups.ungroup(rows).equal(rows)
    assert (groups.counts, groups.rows, groups.num_expressions) == ((1, 1, 1), [0, 1, 2], 3)
    assert not groups.by_image
