import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from refseg import segment
from refseg.cli import main
from refseg.cli.quickstart import default_processes, quickstart, train_in_processes
from refseg.errors import TrainingError, UsageError
from refseg.inference.loading import ALIGNMENT


@pytest.mark.slow
def test_data_training_evaluation_and_report(
    tmp_path: Path, tiny_options: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    report = quickstart(
        config="baseline_tiny_refshapes",
        work_dir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        preset="tiny",
        processes=2,
        cfg_options=tiny_options,
    )
    out, err = capsys.readouterr()
    steps = [line for line in out.splitlines() if re.match(r"\d/4 ", line)]
    assert [line[:3] for line in steps] == ["1/4", "2/4", "3/4", "4/4"] and len(out.splitlines()) == 8
    for bar in ("RefShapes tiny", "test", "report"):  # the bar of the training is in its processes
        assert re.search(rf"(^|[\r\n]){bar}: 100%", err), f"each step shows one bar, and {bar} is missing"
    assert "probing" not in err
    page, last = out.splitlines()[-2:]
    assert page.endswith(f" demo {tmp_path / 'work'}") and last == f"the report: {report}"
    html = report.read_text()
    assert html.count("data:image/") >= 20
    for words in (
        "gIoU",
        "RefShapes tiny",
        "of 7 images",
        "by skill",
        "relation",
        "nothing here",
        "<svg",
        "Several",
    ):
        assert words in html, words
    assert 'class="word' not in html, "the baseline does not tell instances apart"
    metrics = json.loads((tmp_path / "work" / "metrics.json").read_text())
    scored = tmp_path / "scored.json"
    data = f"{tmp_path / 'data' / 'refshapes.jsonl'}:test"
    assert main(["score", str(tmp_path / "work" / "predictions.jsonl"), "--data", data, "--json", str(scored)]) == 0
    assert json.loads(scored.read_text())["metrics"] == metrics
    aligned = ["--alignment", "--json", str(scored)]
    assert main(["score", str(tmp_path / "work" / "predictions.jsonl"), "--data", data, *aligned]) == 0
    alignment, again = (json.loads(file.read_text()) for file in (tmp_path / "work" / ALIGNMENT, scored))
    assert alignment == {key: again[key] for key in ("alignment", "predictions")}
    with Image.open(tmp_path / "work" / "examples.png") as sheet:
        assert sheet.width > 900 and sheet.height > 300
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    answer = segment(np.zeros((32, 32, 3), np.uint8), "the red circle", model=str(tmp_path / "work"))
    assert answer[0].mask.shape == (32, 32), "the words lie beside the weights"


def test_batch_that_processes_cannot_share(tmp_path: Path) -> None:
    cfg = Config(dict(train_dataloader=dict(batch_size=8)))
    with pytest.raises(UsageError, match="8 images cannot be shared by 3 processes"):
        train_in_processes(cfg, 3)


def test_error_of_a_training_process_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
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
