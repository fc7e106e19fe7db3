"""Choose the settings of a fine-tuning from the data and the machine, with a reason for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from refseg.datasets.store import RecordStore

VALIDATIONS = 8  # per training


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the data and the machine, which the plan follows from.

    Args:
        images: Images of the training split.
        phrases: Its phrases.
        negatives: Those that refer to nothing.
        per_image: Median number of phrases of an image.
        longest_side: Median of the images' longer sides, in pixels.
        gpu: Whether there is a GPU.
    """

    images: int
    phrases: int
    negatives: int
    per_image: int
    longest_side: int
    gpu: bool


@dataclass(slots=True)
class Plan:
    """Settings of a fine-tuning, and why.

    Args:
        image_size: Side of the square that images are resized to.
        batch_size: Images per step.
        expressions_per_image: Phrases of each image per step.
        steps: Steps of the training.
        accumulation: Steps per update of the weights.
        reasons: Lines for the user.
    """

    image_size: int
    batch_size: int
    expressions_per_image: int
    steps: int
    accumulation: int = 1
    reasons: list[str] = field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """Return the plan as changes of a config."""
        interval = max(self.steps // VALIDATIONS, 1)
        return {
            "inputs.image_size": (self.image_size, self.image_size),
            "train_dataloader.batch_size": self.batch_size,
            "train_dataloader.dataset.expressions_per_image": self.expressions_per_image,
            "optim_wrapper.accumulative_counts": self.accumulation,
            "train_cfg.max_iters": self.steps,
            "train_cfg.val_interval_iters": interval,
            "default_hooks.checkpoint.interval": interval,
            "param_scheduler.0.end": max(min(self.steps // 10, 200), 1),
            "param_scheduler.1.begin": max(min(self.steps // 10, 200), 1),
        }

    def halve_batch(self) -> None:
        """Use half of the batch, with at least as many images per update of the weights, and in all."""
        per_update, images = self.batch_size * self.accumulation, self.batch_size * self.steps
        self.batch_size //= 2
        self.accumulation, self.steps = -(-per_update // self.batch_size), -(-images // self.batch_size)
        self.reasons.append(
            f"batch of {self.batch_size} instead, {self.steps} steps, {self.accumulation} of them per update: more "
            "images do not fit into the GPU's memory"
        )


def facts_of(store: RecordStore, chosen: np.ndarray) -> Facts:
    """Return the facts of a training split and this machine.

    Args:
        store: The annotations.
        chosen: (number of expressions,) bool: those of the training split.
    """
    images, counts = np.unique(store.image_of_expression[chosen], return_counts=True)
    sizes = store.arrays["image_size"][images]
    return Facts(
        images=len(images),
        phrases=int(chosen.sum()),
        negatives=int((store.num_referents[chosen] == 0).sum()),
        per_image=int(np.median(counts)),
        longest_side=int(np.median(sizes.max(axis=1))),
        gpu=torch.cuda.is_available(),
    )


def choose_plan(facts: Facts, *, image_size: int | None = None, batch_size: int | None = None) -> Plan:
    """Choose image size, batch and length.

    Args:
        facts: The data and the machine.
        image_size: The user's choice.
        batch_size: The user's choice.
    """
    reasons = []
    # Image size: not larger than the images, and on a CPU small enough for some hundred steps
    if image_size is None:
        most = 480 if facts.gpu else 320
        image_size = min(most, max(32 * math.ceil(facts.longest_side / 32), 96))
        where = "a GPU" if facts.gpu else "a CPU, where larger images cost too much time"
        reasons.append(f"image size {image_size}: images are up to {facts.longest_side} pixels, on {where}")
    # Batch: on a GPU as large as is useful, and halved later if its memory does not suffice
    expressions = max(1, min(8, facts.per_image))
    if batch_size is None:
        batch_size = max(1, min(16 if facts.gpu else 4, facts.images))
        why = "as large as is useful" if facts.gpu else "small, because steps on a CPU are slow"
        reasons.append(f"batch of {batch_size} images with up to {expressions} phrases each: {why}")
    # Length: from 120 passes over 10 images to 10 passes over 10,000, and at least 300 steps
    passes = float(np.interp(math.log10(max(facts.images, 1)), [1, 4], [120, 10]))
    steps = round(min(max(passes * facts.images / batch_size, 300), 40_000))
    reasons.append(f"{steps} steps: about {steps * batch_size / max(facts.images, 1):.0f} passes over the images")
    return Plan(image_size, batch_size, expressions, steps, reasons=reasons)


def limit_time(plan: Plan, *, seconds_per_step: float, seconds_per_validation: float, limit: float | None) -> None:
    """Estimate the time of a training, and shorten it to a limit in seconds, in place."""
    per_step = seconds_per_step + VALIDATIONS * seconds_per_validation / plan.steps
    total = plan.steps * per_step
    if limit is not None and total > limit:
        plan.steps = max(int((limit - VALIDATIONS * seconds_per_validation) / seconds_per_step), VALIDATIONS)
        plan.reasons.append(f"{plan.steps} steps instead: --time allows {in_words(limit)} for the training")
        total = plan.steps * seconds_per_step + VALIDATIONS * seconds_per_validation
    plan.reasons.append(
        f"{seconds_per_step:.1f} s per step here, {in_words(seconds_per_validation)} per validation: about "
        f"{in_words(total)} in all, less if it stops early"
    )


def in_words(seconds: float) -> str:
    """Return a duration such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe(facts: Facts, splits: Sequence[tuple[str, int, int]]) -> str:
    """Return a line about the data: `splits` are names with their numbers of images and phrases."""
    parts = [f"{name}: {images:,} images, {phrases:,} phrases" for name, images, phrases in splits]
    return f"{'; '.join(parts)}; {facts.negatives:,} training phrases refer to nothing"
