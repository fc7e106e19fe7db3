"""Checks of splits: their counts, and the images that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from refseg.data_tools.issues import FIELDS, DataIssue
from refseg.datasets.catalog import Counts
from refseg.datasets.selection import num_referents_among, refer_only_to, shipped_categories, split_matches
from refseg.datasets.store import RecordStore
from refseg.datasets.targets import Target

UNSPLIT = "(no split)"


def count_splits(store: RecordStore, target: Target) -> dict[str, Counts]:
    """Count refs, images, and sentences of each split.

    The expected splits come first. They follow REFER's rule, by which testAB counts as testA. If the reference has
    testA beside test, as RefShapes does, then test is that split alone.
    """

    def count(chosen: np.ndarray) -> Counts:
        images = np.unique(store.image_of_expression[chosen])
        objects = np.unique(store.object_of_expression[chosen])
        refs = len(objects) if target.annotations["format"] == "refer" else None
        return Counts(refs, len(images), int(chosen.sum()))

    counts: dict[str, Counts] = {}
    counted: set[str | None] = set()
    test_alone = any(split.startswith("test") and split != "test" for split in target.counts)
    for split in target.counts:
        tags = [tag for tag in store.splits if split_matches(split, tag)]
        if split == "test" and test_alone:
            tags = [tag for tag in tags if tag == split]
        counted.update(tags)
        codes = [code for code, tag in enumerate(store.splits) if tag in tags]
        counts[split] = count(np.isin(store.split_of_expression, codes))
    for code, tag in enumerate(store.splits):
        if tag not in counted:
            counts[UNSPLIT if tag is None else tag] = count(store.split_of_expression == code)
    return counts


def check_counts(counts: dict[str, Counts], store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield swapped splits, wrong counts, and unknown splits."""

    def listed(counts: Counts) -> str:
        return " / ".join(f"{number:,} {name}" for name, (number, _) in _known_pairs(counts, counts).items())

    place = str(target.main_file)
    again = f"get the file again from {target.source}" if target.source else ""
    # Swapped splits
    swaps = swapped_splits(counts, target.counts)
    for one, other in swaps:
        yield DataIssue(
            "defect",
            "swapped splits",
            place,
            f"splits {one!r} and {other!r} look exchanged: {one!r} holds {listed(counts[one])}, "
            f"{other!r} holds {listed(counts[other])}, which should be the other way round",
            f"exchange the two names in the field 'split', or {again}",
        )
    # Wrong counts. A swapped split is compared with the expected counts of the other one.
    stands_for = {**dict(swaps), **{b: a for a, b in swaps}}
    for split in target.counts:
        expected = target.counts[stands_for.get(split, split)]
        differences = [
            f"{number:,} {name} instead of {right:,}"
            for name, (number, right) in _known_pairs(counts[split], expected).items()
            if number != right
        ]
        if not differences:
            continue
        message = f"split {split!r}"
        if split in stands_for:
            message += f" (taken for {stands_for[split]!r})"
        message += f": {', '.join(differences)}"
        if num_unusable := sum(problem.split == split for problem in store.problems):
            message += f"; {num_unusable} entries of it cannot be used, see 'annotation'"
        for other, known in target.counts.items():
            similar = len(_known_pairs(counts[split], known)) > 1 and not _distance(counts[split], known)
            if similar and other != split and split not in stands_for:
                message += f"; that is what {other!r} should hold"
                break
        if target.verified:
            yield DataIssue("defect", "wrong count", place, message, again)
        else:
            remedy = f"the reference is unverified; compare with {target.source}"
            yield DataIssue("warning", "wrong count", place, message, remedy)
    # Unknown splits
    for split in counts.keys() - target.counts.keys() if target.counts else ():
        message = f"{split!r} is none of the set's splits ({', '.join(target.counts)})"
        yield DataIssue("warning", "unknown split", place, message, again)


