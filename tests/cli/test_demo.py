"""`refseg demo` before it opens the page: options, the default model, and examples."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg import shipped
from refseg.cli import demo as command
from refseg.cli import main
from refseg.demo import examples
from refseg.demo.examples import Example
from refseg.records import Expression, Record


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no weights for the model refshapes"),
        (["no_such_folder"], "no_such_folder"),
        (["x", "--max-phrases", "0"], "the limit phrases must be positive"),
        (["x", "--root-path", "refseg/"], "--root-path must begin with /"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if arguments in ([], ["no_such_folder"]) and importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "MODELS", tmp_path)
    keep_environment(monkeypatch)
    assert main(["demo", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("refseg demo: error: ") and says in err and "Traceback" not in err


def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the variables that the command sets."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")


def test_gradio_is_missing(
    work_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    assert main(["demo", str(work_dir("instalign_tiny_refshapes"))]) == 1
    assert "pip install 'refseg[demo]'" in capsys.readouterr().err


def test_default_model() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert parser.parse_args([]).model == shipped.REFSHAPES


def test_gradio_sends_no_analytics_and_bypasses_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_environment(monkeypatch)
    command.prepare_environment(tmp_path, "192.0.2.1")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1,192.0.2.1"


class TestExamples:
    def test_examples_come_from_the_test_split(self, work_dir: Callable[[str], Path], refshapes_tiny: Path) -> None:
        found = examples.default_examples(work_dir("instalign_tiny_refshapes") / "instalign_tiny_refshapes.py")
        rows = [json.loads(line) for line in (refshapes_tiny / "refshapes.jsonl").read_text().splitlines()]
        texts = {(str(refshapes_tiny / row["image"]), row["text"]) for row in rows if row["split"] == "test"}
        assert len(found) == examples.MAX_EXAMPLES
        assert {(str(one.image), phrase) for one in found for phrase in one.phrases} <= texts

    def test_no_examples_without_the_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from refseg.paths import resolve_config

        monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
        assert examples.default_examples(resolve_config("instalign_tiny_refshapes")) == []

    def test_first_phrase_of_each_kind(self) -> None:
        """Take the first phrase of each kind in the split. Skip images without any."""

        def phrase(text: str, referents: int, split: str = "test") -> Expression:
            return Expression(text, text, tuple(range(referents)), split)

        records = [
            Record(
                "1", "a.png", (4, 4), [], [phrase("none", 0), phrase("one", 1), phrase("more", 3), phrase("two", 2)]
            ),
            Record("2", "b.png", (4, 4), [], [phrase("other", 1, "train")]),
            Record("3", "c.png", (4, 4), [], [phrase("first", 1), phrase("second", 1)]),
        ]
        assert examples.choose_examples(records, "test", Path("d")) == [
            Example(Path("d/a.png"), ("one", "more", "none")),
            Example(Path("d/c.png"), ("first",)),
        ]

    def test_examples_from_a_file(self, tmp_path: Path, refshapes_images: list[str]) -> None:
        """Missing images are skipped. The others are copied, even if their names are equal."""
        lines = [{"image": refshapes_images[0], "texts": ["a", "b"]}, {"image": "gone.png", "text": "c"}]
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
        found = examples.read_examples(str(tmp_path / "own.jsonl"))
        assert [one.phrases for one in found] == [("a", "b"), ("c",)]
        (copy,) = examples.copy_examples(found, tmp_path / "copies")
        assert copy.image.parent.parent == tmp_path / "copies" and copy.image.name == Path(refshapes_images[0]).name
        assert copy.image.read_bytes() == Path(refshapes_images[0]).read_bytes()
