import json
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from refseg import segment
from refseg.cli import main
from refseg.cli.quickstart import default_processes, quickstart, train_in_processes
from refseg.errors import TrainingError, UsageError
from refseg.inference.loading import ALIGNMENT


@pytest.mark.slow
def test_data_training_evaluation_and_report(
    tmp_path: Path, tiny_options: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train for one epoch in two processes. They are forks of one server, which imports the libraries only once."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["refseg.cli.quickstart"])
    forks = {"start_method": "forkserver"}
    monkeypatch.setattr("refseg.cli.quickstart.LaunchConfig", lambda **settings: LaunchConfig(**settings | forks))
    report = quickstart(
        config="baseline_tiny_refshapes",
        work_dir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        preset="tiny",
        processes=2,
        cfg_options=tiny_options | {"train_cfg.max_epochs": 1},
    )
    # The output: four steps, each with one bar. The bar of the training is in another process.
    out, err = capsys.readouterr()
    steps = [line for line in out.splitlines() if re.match(r"\d/4 ", line)]
    assert [line[:3] for line in steps] == ["1/4", "2/4", "3/4", "4/4"] and len(out.splitlines()) == 8
    for bar in ("RefShapes tiny", "test", "report"):
        assert re.search(rf"(^|[\r\n]){bar}: 100%", err), f"the bar of {bar} is missing"
    assert "probing" not in err
    page, last = out.splitlines()[-2:]
    assert page.endswith(f" demo {tmp_path / 'work'}") and last == f"the report: {report}"
    # The report
    html = report.read_text()
    assert html.count("data:image/") >= 20
    for words in ("gIoU", "RefShapes tiny", "of 7 images", "by skill", "relation", "nothing here", "<svg", "Several"):
        assert words in html, words
    assert 'class="word' not in html, "the baseline has no instances"
    with Image.open(tmp_path / "work" / "examples.png") as sheet:
        assert sheet.width > 900 and sheet.height > 300
    # `refseg score` gives the same numbers.
    work, scored = tmp_path / "work", tmp_path / "scored.json"
    data = f"{tmp_path / 'data' / 'refshapes.jsonl'}:test"
    command = ["score", str(work / "predictions.jsonl"), "--data", data, "--alignment", "--json", str(scored)]
    assert main(command) == 0
    again, metrics, alignment = (
        json.loads(file.read_text()) for file in (scored, work / "metrics.json", work / ALIGNMENT)
    )
    assert again["metrics"] == metrics
    assert alignment == {key: again[key] for key in ("alignment", "predictions")}
    # The model works without the data: its words are beside the weights.
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    answer = segment(np.zeros((32, 32, 3), np.uint8), "the red circle", model=str(work))
    assert answer[0].mask.shape == (32, 32)


def test_batch_that_processes_cannot_share() -> None:
    cfg = Config(dict(train_dataloader=dict(batch_size=8)))
    with pytest.raises(UsageError, match="8 images cannot be shared by 3 processes"):
        train_in_processes(cfg, 3)


def test_error_of_a_training_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Callable:
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file="none")
        failure.message = {"message": "DataError: no such file: nothing"}
        raise ChildFailedError("train", {1: failure})

    monkeypatch.setattr("refseg.cli.quickstart.elastic_launch", fail)
    cfg = Config(dict(train_dataloader=dict(batch_size=8)))
    with pytest.raises(TrainingError, match="in process 1 of 2: DataError: no such file: nothing"):
        train_in_processes(cfg, 2)


@pytest.mark.parametrize(("cores", "batch_size", "processes"), [(1, 8, 1), (2, 8, 2), (3, 8, 2), (64, 8, 4), (2, 3, 1)])
def test_default_processes(monkeypatch: pytest.MonkeyPatch, cores: int, batch_size: int, processes: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_processes(batch_size) == processes
