"""What gets past the guard: addresses, files, sizes and rates, with an app behind it that says what reached it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from refseg.demo.guard import FILE, JOIN, POLICY, UPLOAD, Guard, is_inside, paths_in
from refseg.demo.limits import Limits

LIMITS = Limits(upload_mb=1, per_minute=2)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it was given."""
    body = (await receive())["body"] if scope["method"] == "POST" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(
    guard: Guard, path: str, *, body: list[bytes] | None = None, length: int | None = None, client: str = "1.2.3.4"
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Status, body and headers of an answer; a `body` makes it a POST, in as many parts as it has."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    method = "GET" if body is None else "POST"
    scope = dict(type="http", method=method, path=path, root_path="", headers=headers, client=(client, 1))
    parts = [
        {"type": "http.request", "body": part, "more_body": k + 1 < len(body)} for k, part in enumerate(body or [])
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.png").touch()
    (tmp_path / "secret").touch()
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def guard(files: Path) -> Guard:
    return Guard(echo, files=files, limits=LIMITS)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/config", 200),
        ("/assets/index.js", 200),
        ("/gradio_api/heartbeat/abc", 200),
        ("/gradio_api/queue/data", 200),
        ("/monitoring", 404),
        ("/docs", 404),
        ("/gradio_api/info", 404),
        ("/gradio_api/proxy=http://example.org", 404),
        ("/gradio_api/file=http://example.org/a.png", 403),
        ("/gradio_api/file=/etc/passwd", 403),
    ],
)
def test_addresses(guard: Guard, path: str, status: int) -> None:
    found, body, headers = ask(guard, path)
    assert found == status
    assert headers[b"content-security-policy"] == POLICY.encode()
    assert body == b"ok" if status == 200 else b"detail" in body


def test_a_proxys_prefix_may_be_there_or_not(files: Path) -> None:
    guard = Guard(echo, files=files, limits=LIMITS, root_path="/refseg")
    assert [ask(guard, path)[0] for path in ("/config", "/refseg/config", "/refseg/docs", "/other/config")] == [
        200, 200, 404, 404,
    ]  # fmt: skip


def test_files_are_those_below_the_folder(guard: Guard, files: Path) -> None:
    inside = [files / "a.png", files / "not there yet.png", files / "b/../a.png"]
    outside = [
        files.parent / "secret",
        files / "../secret",
        files / "link",
        f"{files}/%2e%2e/secret",
        "a.png",
        "",
        "\0",
    ]
    assert all(is_inside(str(path), files) for path in inside)
    assert not any(is_inside(str(path), files) for path in outside)
    assert ask(guard, f"{FILE}{files}/a.png")[0] == 200
    assert ask(guard, f"{FILE}{files}/link")[0] == 403


def test_a_request_names_no_other_files(guard: Guard, files: Path) -> None:
    def joined(data: Any) -> int:
        return ask(Guard(echo, files=files, limits=LIMITS), JOIN, body=[json.dumps({"data": data}).encode()])[0]

    inside, outside = {"path": str(files / "a.png")}, {"path": "/etc/passwd"}
    assert joined([inside, "text", 0.5]) == joined([{"path": None}]) == 200
    for data in ([outside], [inside, {"deep": [[outside]]}], [{"path": 7}], [{"path": "http://example.org/a.png"}]):
        assert joined(data) == 403


def test_paths_are_found_at_any_depth() -> None:
    deep: Any = {"path": "a"}
    for _ in range(5000):
        deep = [deep, {"x": {"path": None}}]
    assert list(paths_in(deep)) == ["a"]


def test_the_body_reaches_the_app_as_it_was_sent(guard: Guard) -> None:
    assert ask(guard, JOIN, body=[b'{"data"', b": []}"])[1] == b'{"data": []}'


@pytest.mark.parametrize(
    ("body", "status"),
    [([b"no json"], 400), ([b"[" * 100_000], 400), ([b" " * 200_000, b" " * 200_000], 413), ([], 400)],
)
def test_other_bodies_are_refused(guard: Guard, body: list[bytes], status: int) -> None:
    assert ask(guard, JOIN, body=body)[0] == status


def test_uploads_say_how_large_they_are(guard: Guard) -> None:
    assert ask(guard, UPLOAD, body=[b"x"], length=2**20)[:2] == (200, b"x")
    status, body, _ = ask(guard, UPLOAD, body=[b"x"], length=2**20 + 5000)
    assert status == 413 and b"at most 1 MB" in body
    assert ask(guard, UPLOAD, body=[b"x"], client="5.6.7.8")[0] == 411


@pytest.mark.parametrize("path", [UPLOAD, JOIN])
def test_a_client_may_ask_so_often(guard: Guard, path: str) -> None:
    """Two a minute; other clients, and looking, are not counted."""
    answers = [ask(guard, path, body=[b"[]"], length=2)[0] for _ in range(3)]
    assert answers == [200, 200, 429]
    assert ask(guard, path, body=[b"[]"], length=2, client="5.6.7.8")[0] == 200
    assert ask(guard, "/config")[0] == 200


def test_sockets_are_not_answered(guard: Guard) -> None:
    async def never(*_: Any) -> None:
        raise AssertionError("reached")

    assert asyncio.run(guard({"type": "websocket", "path": "/"}, never, never)) is None