def swapped_splits(counts: dict[str, Counts], expected: dict[str, Counts]) -> list[tuple[str, str]]:
    """Return pairs of splits that seem to be swapped, even if some entries are missing.

    Swapping such a pair removes more than half of the differences, and both of its splits have one.
    """
    candidates = []
    for one, other in itertools.combinations(expected, 2):
        distances = _distance(counts[one], expected[one]), _distance(counts[other], expected[other])
        swapped = _distance(counts[one], expected[other]) + _distance(counts[other], expected[one])
        if min(distances) > 0 and swapped < sum(distances) / 2:
            candidates.append((swapped / sum(distances), one, other))
    pairs: list[tuple[str, str]] = []
    for _, one, other in sorted(candidates):
        if not {one, other} & {split for pair in pairs for split in pair}:
            pairs.append((one, other))
    return pairs


def _known_pairs(one: Counts, other: Counts) -> dict[str, tuple[int, int]]:
    """Return the numbers that are known in both counts, by name."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in FIELDS}
    return {name: pair for name, pair in pairs.items() if None not in pair}


def _distance(one: Counts, other: Counts) -> float:
    """Return the sum of relative differences of the known counts."""
    return sum(abs(a - b) / max(a, b) for a, b in _known_pairs(one, other).values() if max(a, b))


def check_seen_unseen(store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield whether the number of refs of COCO's seen and unseen classes agrees with CGFormer's code."""
    if not target.seen_unseen or not store.categories:
        return
    parts, differ = [], False
    for column, part in enumerate(("seen", "unseen")):
        codes = [code for code, name in enumerate(store.categories) if name in shipped_categories(part)]
        of_part = refer_only_to(store, np.isin(store.category_of_instance, codes))
        for split, published in target.seen_unseen.items():
            if (expected := published[column]) is None:
                continue
            tags = [code for code, tag in enumerate(store.splits) if split_matches(split, tag)]
            refs = len(np.unique(store.object_of_expression[of_part & np.isin(store.split_of_expression, tags)]))
            parts.append(f"{split} {refs:,} {part}" + (f" (not {expected:,})" if refs != expected else ""))
            differ |= refs != expected
    yield DataIssue(
        "warning" if differ else "note",
        "refs of seen and unseen classes",
        str(target.main_file),
        f"{', '.join(parts)}: {'not as' if differ else 'as'} in CGFormer's code",
        "results with categories='seen' or 'unseen' are not comparable with CGFormer's" if differ else "",
    )


def check_crowd_targets(store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield the number of expressions that refer to crowd regions, and to nothing else."""
    crowds = num_referents_among(store, store.is_crowd)
    if crowds.any():
        only = int(((crowds > 0) & (crowds == store.num_referents)).sum())
        yield DataIssue(
            "warning" if only else "note",
            "crowd regions as targets",
            str(target.main_file),
            f"{(crowds > 0).sum():,} expressions refer to crowd regions (iscrowd 1), {only:,} of them to nothing else",
            "training skips their masks (crowd_targets='include' keeps them), and so do some protocols",
        )


def check_shared_images(store: RecordStore, target: Target) -> Iterator[DataIssue]:
    """Yield images in several splits: defects if the set is split by image, expected if it is split by object."""
    images = {
        str(tag): np.unique(store.image_of_expression[store.split_of_expression == code])
        for code, tag in enumerate(store.splits)
        if tag is not None
    }
    for one, other in itertools.combinations(images, 2):
        if target.split_by != "image" and one.startswith("test") and other.startswith("test"):
            continue  # RefCLEF's testAB and the like
        shared = np.intersect1d(images[one], images[other])
        if not len(shared):
            continue
        if target.split_by == "image":
            fix = f"get the file again from {target.source}" if target.source else "correct it"
            for image in shared.tolist():
                place = f"{target.main_file}, image {store.record(image, ()).image_id}"
                message = f"has expressions of {one!r} and of {other!r}, and this set is split by image"
                yield DataIssue("defect", "image in two splits", place, message, f"some 'split' is wrong: {fix}")
            continue
        place, message = str(target.main_file), f"{one!r} and {other!r} share {len(shared):,} images"
        if target.split_by == "object":
            yield DataIssue("note", "images in two splits", place, f"{message}, as this set is split by object")
        else:
            remedy = "split by image to measure results on new images"
            message += ", so one leaks into the other"
            yield DataIssue("warning", "images in two splits", place, message, remedy)
