"""The plan of a fine-tuning follows from the data and the machine, and gives its reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refseg.cli.finetune import duration
from refseg.finetuning.plan import Facts, choose_plan, in_words, limit_time

SMALL = Facts(images=10, phrases=80, negatives=8, per_image=8, longest_side=1024, gpu=False)


def test_small_data_on_a_cpu() -> None:
    plan = choose_plan(SMALL)
    assert (plan.image_size, plan.batch_size, plan.expressions_per_image, plan.steps) == (320, 4, 8, 300)
    assert len(plan.reasons) == 3


def test_a_gpu_means_larger_images_and_batches() -> None:
    plan = choose_plan(replace(SMALL, images=1000, gpu=True))
    assert plan.image_size == 480 and plan.batch_size == 16


def test_half_of_the_batch_is_as_many_images_per_update() -> None:
    plan = choose_plan(replace(SMALL, images=1000, gpu=True))
    images = plan.batch_size * plan.steps
    plan.halve_batch()
    plan.halve_batch()
    assert (plan.batch_size, plan.accumulation, plan.batch_size * plan.steps) == (4, 4, images)
    assert plan.options()["optim_wrapper.accumulative_counts"] == 4
    assert plan.reasons[-1].startswith("batch of 4 instead")
    odd = replace(plan, batch_size=7, steps=10, accumulation=1, reasons=[])
    odd.halve_batch()
    assert (odd.batch_size, odd.accumulation, odd.steps) == (3, 3, 24)


def test_images_are_not_enlarged() -> None:
    assert choose_plan(replace(SMALL, longest_side=200)).image_size == 224


def test_batches_are_not_larger_than_the_data() -> None:
    assert choose_plan(replace(SMALL, images=3)).batch_size == 3


def test_more_data_means_fewer_passes() -> None:
    few, many = (choose_plan(replace(SMALL, images=images)) for images in (100, 10_000))
    assert few.steps < many.steps
    assert few.steps * few.batch_size / 100 > many.steps * many.batch_size / 10_000


def test_choices_of_the_user_stay() -> None:
    plan = choose_plan(SMALL, image_size=256, batch_size=2)
    assert (plan.image_size, plan.batch_size) == (256, 2)


@pytest.mark.parametrize(("limit", "steps"), [(None, 300), (10_000, 300), (100, 60)])
def test_time_limits_the_steps(limit: float | None, steps: int) -> None:
    plan = choose_plan(SMALL)
    limit_time(plan, seconds_per_step=1.0, seconds_per_validation=5.0, limit=limit)
    assert plan.steps == steps
    assert plan.options()["train_cfg.max_iters"] == steps


def test_durations() -> None:
    assert [in_words(seconds) for seconds in (40, 600, 7200)] == ["40 s", "10 min", "2.0 h"]
    assert [duration(text) for text in ("90s", "10m", "1.5h", "30")] == [90, 600, 5400, 30]
    with pytest.raises(Exception, match="no duration"):
        duration("soon")
