"""The data set of all tasks, `ReferringDataset`, and mixtures of several, `MixedDataset`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from mmengine.logging import print_log
from torch.utils.data import Dataset

from refseg.datasets.annotations import complete_paths, generated_by, image_root_of, open_annotations
from refseg.datasets.hard_negatives import Evidence, Kinds, from_elsewhere, swapped
from refseg.datasets.samplers import SampleKey
from refseg.datasets.selection import (
    Items,
    Sentences,
    held_out,
    image_keys,
    in_splits,
    key_of,
    num_referents_among,
    of_categories,
    refer_only_to,
)
from refseg.datasets.transforms import PackSample, TransformState
from refseg.errors import ConfigError, DataError, check_choice
from refseg.records import UNKNOWN, Crowds, Expression, Record, without_crowds
from refseg.registry import DATASETS, TRANSFORMS
from refseg.structures import Sample

TextField = Literal["raw", "sent"]


@DATASETS.register_module()
class ReferringDataset(Dataset):
    """A data set whose items are images with K of their expressions.

    Args:
        annotations: dict(format=..., and the arguments of that reader).
        pipeline: Transforms. The last one is PackSample.
        image_root: Folder that image paths are relative to. JSONL defaults to the file's folder.
        split: One name, several, or None for all. "testA" and "test" match as in REFER.
        sentences: 'all', or 'one_per_object', which draws one of each object's expressions anew in each epoch.
        expressions_per_image: Largest K. An image with more expressions has several items. None puts all into one item,
            as evaluation needs.
        text_field: 'raw' as people wrote it, or 'sent', the set's cleaned form. They are equal if a set has one form.
        categories: 'seen', 'unseen' or a list of names. Keeps expressions whose referents all have these categories.
        no_target: 'drop' removes expressions that refer to nothing, such as R-RefCOCO's negatives.
        negative_rate: Probability that an expression is replaced by one of another image, about objects of categories
            that this image does not have. It then refers to nothing. Unlike in DeRIS, the share is constant.
        hard_negative_rate: Share of the expressions with referents that are replaced by ones that the data prove false
            here: with one word swapped, or else of another image (`refseg.datasets.hard_negatives`). Where nothing can
            be proved, the expression stays, and others are replaced more often, as far as 200 tried expressions say.
        crowd_targets: 'exclude' removes crowd regions (COCO's `iscrowd`) from training targets, as ReLA does, and with
            them expressions that refer to nothing else. 'include' keeps them as annotated. Data sets for evaluation,
            whose pipeline packs ground truth, always keep them, because each protocol decides.
        hold_out: dict(share=0.02, use='rest' or 'held_out') splits off a fixed part of the images of a set without val.
        exclude_images_of: The leak filter, a list of dict(annotations=..., split=..., image_root=...), where
            `image_root` is optional. Images that occur in one of them are removed. COCO images are recognized by id,
            others by folder, name and size.
        max_bad_samples: Number of unreadable annotations of the split, and of items per process that cannot be loaded,
            to skip and log. The next item replaces a bad one. None stops the run at the first, as evaluation must.
    """

    def __init__(
        self,
        *,
        annotations: dict[str, Any],
        pipeline: list[dict],
        image_root: str | None = None,
        split: str | Sequence[str] | None = None,
        sentences: Sentences = "all",
        expressions_per_image: int | None = None,
        text_field: TextField = "raw",
        categories: str | Sequence[str] | None = None,
        no_target: Literal["keep", "drop"] = "keep",
        negative_rate: float = 0.0,
        hard_negative_rate: float = 0.0,
        crowd_targets: Crowds = "exclude",
        hold_out: dict[str, Any] | None = None,
        exclude_images_of: Sequence[dict[str, Any]] = (),
        max_bad_samples: int | None = None,
    ) -> None:
        check_choice("sentences", sentences, ("all", "one_per_object"))
        check_choice("text_field", text_field, ("raw", "sent"))
        check_choice("no_target", no_target, ("keep", "drop"))
        check_choice("crowd_targets", crowd_targets, ("exclude", "include"))
        for name, count, least in (
            ("expressions_per_image", expressions_per_image, 1),
            ("max_bad_samples", max_bad_samples, 0),
        ):
            if count is not None and not (isinstance(count, int) and count >= least):
                raise ConfigError(f"{name} must be a whole number of at least {least}, or None, not {count!r}")
        for name, rate in (("negative_rate", negative_rate), ("hard_negative_rate", hard_negative_rate)):
            if not 0 <= rate < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {rate}")
        self.store = open_annotations(**annotations)
        self.image_root = image_root_of(annotations, image_root)
        self.text_field = text_field
        self.negative_rate, self.hard_negative_rate = negative_rate, hard_negative_rate
        self.max_bad_samples = max_bad_samples
        self.bad_samples: set[int] = set()
        # Description for checkpoints: the training data, and what was left out of it.
        self.metainfo: dict[str, Any] = {
            "annotations": dict(annotations),
            "generated": generated_by(annotations),
            "split": split if split is None or isinstance(split, str) else list(split),
            "sentences": sentences,
            "expressions_per_image": expressions_per_image,
            "text_field": text_field,
            "categories": categories if categories is None or isinstance(categories, str) else list(categories),
            "no_target": no_target,
            "negative_rate": negative_rate,
            "hard_negative_rate": hard_negative_rate,
            "crowd_targets": crowd_targets,
            "hold_out": hold_out if hold_out is None else dict(hold_out),
        }
        self.transforms = [TRANSFORMS.build(transform) for transform in pipeline]
        packs = [transform for transform in self.transforms if isinstance(transform, PackSample)]
        if pipeline and packs != self.transforms[-1:]:
            raise ConfigError("PackSample must be the last transform of a pipeline, and occur only there")
        trains = bool(packs) and not packs[0].with_ground_truth
        self.excludes_crowds = crowd_targets == "exclude" and trains
        chosen = self._choose()
        chosen &= ~self._leaks(chosen, exclude_images_of)
        boxed = np.flatnonzero(chosen & (num_referents_among(self.store, ~self.store.has_mask) > 0))
        if trains and len(boxed):
            raise DataError(
                f"{_name(annotations)}: {len(boxed)} rows have a box and no mask, the first is "
                f"{self.store.expression_id(int(boxed[0]))}. Training needs masks: leave these rows out, or choose "
                "another split"
            )
        self.items = Items(self.store, chosen, sentences, expressions_per_image)
        if not len(self.items):
            raise DataError(f"{_name(annotations)}, split {split}: no expression remains after filtering")
        self._donors = np.flatnonzero(chosen & (self.store.num_referents > 0))
        if hard_negative_rate:
            images = np.unique(self.store.image_of_expression[chosen]).tolist()
            self._kinds = Kinds(map(self._evidence, images), self.store.categories)
            self.hard_negatives = self._try_hard_negatives(200)
            share = sum(text != "" for _, text in self.hard_negatives) / max(len(self.hard_negatives), 1)
            self._hard_negative_chance = min(hard_negative_rate / share, 1.0) if share else 0.0
        if negative_rate and ((self.store.category_of_instance < 0).any() or not len(self._donors)):
            raise ConfigError(f"negative_rate needs the category of every instance; {_name(annotations)} lacks it")

    def _choose(self) -> np.ndarray:
        """Return a bool array over the store's expressions, and note in the metainfo what cannot be used."""
        store, problems, options = self.store, self.store.problems, self.metainfo
        name, categories, hold_out = _name(options["annotations"]), options["categories"], options["hold_out"]
        try:
            chosen = in_splits(store, options["split"])
        except DataError as error:  # perhaps because nothing of that split could be read
            raise DataError("\n  ".join([str(error), *map(str, problems[:5])])) from None
        # Log skipped annotations of these splits. More of them than the limit are an error.
        for notice in (problem for problem in problems if problem.is_notice):
            print_log(str(notice), "current", logging.WARNING)
        splits = {store.splits[code] for code in np.unique(store.split_of_expression[chosen])} | {UNKNOWN}
        skipped = [problem for problem in problems if problem.split in splits]
        options["unreadable_annotations"] = len(skipped)
        if len(skipped) > (self.max_bad_samples or 0):
            first = "\n  ".join(map(str, skipped[:5]))
            raise DataError(
                f"{len(skipped)} annotations cannot be used, {self.max_bad_samples or 0} are allowed "
                f"(max_bad_samples); the first:\n  {first}\nFix the file; `refseg data check` lists all."
            )
        for problem in skipped:
            print_log(f"skipping an annotation: {problem}", "current", logging.WARNING)
        # Expressions of crowd regions only would have a target but no mask.
        if self.excludes_crowds:
            only_crowds = chosen & refer_only_to(store, store.is_crowd)
            options["crowd_only_expressions"] = int(only_crowds.sum())
            if only_crowds.any():
                print_log(
                    f"{only_crowds.sum()} of {chosen.sum()} expressions of {name} refer to crowd regions (iscrowd 1) "
                    "only and are not used in training; crowd_targets='include' keeps them",
                    "current",
                    logging.WARNING,
                )
            chosen &= ~only_crowds
        if categories is not None:
            chosen &= of_categories(store, categories)
        if options["no_target"] == "drop":
            chosen &= store.num_referents > 0
        if hold_out is not None:
            if set(hold_out) != {"share", "use"} or not 0 < hold_out["share"] < 1:
                raise ConfigError(f"hold_out is dict(share=0.02, use='rest' or 'held_out'), not {hold_out}")
            check_choice("hold_out.use", hold_out["use"], ("rest", "held_out"))
            chosen &= held_out(store, hold_out["share"], self.image_root) == (hold_out["use"] == "held_out")
        return chosen

    def _leaks(self, chosen: np.ndarray, against: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return which of the chosen expressions are of images of other data sets. Note their number."""
        keys: set[str] = set()
        for other in against:
            wrong = (set(other) - {"image_root"}) ^ {"annotations", "split"}
            if wrong:
                message = "exclude_images_of takes dicts of annotations and split (image_root is optional)"
                raise ConfigError(f"{message}; missing or unexpected: {', '.join(sorted(wrong))}")
            store = open_annotations(**other["annotations"])
            root = other.get("image_root")
            if root is not None or other["annotations"]["format"] == "jsonl":
                root = image_root_of(other["annotations"], root)
            keys |= image_keys(store, in_splits(store, other["split"]), root or self.image_root)
        images = range(len(self.store)) if against else ()
        leaking = [image for image in images if key_of(self.store, image, self.image_root) in keys]
        dropped = chosen & np.isin(self.store.image_of_expression, leaking)
        num_images, num_expressions = len(np.unique(self.store.image_of_expression[dropped])), int(dropped.sum())
        self.metainfo["leak_filter"] = {
            "against": [f"{_name(other['annotations'])} {other['split']}" for other in against],
            "dropped_images": num_images,
            "dropped_expressions": num_expressions,
        }
        if against:
            print_log(
                f"leak filter: {num_expressions} of {int(chosen.sum())} expressions of "
                f"{_name(self.metainfo['annotations'])} {self.metainfo['split']} dropped ({num_images} images)",
                "current",
            )
        return dropped

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        if not 0 <= key.item < len(self):
            raise IndexError(f"item {key.item} of {len(self)}")
        for offset in range(len(self)):
            index = (key.item + offset) % len(self)
            if index in self.bad_samples:
                continue
            try:
                return self.make_sample(key._replace(item=index))
            except DataError as error:
                if self.max_bad_samples is None:
                    raise
                self.bad_samples.add(index)
                print_log(f"skipping a bad sample ({len(self.bad_samples)}): {error}", "current", logging.WARNING)
                if len(self.bad_samples) > self.max_bad_samples:
                    raise DataError(
                        f"more than {self.max_bad_samples} bad samples in one process; the last: {error}. Check the "
                        "data with `refseg data check`, or raise max_bad_samples."
                    ) from None
        raise DataError("no sample of the data set can be read")

    def make_sample(self, key: SampleKey) -> Sample:
        """Make the sample of one item, as a pure function of the key."""
        record = self.record(key)
        rng = np.random.default_rng([key.seed, key.epoch, key.item])
        expressions = [self._maybe_negative(expression, record, rng) for expression in record.expressions]
        if self.hard_negative_rate:
            evidence = self._evidence(int(self.items.image[key.item]))
            expressions = [self._maybe_hard_negative(expression, evidence, rng) for expression in expressions]
        if self.excludes_crowds:
            expressions = [without_crowds(expression, record) for expression in expressions]
        state: Any = TransformState(record, expressions, rng)
        try:
            for transform in self.transforms:
                state = transform(state)
        except DataError as error:
            raise DataError(f"image {record.image_id}: {error}") from None
        return state

    def record(self, key: SampleKey) -> Record:
        """Return an item's image with all its instances and the item's expressions. Paths include the image root."""
        chosen = self.items.expressions_of(key.item, seed=key.seed, epoch=key.epoch)
        record = self.store.record(int(self.items.image[key.item]), chosen)
        record.expressions = [self._with_text(expression) for expression in record.expressions]
        return complete_paths(record, self.image_root)

    def _with_text(self, expression: Expression) -> Expression:
        if self.text_field == "sent" and expression.sent is not None:
            return replace(expression, text=expression.sent)
        return expression

    def _evidence(self, image: int) -> Evidence:
        """Return what the data say about an image, in all of its expressions."""
        record = self.store.record(image)
        record.expressions = [self._with_text(expression) for expression in record.expressions]
        return Evidence(record)

    def _maybe_hard_negative(self, expression: Expression, evidence: Evidence, rng: np.random.Generator) -> Expression:
        if not expression.referents or rng.random() >= self._hard_negative_chance:
            return expression
        text = self._false_text(expression, evidence, rng)
        if not text:
            return expression
        name = f"{expression.expression_id}~"
        return replace(expression, expression_id=name, text=text, referents=(), tags={"negative_of": name[:-1]})

    def _false_text(self, expression: Expression, evidence: Evidence, rng: np.random.Generator) -> str:
        """Return a phrase in place of another that the data prove false in this image; empty if there is none."""
        if text := swapped(expression, evidence, self._kinds, rng):
            return text
        # A phrase of another image, about kinds that this one does not have
        donors = rng.choice(self._donors, 20).tolist()
        others = (self._with_text(self.store.expression(donor)).text for donor in donors)
        return next((other for other in others if from_elsewhere(other, evidence, self._kinds)), "")

    def _try_hard_negatives(self, most: int) -> list[tuple[str, str]]:
        """Return some phrases, each with a hard negative in its place, or "" if there is none."""
        rng, image_of = np.random.default_rng(0), self.store.image_of_expression
        pairs = []
        for number in rng.permutation(self._donors)[:most].tolist():
            expression = self._with_text(self.store.expression(number))
            evidence = self._evidence(int(image_of[number]))
            pairs.append((expression.text, self._false_text(expression, evidence, rng)))
        return pairs

    def _maybe_negative(self, expression: Expression, record: Record, rng: np.random.Generator) -> Expression:
        if not self.negative_rate or not expression.referents or rng.random() >= self.negative_rate:
            return expression
        present = {instance.category for instance in record.instances}
        for donor in rng.choice(self._donors, 20).tolist():
            image = np.searchsorted(self.store.expression_starts, donor, side="right") - 1
            instances = self.store.instance_starts[image] + self.store.referents(donor)
            categories = {self.store.categories[code] for code in self.store.category_of_instance[instances]}
            if not present & categories:
                other = self._with_text(self.store.expression(donor))
                return replace(
                    expression,
                    expression_id=f"{expression.expression_id}~",
                    text=other.text,
                    referents=(),
                    tags={"negative_of": expression.expression_id, "text_of": other.expression_id},
                )
        return expression


@DATASETS.register_module()
class MixedDataset(Dataset):
    """Several data sets as one.

    Args:
        datasets: Configs of `ReferringDataset`s.
        weights: Number of times that an epoch goes through each set (default: once). With a fraction, each epoch draws
            another part of the set.
    """

    def __init__(self, *, datasets: Sequence[dict], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(datasets) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(datasets) or not datasets or min(weights) <= 0:
            raise ConfigError(f"MixedDataset needs a weight above 0 for each of {len(datasets)} sets, not {weights}")
        self.datasets: list[ReferringDataset] = [DATASETS.build(dataset) for dataset in datasets]
        counts = [max(1, round(weight * len(part))) for weight, part in zip(weights, self.datasets, strict=True)]
        self.starts = np.cumsum([0, *counts])
        # Description for checkpoints.
        self.metainfo = {"mixture": [part.metainfo for part in self.datasets], "weights": weights}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, key: SampleKey) -> tuple[ReferringDataset, SampleKey]:
        """Return the set that an item belongs to, and its key there."""
        which = int(np.searchsorted(self.starts, key.item, side="right")) - 1
        part, start, end = self.datasets[which], int(self.starts[which]), int(self.starts[which + 1])
        rounds, item = divmod(key.item - start, len(part))
        if (rounds + 1) * len(part) > end - start:  # the last, incomplete round takes another part in each epoch
            item = int(_order(len(part), key.seed, key.epoch, which)[item])
        # A set's second round in an epoch draws other sentences and augmentations than its first.
        return part, SampleKey(item, key.epoch * ((end - start) // len(part) + 1) + rounds, key.seed)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        part, key = self.locate(key if isinstance(key, SampleKey) else SampleKey(int(key)))
        return part[key]


@lru_cache(maxsize=16)
def _order(size: int, seed: int, epoch: int, which: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, which, 2]).permutation(size)


def _name(annotations: dict[str, Any]) -> str:
    return str(annotations.get("refs") or annotations.get("file"))
