"""`refseg serve`: options, messages, and a server that is stopped before it runs."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refseg.cli import main

pytest.importorskip("fastapi", reason="FastAPI is not installed (the extra demo)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no_such_folder"], "no_such_folder"),
        (["x", "--max-phrases", "0"], "the limit phrases must be positive"),
        (["x", "--token", ""], "--token must be ASCII text"),
        (["x", "--token", "a b"], "--token must be ASCII text"),
        (["x", "--label-studio-files", "no_such_folder"], "no_such_folder is not a folder"),
        (["x", "--port", "70000"], "cannot start a server on 127.0.0.1, port 70000"),
        (["x", "--host", "192.0.2.1"], "cannot start a server on 192.0.2.1"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    assert main(["serve", *arguments, *port]) == 1
    err = capsys.readouterr().err
    assert err.startswith("refseg serve: error: ") and says in err and "Traceback" not in err


def test_port_in_use(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "x", "--port", str(taken.getsockname()[1])]) == 1
    assert "Choose another port with --port" in capsys.readouterr().err


def test_fastapi_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    find = importlib.util.find_spec
    missing: Any = lambda name, *more: None if name == "fastapi" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert main(["serve", "x"]) == 1
    assert "pip install 'refseg[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "warns"), [([], False), (["--host", "0.0.0.0"], True), (["--token", "t"], False)])
def test_start(
    more: list[str],
    warns: bool,
    work_dir: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    import uvicorn

    monkeypatch.delenv("REFSEG_TOKEN", raising=False)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert main(["serve", str(work_dir("instalign_tiny_refshapes")), "--port", "0", "--device", "cpu", *more]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("serving on http://") and ("there is no token" in err) == warns
