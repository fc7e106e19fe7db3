import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refseg.datasets.readers.checks import BadEntry, clean_rle, clean_segmentation, decode_runs, sound_rles

SIZE = (4, 6)
SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def pixels(segmentation: object) -> np.ndarray:
    return coco_mask.decode(segmentation).astype(bool)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200), st.integers(1, 40))
def test_decode_runs(bits: list[int], repeat: int) -> None:
    """Runs are the lengths of alternating zeros and ones, starting with zeros, column by column."""
    flat = np.repeat(bits, repeat)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    expected = runs if flat[0] == 0 else [0, *runs]
    assert decode_runs(encode(flat[:, None])["counts"]).tolist() == expected


def test_all_forms_of_rle_become_compressed() -> None:
    mask = np.zeros(SIZE, bool)
    mask[1:3, 2:5] = True
    compressed = encode(mask)
    as_text = {"size": list(SIZE), "counts": compressed["counts"].decode()}
    # Columns of height 4: 8 zeros, then 1 zero, 2 ones, 2 zeros, 2 ones, 2 zeros, 2 ones, and 1 + 4 zeros.
    uncompressed = {"size": list(SIZE), "counts": [9, 2, 2, 2, 2, 2, 5]}
    for form in (compressed, as_text, uncompressed, [as_text]):
        cleaned = clean_segmentation(form, SIZE)
        assert isinstance(cleaned["counts"], bytes)
        assert (pixels(cleaned) == mask).all()


def test_list_of_rles_is_their_union() -> None:
    left, right = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    left[:, :3], right[:, 2:5] = True, True
    assert (pixels(clean_segmentation([encode(left), encode(right)], SIZE)) == (left | right)).all()


def test_polygons_without_area_are_dropped() -> None:
    assert clean_segmentation([[1, 1, 2, 2], SQUARE, [1, 1, 2, 2, 3]], SIZE) == [SQUARE]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, "no polygons and no RLE"),
        ([], "no polygons and no RLE"),
        ("text", "no polygons and no RLE"),
        ([[1, 1, 2, 2]], "no polygon has 3 points"),
        (SQUARE, "a polygon is a flat list"),
        ([["a"] * 6], "a polygon is a flat list"),
        ([[1, 1, 2, 2, float("nan"), 3]], "not finite"),
        ([[1, 1, 2, 2, 61, 3]], "far outside"),
        ({"counts": "abc"}, "has size and counts"),
        ({"size": [6, 4], "counts": [24]}, r"an RLE of size \[6, 4\] in an image of size \[4, 6\]"),
        ({"size": [4, 6], "counts": [23]}, "do not add up to 4 x 6"),
        ({"size": [4, 6], "counts": [30, -6]}, "do not add up"),
        ({"size": [4, 6], "counts": [1.5]}, "whole numbers"),
        ({"size": [4, 6], "counts": ""}, "not COCO's compressed form"),
        ({"size": [4, 6], "counts": "\x10\xff"}, "not COCO's compressed form"),
        ({"size": [4, 6], "counts": "zzzz"}, "not COCO's compressed form"),
        ({"size": [4, 6], "counts": "8"}, "do not add up"),
        ({"size": [4, 6], "counts": [25, -1]}, "do not add up"),
        ({"size": [4, 6], "counts": []}, "whole numbers"),
        ({"size": [4, 6], "counts": 7}, "a string or a list"),
    ],
)
def test_values_unsafe_for_c_code_are_rejected(bad: object, says: str) -> None:
    """pycocotools reads uninitialized memory if runs end early, and beyond its arrays if they go on."""
    with pytest.raises(ValueError, match=says):
        clean_segmentation(bad, SIZE)


def compressed(runs: list[int]) -> str:
    """Return COCO's string of runs, which may be invalid."""
    out = []
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            out.append(chr(48 + digit + 32 * more))
    return "".join(out)


