"""Splits: what they hold, whether that is what they should hold, and which images they share. Functions of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from refseg.datasets.catalogue import Counts
from refseg.datasets.commands.findings import FIELDS, Finding
from refseg.datasets.commands.targets import Target
from refseg.datasets.selection import num_referents_among, refer_only_to, shipped_categories, split_matches
from refseg.datasets.store import RecordStore

UNSPLIT = "(no split)"


def count_splits(store: RecordStore, target: Target) -> dict[str, Counts]:
    """Counts by split: the expected ones first (by REFER's rule, so that testAB counts in testA), then what else is
    there. Where the reference has testA beside test, as RefShapes has, test is that split alone."""
    found: dict[str, Counts] = {}
    counted: set[str | None] = set()
    alone = any(split.startswith("test") and split != "test" for split in target.counts)
    for split in target.counts:
        tags = [tag for tag in store.splits if split_matches(split, tag)]
        if split == "test" and alone:
            tags = [tag for tag in tags if tag == split]
        counted.update(tags)
        codes = [code for code, tag in enumerate(store.splits) if tag in tags]
        found[split] = _count(store, np.isin(store.split_of_expression, codes), target)
    for code, tag in enumerate(store.splits):
        if tag not in counted:
            found[UNSPLIT if tag is None else tag] = _count(store, store.split_of_expression == code, target)
    return found


def _count(store: RecordStore, chosen: np.ndarray, target: Target) -> Counts:
    images = np.unique(store.image_of_expression[chosen])
    objects = np.unique(store.object_of_expression[chosen])
    refs = len(objects) if target.annotations["format"] == "refer" else None
    return Counts(refs, len(images), int(chosen.sum()))


def compare(found: dict[str, Counts], store: RecordStore, target: Target) -> Iterator[Finding]:
    """Findings on counts: exchanged splits, then numbers that are not as they should be."""
    again = f"get the file again from {target.source}" if target.source else ""
    swaps = exchanged(found, target.counts)
    for one, other in swaps:
        yield Finding(
            "defect",
            "swapped splits",
            str(target.main_file),
            f"splits {one!r} and {other!r} look exchanged: {one!r} holds {_words(found[one])}, "
            f"{other!r} holds {_words(found[other])}, which should be the other way round",
            f"exchange the two names in the field 'split', or {again}",
        )
    stands_for = {**dict(swaps), **{b: a for a, b in swaps}}
    for split in target.counts:
        wanted = target.counts[stands_for.get(split, split)]
        differences = [
            f"{getattr(found[split], name):,} {name} instead of {getattr(wanted, name):,}"
            for name in FIELDS
            if getattr(wanted, name) is not None and getattr(found[split], name) not in (None, getattr(wanted, name))
        ]
        if not differences:
            continue
        left_out = sum(problem.split == split for problem in store.problems)
        because = f"; {left_out} entries of it cannot be used, see 'annotation'" if left_out else ""
        alike = [s for s, counts in target.counts.items() if s != split and _agrees(found[split], counts)]
        like = f"; that is what {alike[0]!r} should hold" if alike and split not in stands_for else ""
        known = stands_for.get(split)
        yield Finding(
            "defect" if target.verified else "warning",
            "wrong count",
            str(target.main_file),
            f"split {split!r}{f' (taken for {known!r})' if known else ''}: {', '.join(differences)}{because}{like}",
            again if target.verified else f"the reference is unverified; compare with {target.source}",
        )
    for split in found.keys() - target.counts.keys() if target.counts else ():
        message = f"{split!r} is none of the set's splits ({', '.join(target.counts)})"
        yield Finding("warning", "unknown split", str(target.main_file), message, again)


def compare_seen_unseen(store: RecordStore, target: Target) -> Iterator[Finding]:
    """One finding: whether the refs of COCO's seen and unseen classes are as many as CGFormer's code says."""
    if not target.seen_unseen or not store.categories:
        return
    found, differ = [], False
    for number_of_part, part in enumerate(("seen", "unseen")):
        codes = [code for code, name in enumerate(store.categories) if name in shipped_categories(part)]
        of_part = refer_only_to(store, np.isin(store.category_of_instance, codes))
        for split, published in target.seen_unseen.items():
            if (wanted := published[number_of_part]) is None:
                continue
            tags = [code for code, tag in enumerate(store.splits) if split_matches(split, tag)]
            refs = len(np.unique(store.object_of_expression[of_part & np.isin(store.split_of_expression, tags)]))
            found.append(f"{split} {refs:,} {part}" + (f" (not {wanted:,})" if refs != wanted else ""))
            differ |= refs != wanted
    yield Finding(
        "warning" if differ else "note",
        "refs of seen and unseen classes",
        str(target.main_file),
        f"{', '.join(found)}: {'not as' if differ else 'as'} CGFormer's code has them",
        "results with categories='seen' or 'unseen' are not comparable with CGFormer's" if differ else "",
    )


def crowd_targets(store: RecordStore, target: Target) -> Iterator[Finding]:
    """One finding: how many expressions refer to crowd regions, and to nothing else."""
    crowds = num_referents_among(store, store.is_crowd)
    if crowds.any():
        only = int(((crowds > 0) & (crowds == store.num_referents)).sum())
        yield Finding(
            "warning" if only else "note",
            "crowd regions as targets",
            str(target.main_file),
            f"{(crowds > 0).sum():,} expressions refer to crowd regions (iscrowd 1), {only:,} of them to nothing else",
            "training leaves their masks out (crowd_targets='include' keeps them), and so do some protocols",
        )


def exchanged(found: dict[str, Counts], expected: dict[str, Counts]) -> list[tuple[str, str]]:
    """Pairs of splits of which each holds what the other one should, or nearly: entries may be missing besides.

    A pair counts when exchanging it takes away more than half of the differences, and both splits have one.
    """
    pairs = []
    for one, other in itertools.combinations(expected, 2):
        own = _distance(found[one], expected[one]), _distance(found[other], expected[other])
        swapped = _distance(found[one], expected[other]) + _distance(found[other], expected[one])
        if min(own) > 0 and swapped < sum(own) / 2:
            pairs.append((swapped / sum(own), one, other))
    taken: set[str] = set()
    result = []
    for _, one, other in sorted(pairs):
        if not taken & {one, other}:
            taken |= {one, other}
            result.append((one, other))
    return result


def _distance(found: Counts, expected: Counts) -> float:
    """Sum of relative differences of what is known, 0 where all agrees."""
    total = 0.0
    for name in FIELDS:
        a, b = getattr(found, name), getattr(expected, name)
        if a is not None and b is not None and max(a, b):
            total += abs(a - b) / max(a, b)
    return total


def _agrees(found: Counts, expected: Counts) -> bool:
    known = [name for name in FIELDS if getattr(expected, name) is not None and getattr(found, name) is not None]
    return len(known) > 1 and all(getattr(found, name) == getattr(expected, name) for name in known)


def _words(counts: Counts) -> str:
    return " / ".join(f"{getattr(counts, name):,} {name}" for name in FIELDS if getattr(counts, name) is not None)


def shared_images(store: RecordStore, target: Target) -> Iterator[Finding]:
    """Images that several splits have: a defect where the set is split by image, to be expected where by object."""
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
            for image in shared.tolist():
                yield Finding(
                    "defect",
                    "image in two splits",
                    f"{target.main_file}, image {store.record(image, ()).image_id}",
                    f"has expressions of {one!r} and of {other!r}, and this set is split by image",
                    "a wrong 'split' in some entries: "
                    + (f"get the file again from {target.source}" if target.source else "mend them"),
                )
            continue
        expected = target.split_by == "object"
        yield Finding(
            "note" if expected else "warning",
            "images in two splits",
            str(target.main_file),
            f"{one!r} and {other!r} share {len(shared):,} images"
            + (", as this set is split by object" if expected else ", so one leaks into the other"),
            "" if expected else "split by image if results are to tell about new images",
        )
