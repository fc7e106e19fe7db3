"""`refseg label`: tasks, rules for rows, continuing after a kill, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from refseg.cli import main
from refseg.datasets.collate import collate_samples
from refseg.datasets.masks import decode
from refseg.datasets.readers.jsonl import read_jsonl
from refseg.engine.run import RunOptions, build_model, load_config
from refseg.errors import DataError, UsageError
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import Loading
from refseg.inference.label import (
    NO_PIXEL,
    UNKNOWN_WORDS,
    UNLIKE,
    LabelRun,
    LabelTask,
    Rules,
    Splits,
    label_tasks,
    rows_of_answer,
)
from refseg.instance import Instance
from refseg.registry import DATASETS

PHRASES = ("the red circle", "all stars", "the blue square", "a zebra")
SHARES = ("--val-share", "0.3", "--seed", "1")
# Arguments of processes, their ranks and world sizes -> exit codes. The processes are forks, which start quickly. The
# first one is killed while it writes the rows of its third image.
PROCESSES = """
import json, os, signal, sys
import refseg.inference.label
from refseg.cli import main
from refseg.inference.journal import Journal

write = Journal.write
def killed(self, rows):
    write(self, rows[:2] if len(self.done) == 2 else rows)
    if len(self.done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

def start(number, words, rank, world_size):
    process = os.fork()
    if not process:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        if number == 0:
            Journal.write = killed
        code = main(words)
        sys.stdout.flush()
        os._exit(code)
    return process

processes = [start(number, *job) for number, job in enumerate(json.loads(sys.argv[1]))]
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
sys.exit(print(json.dumps(codes)))
"""


@pytest.fixture(scope="module")
def inferencer() -> ReferringInferencer:
    with pytest.warns(UserWarning, match="drawn shapes only"):
        return ReferringInferencer("refshapes", device="cpu", loading=Loading(upright=False))


@pytest.fixture(scope="module")
def photos(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with seven images and a truncated one."""
    folder = tmp_path_factory.mktemp("label") / "photos"
    folder.mkdir()
    for number, image in enumerate(sorted((refshapes_tiny / "images").glob("*.png"))[:7]):
        (folder / f"{number}.png").write_bytes(image.read_bytes())
    (folder / "3b.png").write_bytes((folder / "3.png").read_bytes()[:100])
    return folder


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    return ["label", "refshapes", "--images", str(photos), "--vocabulary", *PHRASES, "--out", str(out), *SHARES, *more]


@pytest.fixture(scope="module")
def labels(photos: Path) -> Path:
    """Label the images in one process."""
    out = photos.parent / "own.jsonl"
    assert main(arguments(photos, out)) == 3
    return out


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_tasks(photos: Path, tmp_path: Path) -> None:
    """Image paths are relative to the output. An image that is found twice is one."""
    (tmp_path / "phrases.txt").write_text("\ufeffa dog\n\n  two cats \n")
    out = photos.parent / "sub" / "own.jsonl"
    tasks = label_tasks([str(photos), str(photos / "0.png")], str(tmp_path / "phrases.txt"), [], out)
    assert [task.image for task in tasks[:2]] == ["../photos/0.png", "../photos/1.png"] and len(tasks) == 8
    assert tasks[0] == LabelTask("../photos/0.png", str(photos / "0.png"), ("a dog", "two cats"))
    (photos.parent / "list.jsonl").write_text(
        '{"image": "photos/1.png", "texts": ["x", "y"]}\n{"image": "photos/0.png", "text": "x"}\n'
    )
    one, zero = label_tasks([], str(photos.parent / "list.jsonl"), [], photos.parent / "own.jsonl")
    assert one == LabelTask("photos/1.png", str(photos / "1.png"), ("x", "y")) and zero.texts == ("x",)


@pytest.mark.parametrize(
    ("images", "content", "vocabulary", "says"),
    [
        (["."], None, [], "either --phrases FILE or --vocabulary"),
        (["."], ("p.txt", "dog"), ["dog"], "either --phrases FILE or --vocabulary"),
        ([], None, ["dog"], "No images. Pass --images"),
        (["https://a.b/c.png"], None, ["dog"], "Download the image first"),
        (["nowhere"], None, ["dog"], "no such image, folder or pattern: nowhere"),
        (["."], None, ["dog", " Dog"], "--vocabulary, phrase 1: the phrase ' Dog' repeats --vocabulary, phrase 0"),
        (["."], None, ["dog", " "], "--vocabulary: phrase 1 is empty"),
        (["."], None, ["\udcff"], "phrase 0: .* holds half a character"),
        (["."], ("p.txt", "\n \n"), [], r"p\.txt has no phrase. Write one phrase per line"),
        (["."], ("p.txt", "a\nb\nA"), [], r"p\.txt, line 3: the phrase 'A' repeats .*p\.txt, line 1. Remove"),
        (["."], ("p.txt", '{"image": "a"}'), [], r"p\.txt, line 1 looks like JSON.*Rename"),
        ([], ("p.jsonl", ""), [], r"p\.jsonl is empty. Write lines"),
        (["."], ("p.jsonl", '{"image": "a", "text": "b"}'), [], "leave out --images"),
        ([], ("p.jsonl", '{"image": "a", "texts": ["b", "b"]}'), [], r"phrase 1 of .*a: the phrase 'b' repeats"),
        ([], ("p.jsonl", '{"image": "\\udcff", "text": "b"}'), [], "is not UTF-8. Rename the file"),
    ],
)
def test_invalid_tasks(
    images: list[str], content: tuple[str, str] | None, vocabulary: list[str], says: str, tmp_path: Path
) -> None:
    file = None
    if content is not None:
        file = tmp_path / content[0]
        file.write_text(content[1])
    with pytest.raises((DataError, UsageError), match=says):
        label_tasks(images, file and str(file), vocabulary, tmp_path / "own.jsonl")


def test_missing_file_of_phrases(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        label_tasks(["."], str(tmp_path / "none.txt"), [], tmp_path / "own.jsonl")


# Rows -----------------------------------------------------------------------------------------------------------------


def phrase(*, score: float = 0.0, no_target_prob: float | None = None, **more: Any) -> Any:
    """Return an answer, which is "nothing here" if it has no score."""
    defaults = {"text": "x", "unknown_words": (), "nothing_here": not score, "objects": ()}
    return SimpleNamespace(score=score, no_target_prob=no_target_prob, **(defaults | more))


def test_rules() -> None:
    """Thresholds are inclusive. What lies between positives and negatives has a reason."""
    rules = Rules(confidence=0.6, negative_confidence=0.9)
    assert rules.reason_to_skip(phrase(score=0.6)) == ""
    assert rules.reason_to_skip(phrase(score=0.59)) == "below --confidence 0.6"
    assert rules.reason_to_skip(phrase(score=0.8, no_target_prob=0.25)) == "", "0.8 x 0.75 = 0.6"
    assert rules.reason_to_skip(phrase(score=0.8, no_target_prob=0.26)) == "below --confidence 0.6"
    assert rules.reason_to_skip(phrase(no_target_prob=0.9)) == ""
    assert "below --negative-confidence 0.9" in rules.reason_to_skip(phrase(no_target_prob=0.89))
    assert rules.reason_to_skip(phrase(score=0.9, unknown_words=("bus",))) == UNKNOWN_WORDS
    assert "--empty-is-negative accepts them" in rules.reason_to_skip(phrase())
    assert Rules(empty_is_negative=True).reason_to_skip(phrase()) == ""
    assert Rules(empty_is_negative=True).reason_to_skip(phrase(no_target_prob=0.5)), "the model's probability counts"


def test_rows() -> None:
    """An object without a pixel is no target, and nothing is known about images unlike those of the training."""
    full, empty = Instance(np.ones((2, 3), bool), 0.7), Instance(np.zeros((2, 3), bool), 0.7)
    phrases = [phrase(score=0.8, objects=(full, empty)), phrase(score=0.8, objects=(empty,)), phrase()]
    task = LabelTask("a.png", "a.png", ("x", "x", "x"))

    def rows(note: str) -> list[dict]:
        answer: Any = type("Answer", (list,), {"note": note, "size": (2, 3), "num_cut": 1})(phrases)
        return rows_of_answer(answer, task, Rules(empty_is_negative=True))

    positive, skipped, negative = rows("")
    assert len(positive["targets"]) == 1 and decode(positive["targets"][0]).all()
    assert positive["confidence"] == 0.8 and positive["size"] == [2, 3] and positive["cut"] == 1
    assert skipped["skipped"] == NO_PIXEL
    assert negative["targets"] is None and negative["confidence"] is None
    assert {row["skipped"] for row in rows("a photograph")} == {UNLIKE}


def test_model_without_instances(photos: Path, inferencer: ReferringInferencer) -> None:
    """The merged mask is the one target."""
    answer = inferencer(str(photos / "0.png"), ["the red circle", "all stars", "the blue square"])
    phrases = [one for one in answer if not one.nothing_here]
    assert phrases
    for one in phrases:
        object.__setattr__(one, "raw_instances", None)
    task = LabelTask("0.png", "0.png", tuple(one.text for one in answer))
    rows = rows_of_answer(answer, task, Rules())
    for one, row in zip(answer, rows, strict=True):
        if not one.nothing_here:
            (target,) = row["targets"]
            assert (decode(target) == one.mask).all()


def test_splits() -> None:
    """The split of an image depends on its path and the seed only. About a quarter of 1,000 images are in val."""
    images = [f"{number}.png" for number in range(1000)]
    splits = Splits("train", 0.25, seed=3)
    val = {image for image in images if splits.of_image(image) == "val"}
    assert 200 < len(val) < 300 and val == {image for image in images[::-1] if splits.of_image(image) == "val"}
    assert val != {image for image in images if Splits("train", 0.25, seed=4).of_image(image) == "val"}
    assert {Splits("test").of_image(image) for image in images} == {"test"}
    assert {Splits("test", 1.0).of_image(image) for image in images} == {"val"}
    with pytest.raises(UsageError, match="--split '' is blank"):
        Splits("")


# The command ----------------------------------------------------------------------------------------------------------


def test_labels_are_the_answers(photos: Path, labels: Path, inferencer: ReferringInferencer) -> None:
    """Each confident answer is a row with the masks of its instances, without loss."""
    rows = {row["expression_id"]: row for row in rows_of(labels)}
    numbers = [0, 0]
    for number in range(7):
        for k, one in enumerate(inferencer(str(photos / f"{number}.png"), PHRASES)):
            row = rows.pop(f"photos/{number}.png#{k}", None)
            if row is None:
                certain = one.no_target_prob if one.nothing_here else one.score * (1 - one.no_target_prob)
                assert one.unknown_words or certain < (0.9 if one.nothing_here else 0.5)
                continue
            assert row["text"] == one.text and row["image"] == f"photos/{number}.png"
            assert row["size"] == list(one.mask.shape) and row["tags"]["labeled_by"] == "refshapes"
            numbers[one.nothing_here] += 1
            if one.nothing_here:
                assert row["targets"] is None and row["tags"]["confidence"] == round(one.no_target_prob, 4) >= 0.9
            else:
                assert row["tags"]["confidence"] == round(one.score * (1 - one.no_target_prob), 4) >= 0.5
                for target, instance in zip(row["targets"], one.objects, strict=True):
                    assert (decode(target) == instance.mask).all()
    assert not rows and min(numbers) > 0
    assert {row["split"] for row in rows_of(labels)} == {"train", "val"}


def test_summary(photos: Path, labels: Path, capsys: pytest.CaptureFixture) -> None:
    """A finished run writes the same file again, and tries only the images that could not be read."""
    before = labels.read_bytes()
    assert main(arguments(photos, labels)) == 3
    out, err = capsys.readouterr()
    assert labels.read_bytes() == before and "own.jsonl: 7 images, 28 phrases: " in out and "rows: " in out
    assert "skipped: 7 phrases with words that the model does not know: zebra (7)" in out
    assert "skipped: 1 image that could not be read (first: image is truncated or corrupt" in out
    assert f"refseg data check {labels}\n" in out and f"refseg data browse {labels}\n" in out
    assert err.count("skipped: image is truncated or corrupt") == 1


def test_labels_pass_the_check_and_train(
    labels: Path, tiny_options: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "check", str(labels), "--images", "all"]) == 0 and "own.jsonl  OK" in capsys.readouterr().out
    assert all("confidence" in one.tags for record in read_jsonl(file=labels).records for one in record.expressions)
    assert main(["data", "browse", str(labels), "--out", str(tmp_path / "browse.html")]) == 0
    assert "labeled_by: refshapes" in (tmp_path / "browse.html").read_text()
    options = tiny_options | {"train_dataloader.dataset.annotations.file": str(labels)}
    cfg = load_config("baseline_tiny_refshapes", RunOptions(cfg_options=options))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = build_model(cfg).train()
    data = model.data_preprocessor(collate_samples([dataset[0], dataset[1]]), True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert torch.isfinite(loss) and any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_processes_write_the_same_bytes(photos: Path, labels: Path) -> None:
    """Two and three processes end in any order. The last one writes what a single process writes.

    One of two is killed in the middle of its third image, and one process finishes the work of both.
    """
    two, three = photos.parent / "two.jsonl", photos.parent / "three.jsonl"
    jobs = [(arguments(photos, two), rank, 2) for rank in range(2)]
    jobs += [(arguments(photos, three), rank, 3) for rank in range(3)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESSES, json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes == [-signal.SIGKILL, 0, 0, 0, 0], "torchrun would end the others after another code"
    assert "three.jsonl: 7 images" in done.stdout
    assert three.read_bytes() == labels.read_bytes()

    assert f"process 1 of 2 is done. The last process to finish writes {two}" in done.stderr and not two.exists()
    journal = Path(f"{two}.parts", "0.jsonl")
    assert len(journal.read_bytes().splitlines()) == 1 + 2 * len(PHRASES) + 2, "the third image is incomplete"
    assert main(arguments(photos, two)) == 3
    assert two.read_bytes() == labels.read_bytes()


def test_repaired_and_new_images_are_added(photos: Path, inferencer: ReferringInferencer, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes((photos / "0.png").read_bytes())
    (folder / "1.png").write_bytes(b"no image")
    assert label(inferencer, folder).failures.keys() == {"photos/1.png"}
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    summary = label(inferencer, folder)
    assert summary.images == 3 and not summary.failures
    images = [row["image"] for row in rows_of(tmp_path / "own.jsonl")]
    assert images == sorted(images) and len(set(images)) == 3


def label(inferencer: ReferringInferencer, folder: Path, *, texts: Sequence[str] = PHRASES, **changes: Any) -> Any:
    """Label a folder into own.jsonl beside it."""
    out = folder.parent / "own.jsonl"
    tasks = label_tasks([str(folder)], None, texts, out)
    fields: dict[str, Any] = {"rules": Rules(), "header": {"checkpoint": "x"}}
    run = LabelRun(out, tasks, splits=Splits(), labeled_by="refshapes", **(fields | changes))
    run.answer(inferencer)
    return run.merge()


def test_changed_run_is_refused(photos: Path, inferencer: ReferringInferencer, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes((photos / "0.png").read_bytes())
    label(inferencer, folder)
    remedy = r"Please use another --out, or delete .*own\.jsonl and .*own\.jsonl\.parts to start over"
    with pytest.raises(UsageError, match=rf"made with another confidence\. {remedy}"):
        label(inferencer, folder, rules=Rules(confidence=0.7))
    with pytest.raises(UsageError, match=rf"made with another checkpoint\. {remedy}"):
        label(inferencer, folder, header={"checkpoint": "y"})
    with pytest.raises(UsageError, match=rf"made with another checkpoint\. {remedy}"):  # of another process too
        label(inferencer, folder, header={"checkpoint": "y"}, rank=1, world_size=2)
    with pytest.raises(UsageError, match=rf"other phrases of photos/0\.png\. {remedy}"):
        label(inferencer, folder, texts=["the red circle"])
    # An output that was edited, is not of this run, or would not be read as JSONL
    out = tmp_path / "own.jsonl"
    out.write_text(out.read_text() + "\n")
    with pytest.raises(UsageError, match=r"own\.jsonl has changed since refseg label wrote it"):
        label(inferencer, folder)
    out.rename(tmp_path / "edited.jsonl")
    assert label(inferencer, folder).images == 1, "the edited file is kept, and the labels are written again"
    (tmp_path / "own.jsonl.parts" / "written.txt").unlink()
    with pytest.raises(UsageError, match=r"own\.jsonl exists and was not made by this run"):
        label(inferencer, folder)


def test_no_confident_answer(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["label", "refshapes", "--images", str(photos / "0.png"), "--vocabulary", "a zebra", "--out"]
    assert main([*words, str(tmp_path / "own.jsonl")]) == 1
    err = capsys.readouterr().err
    assert "no answer is certain enough for a row" in err and "zebra (1)" in err and "with another --out" in err
    assert not (tmp_path / "own.jsonl").exists()
    assert main([*words, str(tmp_path / "own.txt")]) == 1 and "must end in .jsonl" in capsys.readouterr().err


def test_too_many_unreadable_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(photos, tmp_path / "own.jsonl", "--max-failures", "0")) == 1
    assert "more than 0 images could not be read (--max-failures)" in capsys.readouterr().err
    assert not (tmp_path / "own.jsonl").exists()


def test_impossible_rank(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert main(arguments(photos, tmp_path / "own.jsonl")) == 1
    assert "RANK is 2, but WORLD_SIZE is 2" in capsys.readouterr().err
