"""Attacks on the web page that the guard stops: addresses, files, sizes, and rates."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (the extra demo)")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from refseg.demo.guard import FILE, JOIN, POLICY, UPLOAD, Guard, is_inside
from refseg.demo.limits import Limits, RateLimit

LIMITS = Limits(upload_mb=1, per_minute=2)


async def echo(request: Request) -> Response:
    return Response(await request.body() or b"ok")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.png").touch()
    (tmp_path / "secret").touch()
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


def guarded(files: Path, **options: Any) -> Starlette:
    """An application behind the guard that returns the body that reached it."""
    guard = Middleware(Guard, files=files, **{"limits": LIMITS, **options})
    return Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])], middleware=[guard])


@pytest.fixture
def client(files: Path) -> TestClient:
    return TestClient(guarded(files))


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
def test_addresses(client: TestClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert response.headers["content-security-policy"] == POLICY
    assert response.content == b"ok" if status == 200 else "detail" in response.json()


def test_proxy_prefix_is_optional(files: Path) -> None:
    client = TestClient(guarded(files, root_path="/refseg"))
    paths = ("/config", "/refseg/config", "/refseg/docs", "/other/config")
    assert [client.get(path).status_code for path in paths] == [200, 200, 404, 404]


def test_only_files_below_the_folder(client: TestClient, files: Path) -> None:
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
    assert client.get(f"{FILE}{files}/a.png").status_code == 200
    assert client.get(f"{FILE}{files}/link").status_code == 403


def test_requests_cannot_name_other_files(files: Path) -> None:
    def status(data: Any) -> int:
        return TestClient(guarded(files)).post(JOIN, json={"data": data}).status_code

    inside, outside = {"path": str(files / "a.png")}, {"path": "/etc/passwd"}
    assert status([inside, "text", 0.5]) == status([{"path": None}]) == 200
    deep: Any = outside
    for _ in range(400):
        deep = [{"x": deep}]
    for data in ([outside], [inside, deep], [{"path": 7}], [{"path": {}}], [{"path": "http://example.org/a.png"}]):
        assert status(data) == 403


def test_body_reaches_the_app_unchanged(client: TestClient) -> None:
    assert client.post(JOIN, content=b'{"data"   : []}').content == b'{"data"   : []}'


@pytest.mark.parametrize(
    ("body", "status"), [(b"no json", 400), (b"[" * 100_000, 400), (b" " * 400_000, 413), (b"[]", 200)]
)
def test_json_bodies(client: TestClient, body: bytes, status: int) -> None:
    assert client.post(JOIN, content=body).status_code == status


@pytest.mark.parametrize("path", [UPLOAD, JOIN])
def test_bodies_in_chunks_are_refused(client: TestClient, path: str) -> None:
    """Their length is unknown. A Content-Length header beside the chunks changes nothing."""
    assert client.post(path, content=iter([b"[]"])).status_code == 411
    headers = {"transfer-encoding": "chunked", "content-length": "2"}
    assert client.post(path, content=b"[]", headers=headers).status_code == 411


def test_interrupted_body_is_refused(files: Path) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = dict(type="http", method="POST", path=JOIN, headers=[(b"content-length", b"9")], query_string=b"")
    asyncio.run(Guard(guarded(files), files=files, limits=LIMITS)(scope, receive, send))
    assert sent[0]["status"] == 400


def test_upload_size(client: TestClient, files: Path) -> None:
    response = client.post(UPLOAD, content=b"x" * 2**20)
    assert (response.status_code, len(response.content)) == (200, 2**20)
    response = client.post(UPLOAD, content=b"x" * (2**20 + 5000))
    assert response.status_code == 413 and "limit: 1 MB" in response.text


@pytest.mark.parametrize("path", [UPLOAD, JOIN])
def test_rate_limit_per_client(files: Path, path: str) -> None:
    """Three per minute. GET requests and other clients do not count."""
    now = 0.0
    app = guarded(files, limits=Limits(per_minute=3), clock=lambda: now)
    one, other = (TestClient(app, client=(address, 1)) for address in ("192.0.2.1", "192.0.2.2"))
    for second in (0.0, 10.0, 20.0):
        now = second
        assert one.post(path, content=b"[]").status_code == 200
    now = 30.0
    response = one.post(path, content=b"[]")
    assert response.status_code == 429 and "limit: 3 per minute" in response.text and "in 30 s" in response.text
    assert other.post(path, content=b"[]").status_code == one.get("/config").status_code == 200
    now = 60.0  # the request of second 0 is a minute old, those of seconds 10 and 20 are not
    assert one.post(path, content=b"[]").status_code == 200
    assert "in 10 s" in one.post(path, content=b"[]").text


def test_quiet_clients_are_forgotten() -> None:
    now = 0.0
    rate = RateLimit(3, clock=lambda: now)
    for client in range(1000):
        assert rate.seconds_to_wait(str(client)) == 0
    assert len(rate.clients) == 1000
    now = 60.0
    rate.seconds_to_wait("new")
    assert list(rate.clients) == ["new"]
