from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from refseg.apis.quickstart import (
    default_processes,
    example_cases,
    found_all,
    make_cases,
    mask_iou,
    quickstart,
    train_in_processes,
)
from refseg.errors import TrainingError, UsageError
from refseg.evaluation.metrics import rows_of, truth_of
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Rows
from refseg.records import Expression, Instance, Record
from refseg.structures import GroundTruth, ImageResult, InstanceResult, SampleMeta

SIZE = (12, 12)


def test_data_training_evaluation_and_report(tmp_path: Path, tiny_options: dict) -> None:
    report = quickstart(
        config="baseline_tiny_refshapes",
        work_dir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        preset="tiny",
        processes=2,
        cfg_options=tiny_options,
    )
    html = report.read_text()
    assert html.count("data:image/") >= 20
    for words in (
        "gIoU",
        "RefShapes tiny",
        "test: 7 images",
        "by skill",
        "relation",
        "nothing here",
        "<svg",
        "Several",
    ):
        assert words in html, words
    assert 'class="word' not in html, "the baseline does not tell instances apart"
    assert (tmp_path / "work" / "metrics.json").is_file()
    with Image.open(tmp_path / "work" / "examples.png") as sheet:
        assert sheet.width > 900 and sheet.height > 300


def test_processes_that_cannot_share_a_batch(tmp_path: Path) -> None:
    cfg = Config(dict(train_dataloader=dict(batch_size=8)))
    with pytest.raises(UsageError, match="8 images cannot be shared by 3 processes"):
        train_in_processes(cfg, 3)


def test_what_went_wrong_in_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Callable:
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file="none")
        failure.message = {"message": "DataError: no such file: nothing"}
        raise ChildFailedError("train", {1: failure})

    monkeypatch.setattr("refseg.apis.quickstart.elastic_launch", fails)
    cfg = Config(dict(train_dataloader=dict(batch_size=8)))
    with pytest.raises(TrainingError, match="in process 1 of 2: DataError: no such file: nothing"):
        train_in_processes(cfg, 2)


@pytest.mark.parametrize(("cores", "batch_size", "processes"), [(1, 8, 1), (2, 8, 2), (3, 8, 2), (64, 8, 4), (2, 3, 1)])
def test_default_processes(monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int, processes: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_processes(batch_size) == processes


def _masks() -> torch.Tensor:
    """(2, 12, 12): two boxes of 4 x 4."""
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 1:5, 1:5] = masks[1, 7:11, 7:11] = True
    return masks


def _result(number: int, folder: Path, *, found: int) -> ImageResult:
    """Expressions of both boxes, of the first one, and of nothing. The model's masks are right; it finds `found`
    instances of each, and makes them when it is asked."""
    masks = _masks()
    rles = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
    names = tuple(f"{number:02d}:{k}" for k in range(3))
    texts = ("both red boxes", "the first box", "a circle")
    expressions = [Expression(*pair, who) for *pair, who in zip(names, texts, [(0, 1), (0,), ()], strict=True)]
    path = folder / f"{number}.png"
    Image.new("RGB", SIZE, (90, 120, 150)).save(path)
    record = Record(str(number), str(path), SIZE, [Instance(str(i), rle) for i, rle in enumerate(rles)], expressions)
    meta = SampleMeta(str(number), str(path), SIZE, SIZE, names, texts, ({"skill": "group"},) * 3)
    merged = torch.stack([masks.any(0), masks[0], torch.zeros_like(masks[0])])
    rejected = torch.tensor([False, False, True])
    words = [[0.0, 0.5, 0.5], [0.2, 0.4, 0.4], [0.5, 0.5]]

    def instances() -> list[list[InstanceResult]]:
        return [[InstanceResult(mask, 0.9, words[k]) for mask in masks[:found]] for k in range(3)]

    return ImageResult(meta, merged, rejected, None, GroundTruth(record, rles), merged.float() - 0.5, SIZE, instances)


@pytest.mark.parametrize(("found", "answers"), [(0, (False, False)), (1, (False, True)), (2, (True, False))])
def test_found_all_is_one_to_one(tmp_path: Path, found: int, answers: tuple[bool, bool]) -> None:
    result = _result(0, tmp_path, found=found)
    assert tuple(found_all(result, k) for k in range(2)) == answers


def test_found_all_needs_each_referent(tmp_path: Path) -> None:
    """Twice the first box is no second box."""
    result = _result(0, tmp_path, found=2)
    result.instances[0][1] = replace(result.instances[0][0])
    assert not found_all(result, 0)


def test_mask_iou_by_hand() -> None:
    """4 pixels and 2 of them: a half."""
    assert mask_iou(np.array([True] * 4), np.array([True, True, False, False])) == 0.5


def test_cases_have_instances_and_few_are_asked(tmp_path: Path) -> None:
    """40 images; of every second the model finds both boxes. With 2 cases per group no more than 8 are asked whether
    all was found, and at most 10 cases are shown."""
    results = [_result(number, tmp_path, found=1 + number % 2) for number in range(40)]
    protocol = get_protocol("refseg")
    rows = Rows.of([row for result in results for row in rows_of(result, protocol.view, truth_of(result))])
    cases = make_cases(results, rows, protocol, per_group=2)
    several = [case for case in cases if case.group == "several"]
    assert [(case.text, len(case.instances)) for case in several] == [("both red boxes", 2), ("both red boxes", 1)]
    assert several[0].owners == [(), (0, 1), (0, 1)]
    assert all(case.answers_nothing and not case.shown_instances for case in cases if case.group == "no-target")
    assert sum(not callable(result.lazy_instances) for result in results) <= 18
    assert [case.group for case in example_cases(cases)] == ["random"] * 2 + ["several"] * 2 + ["no-target"] * 2


def test_cases_of_a_model_without_instances(tmp_path: Path) -> None:
    results = [_result(number, tmp_path, found=2) for number in range(6)]
    for result in results:
        result.lazy_instances = None
    protocol = get_protocol("refseg")
    rows = Rows.of([row for result in results for row in rows_of(result, protocol.view, truth_of(result))])
    cases = make_cases(results, rows, protocol, per_group=1)
    assert [case.group for case in cases] == ["worst", "best", "several", "no-target", "random"]
    assert not any(case.instances for case in cases)
