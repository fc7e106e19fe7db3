"""`refseg data layout`: expected files, and which of them exist."""

from __future__ import annotations

from typing import Any

import pytest

from refseg.cli import main
from refseg.datasets.catalog import SETS


def test_found_and_missing_are_marked(small_set: Any, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "layout", "refcoco", "refcoco-google", "--data-root", str(small_set.root)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "found    refs(unc).p" in lines and "found    instances.json" in lines
    assert "missing  refs(google).p" in lines
    assert "found    train2014/  11 files (the whole download has 82,783)" in lines
    assert lines.count("refcoco/") == 1


def test_summary_of_all_sets(small_set: Any, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "layout", "--data-root", str(small_set.root)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed and known.source in printed for name, known in SETS.items())
    assert "refcoco: RefCOCO, UNC's splits, complete" in printed and "ref-zom: Ref-ZOM, not complete" in printed


def test_details_of_sets(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "layout", "grefcoco", "ref-zom"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("209,344 sentences", "(unverified)", "Ref-ZOM(final).p -> refs(final).p", "used for", "license"):
        assert words in printed


def test_unknown_set(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "layout", "refcocg"]) == 1
    assert "did you mean refcocog" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["layout", "check", "leaks", "browse", "from-coco", "refshapes"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main(["data", command, "--help"])
    assert done.value.code == 0 and f"refseg data {command}" in capsys.readouterr().out
