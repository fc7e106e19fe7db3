"""`refseg predict`: tasks, outputs, and continuing after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from refseg.cli import main
from refseg.datasets.masks import decode
from refseg.datasets.readers.jsonl import read_jsonl
from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import read_header, read_predictions
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.journal import Journal
from refseg.inference.predict import (
    JOURNAL,
    PARTS,
    ImageTask,
    Output,
    Summary,
    output_names,
    phrase_files,
    predict,
    tasks_of,
)

CONFIG = "instalign_tiny_refshapes"
TEXTS = ("the red circle", "a square")


@pytest.fixture(scope="module")
def inferencer(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    """Return a model with random weights, without the no-target rule (it would reject everything)."""
    settings = {"no_target": "none", "max_instances": 2}
    return ReferringInferencer(work_dir(CONFIG), device="cpu", postprocess=settings)


@pytest.fixture
def photos(refshapes_images: list[str], tmp_path: Path) -> Path:
    """Return a folder with three images and a truncated one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in zip(("a.png", "b.png", "d.png"), refshapes_images, strict=False):
        (folder / name).write_bytes(Path(image).read_bytes())
    (folder / "c.png").write_bytes(Path(refshapes_images[3]).read_bytes()[:100])
    return folder


def rows_of(out: Path) -> list[dict]:
    lines = (out / JOURNAL).read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_tasks_from_options(photos: Path) -> None:
    tasks = tasks_of([str(photos), str(photos / "a.png")], TEXTS, None)
    assert [Path(task.image).name for task in tasks] == ["a.png", "b.png", "c.png", "d.png"]
    assert tasks[0].texts == TEXTS and tasks[0].ids == (f"{photos}/a.png#0", f"{photos}/a.png#1")


def test_tasks_from_jsonl(tmp_path: Path) -> None:
    """Paths are relative to the file. Lines of one image are merged, ids are kept, and other keys are ignored."""
    (tmp_path / "list.jsonl").write_text(
        '\ufeff{"image": "a.png", "texts": ["x", "y"]}\n\n'
        '{"image": "../b.png", "text": "z", "expression_id": 7, "targets": null}\n'
        '{"image": "./a.png", "text": "w"}\n'
    )
    a, b = tasks_of([], [], str(tmp_path / "list.jsonl"))
    assert a == ImageTask(f"{tmp_path}/a.png", ("x", "y", "w"), ("a.png:0", "a.png:1", "./a.png:0"))
    assert b == ImageTask(f"{tmp_path.parent}/b.png", ("z",), ("7",))


def test_tasks_have_the_ids_of_the_data_set(tmp_path: Path) -> None:
    row = {"size": [4, 6], "text": "x", "targets": None}
    rows = [{"image": "a.png", **row}, {"image": "photos/b.png", **row}, {"image": "a.png", "expression_id": 9, **row}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    tasks = tasks_of([], [], str(tmp_path / "own.jsonl"))
    records = read_jsonl(file=tmp_path / "own.jsonl").records
    assert [list(task.ids) for task in tasks] == [[one.expression_id for one in of.expressions] for of in records]
    assert tasks[0].ids == ("a.png:0", "9", "a.png:2")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: expected"),
        ('{"texts": ["x"]}', "line 2: expected"),
        ("7", "line 2: expected"),
        ('{"image": "a.png"}', "line 2: .* exactly one of"),
        ('{"image": 3, "text": "x"}', "line 2: 'image' must be a path"),
        ('{"image": "a.png", "texts": []}', "line 2: there is no phrase"),
        ('{"image": "a.png", "texts": [" "]}', "line 2: phrase 0 is empty"),
        ('{"image": "a.png", "texts": "red"}', "line 2: texts must be a list of phrases, not 'red'"),
        ('{"image": "b.png", "text": "x", "expression_id": "1"}', "have several phrases, such as '1'"),
    ],
)
def test_invalid_lines(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "text": "x", "expression_id": 1}\n' + line)
    with pytest.raises((DataError, UsageError), match=says):
        tasks_of([], [], str(tmp_path / "list.jsonl"))


