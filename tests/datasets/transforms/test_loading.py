"""Images that `LoadImage` cannot read, in the main process and in data-loading workers."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from PIL import Image
from torch.utils.data import DataLoader

from refseg.datasets import images
from refseg.datasets.dataset import ReferringDataset
from refseg.datasets.transforms import LoadImage
from refseg.errors import ConfigError


def hanging_dataset(folder: Path, timeout: float) -> ReferringDataset:
    """Return a data set of two images. The second is a named pipe without a writer."""
    Image.new("RGB", (10, 8)).save(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    rows = [{"image": name, "size": [8, 10], "text": "it", "targets": None} for name in ("a.png", "pipe.png")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "words.txt").write_text("it")
    return ReferringDataset(
        annotations=dict(format="jsonl", file=str(folder / "rows.jsonl")),
        pipeline=[
            dict(type="LoadImage", timeout=timeout),
            dict(type="LoadText", tokenizer=dict(word_list=str(folder / "words.txt"))),
            dict(type="PackSample"),
        ],
        max_bad_samples=1,
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("storage", "timeout", "reason"),
    [("a pipe", 60.0, "it is a pipe or a device"), ("a call that does not return", 2.0, "no answer from the storage")],
)
def test_hanging_storage_is_a_bad_sample(
    workers: int,
    storage: str,
    timeout: float,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())  # a new logger, which writes to this test's output
    if storage != "a pipe":
        monkeypatch.setattr(images, "_read_regular_file", lambda path: Path(path).read_bytes())
    loader = DataLoader(hanging_dataset(tmp_path, timeout), batch_size=None, num_workers=workers)
    assert [sample.meta.image_id for sample in loader] == ["a.png", "a.png"]
    output = "".join(capfd.readouterr())
    assert f"skipping a bad sample (1): image pipe.png: image cannot be read: {tmp_path}/pipe.png ({reason}" in output


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_invalid_timeouts(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout must be a number of seconds above 0, or None"):
        LoadImage(timeout=timeout)


def test_default_timeout() -> None:
    assert LoadImage().timeout == images.READ_SECONDS > 0