@st.composite
def any_runs(draw: st.DrawFn) -> tuple[tuple[int, int], list[int]]:
    """Draw runs that add up to an image's pixels, with runs of 0 anywhere."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cuts = sorted(draw(st.lists(st.integers(0, height * width), max_size=12)))
    runs = np.diff([0, *cuts, height * width]).tolist()
    zeros = [0] * draw(st.integers(0, 2 * height * width))
    place = draw(st.integers(0, len(runs)))
    return (height, width), runs[:place] + zeros + runs[place:]


@given(any_runs())
def test_runs_of_zero_are_joined(case: tuple[tuple[int, int], list[int]]) -> None:
    """An RLE with runs of 0 becomes the string that pycocotools returns for its pixels."""
    size, runs = case
    state = np.arange(len(runs)) % 2
    mask = np.repeat(state, runs).reshape(size, order="F").astype(bool)
    for counts in (runs, compressed(runs)):
        cleaned = clean_rle({"size": list(size), "counts": counts}, size)
        assert cleaned == encode(mask)
        assert (pixels(cleaned) == mask).all()
        box = coco_mask.toBbox(cleaned).tolist()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box == ([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1] if mask.any() else [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("runs", "joined"),
    [
        ([3, 2, 0, 4, 15], [3, 6, 15]),
        ([0, 0, 0, 24], [0, 24]),
        ([0, 5, 19, 0], [0, 5, 19]),
        ([24, 0], [24]),
        ([0, 5, 19], [0, 5, 19]),
    ],
)
def test_runs_of_zero_by_hand(runs: list[int], joined: list[int]) -> None:
    for counts in (runs, compressed(runs)):
        cleaned = clean_rle({"size": list(SIZE), "counts": counts}, SIZE)
        assert decode_runs(cleaned["counts"]).tolist() == joined


def test_sums_that_overflow() -> None:
    """The sum of 64 runs of 2^58 is 2^64, which overflows int64 to 0. Numbers in a string have 29 bits."""
    runs = [2**58] * 63 + [2**58 - 2**31, 2**31 + 24]
    for counts, says in ((runs, "do not add up"), (compressed(runs), "too large"), ([24, 2**62] + [2**62] * 3, "add")):
        with pytest.raises(ValueError, match=says):
            clean_rle({"size": list(SIZE), "counts": counts}, SIZE)
    with pytest.raises(ValueError, match="larger than any image"):
        clean_rle({"size": [2**15, 2**14], "counts": [2**29]}, (2**15, 2**14))


def test_largest_accepted_differences() -> None:
    """The fourth of the runs 0, n, 1, 1, rest is stored as 1 - n. pycocotools loses it beyond MAX_RLE_PIXELS."""
    n = 2**29 - 9
    rle = clean_rle({"size": [1, n + 4], "counts": [0, n, 1, 1, 2]}, (1, n + 4))
    assert coco_mask.area(rle) == n + 1
    assert decode_runs(rle["counts"]).tolist() == [0, n, 1, 1, 2]


@given(st.binary(max_size=12))
def test_only_valid_byte_strings_are_accepted(counts: bytes) -> None:
    try:
        cleaned = clean_segmentation({"size": list(SIZE), "counts": counts}, SIZE)
    except (ValueError, OverflowError):
        return
    assert pixels(cleaned).shape == SIZE
    assert decode_runs(counts).sum() == 24


PIECES = st.one_of(
    st.binary(max_size=12),
    st.lists(st.integers(0, 40), min_size=1, max_size=9).map(
        lambda runs: coco_mask.frPyObjects({"size": [sum(runs) or 1, 1], "counts": runs}, sum(runs) or 1, 1)["counts"]
    ),
)


@given(st.lists(st.tuples(PIECES, st.sampled_from([None, 1, 7, 60, 2**29])), min_size=1, max_size=12))
def test_sound_rles_are_those_that_stay(rles: list[tuple[bytes, int | None]]) -> None:
    """Checked together, those RLEs are sound that `clean_rle` returns as they are; damage stays where it is."""

    def number(counts: bytes) -> int:
        try:
            return max(int(decode_runs(counts).sum()), 1)
        except BadEntry:
            return 5

    counts = [one for one, _ in rles]
    sizes = [size or number(one) for one, size in rles]
    found = sound_rles(counts, sizes)
    for one, size, is_sound in zip(counts, sizes, found.tolist(), strict=True):
        try:
            stays = clean_rle({"size": [size, 1], "counts": one}, (size, 1))["counts"] == one
        except BadEntry:
            stays = False
        assert is_sound == stays, one