def test_output_names() -> None:
    names = output_names(["x/a.png", "y/A.jpg", "b c/d*e.png", "..", "f.png"])
    assert names["b c/d*e.png"] == "d_e" and names["f.png"] == "f" and names[".."] not in ("", "..")
    assert len(set(names.values())) == 5 and names["x/a.png"].startswith("a-")
    assert not any("/" in name for name in names.values())
    for letter in ("\u7ea2", "\U00020000"):  # three bytes and four: a name of 255 has room for a suffix and a hash
        assert len(output_names([f"{85 * letter}.png"])[f"{85 * letter}.png"].encode()) in (78, 80)
        (file,) = phrase_files(Path(), [100 * letter])
        assert file.name == f"0_{(60 // len(letter.encode())) * letter}.png"


# Running --------------------------------------------------------------------------------------------------------------


def test_all_outputs(inferencer: ReferringInferencer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = tasks_of([str(photos)], TEXTS, None)
    output = Output(out, frozenset(("coco", "labelstudio", "masks")), show=True, heat=True)
    summary = predict(inferencer, tasks, output, header={"checkpoint": "x"})
    assert (summary.images, summary.phrases, summary.nothing) == (3, 6, 0)
    assert list(summary.failures) == [f"{photos}/c.png"]
    assert summary.in_words(1) == "3 images, 6 phrases (0 of them: nothing here) in 1.0 s; 1 image could not be read"

    rows = list(read_predictions(out / JOURNAL))
    assert read_header(out / JOURNAL) == {"checkpoint": "x"} and len(rows) == 6
    answer = inferencer(str(photos / "b.png"), TEXTS)
    for k, phrase in enumerate(answer):
        row = next(row for row in rows if row.expression_id == f"{photos}/b.png#{k}")
        assert row.source == phrase.raw_rle and row.raw_instances
        assert [one.rle for one in row.raw_instances] == [one.rle for one in phrase.raw_instances if one.mask.any()]
        (file,) = (out / "masks" / "b").glob(f"{k}_*.png")
        assert (np.asarray(Image.open(file)) == phrase.mask).all()
    assert (out / "masks" / "b" / "0_the_red_circle.png").is_file()
    assert sorted(file.stem for file in (out / "pictures").iterdir()) == ["a", "b", "d"]
    assert len(list((out / "heat").rglob("*.png"))) == 6
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert failures[0]["image"] == f"{photos}/c.png" and "corrupt" in failures[0]["error"]
    entries = json.loads((out / "coco.json").read_text())
    shown = [row.get("shown", range(len(row["instances"]))) for row in rows_of(out)]
    assert len(entries) == sum(len(of_row) or 1 for of_row in shown)
    assert len(json.loads((out / "labelstudio.json").read_text())) == 3


def test_rerun_answers_only_what_is_missing(
    inferencer: ReferringInferencer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New and repaired images are answered, missing files are written, and no row is written twice."""
    out = tmp_path / "out"
    asked: list[str] = []
    stream = inferencer.stream

    def listening(tasks: list, **kwargs: object) -> object:
        asked[:] = [Path(source.name).name for source, _ in tasks]
        return stream(tasks, **kwargs)

    monkeypatch.setattr(inferencer, "stream", listening)

    def run(output: Output) -> int:
        return predict(inferencer, tasks_of([str(photos)], TEXTS, None), output).kept

    assert run(Output(out)) == 0 and asked == ["a.png", "b.png", "c.png", "d.png"]
    assert run(Output(out)) == 3 and asked == ["c.png"]
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes())
    assert run(Output(out)) == 3 and asked == ["c.png"] and not (out / "failures.jsonl").exists()
    assert run(Output(out)) == 4 and asked == []
    with_masks = Output(out, frozenset(("masks",)))
    assert run(with_masks) == 0 and len(asked) == 4
    next((out / "masks" / "b").iterdir()).unlink()
    assert run(with_masks) == 3 and asked == ["b.png"]
    names = [row["expression_id"] for row in rows_of(out)]
    assert len(names) == len(set(names)) == 8


def test_processes_write_the_same_bytes(inferencer: ReferringInferencer, photos: Path, tmp_path: Path) -> None:
    """Each of two or three processes answers its share, in any order. One is killed after an image, and the next run
    has another number of processes."""
    tasks = tasks_of([str(photos)], TEXTS, None)  # a, b, c, d; c cannot be read

    def run(name: str, rank: int, size: int) -> Summary:
        output = Output(tmp_path / name, frozenset(("coco", "masks")))
        return predict(inferencer, tasks, output, header={"checkpoint": "x"}, rank=rank, world_size=size)

    first, second = run("two", 1, 2), run("two", 0, 2)
    assert (first.images, first.merged, second.images, second.merged) == (2, False, 1, True)
    assert list(second.failures) == [f"{photos}/c.png"] and not first.failures

    stream = inferencer.stream
    with mock.patch.object(inferencer, "stream", lambda *args, **kwargs: islice(stream(*args, **kwargs), 1)):
        run("three", 0, 3)
    part = tmp_path / "three" / PARTS / "0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])  # killed while it wrote
    (tmp_path / "three" / PARTS / "0.failures.json").unlink()
    assert [run("three", rank, 3).merged for rank in (2, 1, 0)] == [False, False, True]
    for name in (JOURNAL, "coco.json", "failures.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    wanted = [f"{photos}/{name}.png#{k}" for name in "abd" for k in (0, 1)]
    assert [row["expression_id"] for row in rows_of(tmp_path / "two")] == wanted
    assert len(list((tmp_path / "two" / "masks").rglob("*.png"))) == 6

    predict(inferencer, tasks, Output(tmp_path / "one"), header={"checkpoint": "x"})
    assert sorted(row["expression_id"] for row in rows_of(tmp_path / "one")) == wanted


def test_one_process_continues_the_work_of_several(
    inferencer: ReferringInferencer, photos: Path, tmp_path: Path
) -> None:
    """Two of three processes are gone. The image that the third one could not read is repaired before the next run."""
    tasks, output = tasks_of([str(photos)], TEXTS, None), Output(tmp_path / "out")
    first = predict(inferencer, tasks, output, rank=2, world_size=3)  # c
    assert first.failures and not first.merged and not (tmp_path / "out" / JOURNAL).exists()
    predict(inferencer, tasks[:1], output, rank=0, world_size=3)  # a
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes())
    last = predict(inferencer, tasks, output)
    assert last.merged and (last.kept, last.images) == (1, 3) and not last.failures
    assert [Path(row["image"]).stem for row in rows_of(tmp_path / "out")[::2]] == ["a", "b", "c", "d"]
    assert not (tmp_path / "out" / "failures.jsonl").exists()
    again = predict(inferencer, tasks, output, restart=True)
    assert (again.kept, again.images) == (0, 4) and not (tmp_path / "out" / PARTS).exists()


def test_interrupted_run_continues(tmp_path: Path) -> None:
    """The file is cut after each byte. Complete images stay, and the end result is the same file."""
    tasks = {"a": ("x", "y"), "b": ("x",), "c": ("x", "y")}
    rows = {image: [{"expression_id": f"{image}{k}", "image": image, "text": text} for k, text in enumerate(texts)]
            for image, texts in tasks.items()}  # fmt: skip
    whole = tmp_path / "whole.jsonl"
    with Journal(whole, header={"a": (1,)}, tasks=tasks) as journal:
        for image in tasks:
            journal.write(rows[image])
    content = whole.read_bytes()
    kept = []
    for length in range(len(content)):
        file = tmp_path / "cut.jsonl"
        file.write_bytes(content[:length])
        with Journal(file, header={"a": (1,)}, tasks=tasks) as journal:
            kept.append(len(journal.done))
            for image in tasks:
                if image not in journal.done:
                    journal.write(rows[image])
            assert [row["expression_id"] for row in journal.rows()] == ["a0", "a1", "b0", "c0", "c1"]
        assert file.read_bytes() == content
    assert kept == sorted(kept) and kept[0] == 0 and kept[-1] == 2 and 1 in kept


def test_journal_errors(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    row = {"expression_id": "1", "image": "a", "text": "x"}
    with Journal(file, header={"threshold": 0.5}, tasks={"a": ["x"]}) as journal:
        journal.write([row])
        with pytest.raises(UsageError, match="Another run is writing"):
            Journal(file, header={"threshold": 0.5}, tasks={"a": ["x"]})
    with pytest.raises(UsageError, match=r"made with another threshold\. Please use another --out, or --restart"):
        Journal(file, header={"threshold": 0.4}, tasks={"a": ["x"]})
    with pytest.raises(UsageError, match="other phrases of a"):
        Journal(file, header={"threshold": 0.5}, tasks={"a": ["y"]})
    with Journal(file, header={"threshold": 0.5}, tasks={"b": ["y"]}) as journal:
        assert journal.done == {"a"}, "images of other tasks stay"
    with Journal(file, header={"threshold": 0.4}, tasks={}, restart=True) as journal:
        assert not journal.done
    file.write_bytes(file.read_bytes() + b"{}\n")
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not a row"):
        Journal(file, header={"threshold": 0.4}, tasks={})
    file.write_text("a file of somebody else\n")
    with pytest.raises(UsageError, match="not made by refseg"):
        Journal(file, header={}, tasks={})
    assert file.read_text() == "a file of somebody else\n" and not list(tmp_path.glob("*.lock"))
    for folder in (file, file / "below"):
        with pytest.raises(UsageError, match=r"Cannot write to the folder .*p\.jsonl.*Use another --out"):
            Journal(folder / "predictions.jsonl", header={}, tasks={})


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_command(work_dir: Callable[[str], Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = str(work_dir(CONFIG))
    texts = [word for text in TEXTS for word in ("--text", text)]  # the option may be repeated
    assert main(["predict", folder, "--image", str(photos / "a.png"), *texts, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("nothing here") == 2, "nothing here is an answer, not an error"
    assert "1 image, 2 phrases (2 of them: nothing here)" in printed.err
    out = str(tmp_path / "out")
    arguments = ["predict", folder, "--image", str(photos), "--text", "a square", "--device", "cpu", "--out", out]
    assert main([*arguments, "--format", "masks"]) == 3
    assert "skipped: image is truncated or corrupt" in capsys.readouterr().err
    header = read_header(Path(out, JOURNAL))
    assert len(header["checkpoint"]["sha256"]) == 64 and header["postprocess"]["threshold"] == 0.5
    assert main([*arguments, "--threshold", "0.3"]) == 1
    assert "made with another postprocess" in capsys.readouterr().err
    assert main([*arguments, "--threshold", "0.3", "--restart", "--max-failures", "0"]) == 1
    assert "more than 0 images could not be read (--max-failures)" in capsys.readouterr().err
    nothing = rows_of(Path(out))
    assert all(row["nothing_here"] and decode(row["mask"]).any() for row in nothing), "the file has the raw masks"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Pass --image and --text, or --jsonl"),
        (["--image", "."], "Pass --image and --text, or --jsonl"),
        (["--image", "nowhere.png", "--text", "x"], "no such image, folder or pattern: nowhere.png"),
        (["--jsonl", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--jsonl", "a.jsonl", "--text", "x"], "leave out --image and --text"),
        (["--image", "x", "--text", "x", "--show"], "need --out DIR"),
    ],
)
def test_command_errors(
    arguments: list[str], says: str, work_dir: Callable[[str], Path], capsys: pytest.CaptureFixture
) -> None:
    assert main(["predict", str(work_dir(CONFIG)), *arguments]) == 1
    err = capsys.readouterr().err
    assert "refseg predict: error: " in err and says in err and "Traceback" not in err


def test_one_of_several_processes_needs_a_folder(
    work_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["predict", str(work_dir(CONFIG)), "--image", "x.png", "--text", "x", "--device", "cpu"]
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert main([*command, "--launcher", "slurm"]) == 1
    assert "this is one of 4 processes, by WORLD_SIZE or --launcher, which need --out DIR" in capsys.readouterr().err
    assert main([*command, "--out", "o", "--restart", "--launcher", "slurm"]) == 1
    assert "which cannot --restart: delete --out yourself" in capsys.readouterr().err
    assert main(command) == 1 and "no such image" in capsys.readouterr().err, "a batch script is a single process"
