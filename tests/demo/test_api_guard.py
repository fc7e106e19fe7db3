"""Attacks on the HTTP API that its guard stops: tokens, hosts, rates, sizes, and slow or interrupted bodies."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (the extra demo)")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from refseg.demo.api_guard import ApiGuard
from refseg.demo.limits import Limits

TOKEN = "a-secret"


async def echo(request: Request) -> Response:
    return Response(await request.body() or b"ok")


def guarded(**options: Any) -> Starlette:
    """An application behind the guard that returns the body that reached it."""
    guard = Middleware(ApiGuard, **{"limits": Limits(upload_mb=0.1), **options})
    return Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])], middleware=[guard])


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"user:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (basic(TOKEN), 200),
        (None, 401),
        ("Bearer other", 401),
        ("Bearer", 401),
        (TOKEN, 401),
        (basic("other"), 401),
        ("Basic %%%", 401),
        (f"Digest {TOKEN}", 401),
    ],
)
def test_token(header: str | None, status: int) -> None:
    client = TestClient(guarded(token=TOKEN), headers={"authorization": header} if header else None)
    for response in (client.get("/model"), client.post("/segment", content=b"a")):
        assert response.status_code == status
        if status == 401:
            assert "token is missing" in response.json()["detail"] and response.headers["www-authenticate"]
    assert client.get("/health").status_code == 200


def test_wrong_tokens_are_counted() -> None:
    client = TestClient(guarded(token=TOKEN, limits=Limits(per_minute=3)))
    assert [client.get("/model").status_code for _ in range(5)] == [401, 401, 401, 429, 429]


def test_rate_limit_per_client() -> None:
    """Two per minute. GET requests and other clients do not count."""
    now = 0.0
    app = guarded(limits=Limits(per_minute=2), clock=lambda: now)
    one, other = (TestClient(app, client=(address, 1)) for address in ("192.0.2.1", "192.0.2.2"))
    assert [one.post("/segment").status_code for _ in range(3)] == [200, 200, 429]
    assert other.post("/segment").status_code == one.get("/model").status_code == 200
    response = one.post("/segment")
    assert "limit: 2 per minute" in response.json()["detail"] and response.headers["retry-after"]
    now = 60.0
    assert one.post("/segment").status_code == 200


def test_sizes() -> None:
    """0.1 MiB in base64, and 256 KiB. Bodies in chunks are counted as they arrive."""
    client, most = TestClient(guarded()), int(0.1 * 2**20) * 4 // 3 + 2**18
    assert client.post("/segment", content=bytes(most)).content == bytes(most)
    for content in (bytes(most + 1), iter([bytes(most), b"0"]), iter([bytes(most)] * 9)):
        response = client.post("/segment", content=content)
        assert response.status_code == 413 and "limit: an image of 0.1 MB" in response.json()["detail"]
    assert client.post("/segment", content=bytes(most + 1), headers={"expect": "100-continue"}).status_code == 413


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("evil.example", 403), ("", 403)],
)
def test_other_host_names_are_refused(host: str, status: int) -> None:
    """A web page whose name leads to this machine sends its own name."""
    client = TestClient(guarded(hosts=["localhost", "127.0.0.1", "::1"]))
    assert client.get("/health", headers={"host": host}).status_code == status


def test_security_headers() -> None:
    headers = TestClient(guarded()).get("/docs").headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def messages_for(receive: Any, **options: Any) -> list[Any]:
    """Return what the guard sends for a POST request whose body comes from `receive`."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = dict(type="http", method="POST", path="/segment", headers=[], query_string=b"", client=("a", 1))
    asyncio.run(ApiGuard(echo, limits=Limits(), **options)(scope, receive, send))  # type: ignore[arg-type]
    return sent


def test_slow_bodies_are_refused() -> None:
    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"a", "more_body": True}

    assert messages_for(receive, body_seconds=0.2)[0]["status"] == 408


def test_interrupted_bodies_have_no_answer() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    assert messages_for(receive) == []


def test_number_of_bodies_in_memory() -> None:
    """With a queue of 1 these are 13. Requests without a body are answered all the same."""
    app = ApiGuard(guarded(), limits=Limits(waiting=1))
    app.num_bodies = 13
    client = TestClient(app)
    assert client.post("/segment").status_code == 503 and client.get("/health").status_code == 200
    app.num_bodies = 12
    assert client.post("/segment").status_code == 200
    assert app.num_bodies == 12
