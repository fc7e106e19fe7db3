"""Stands in front of Gradio: which of its addresses are open, how large requests are, and which files they may name.

Gradio serves more than this page needs, fetches URLs for its users, and takes a file's path from the browser that
uploaded it. Here, files are those in one temporary folder, whatever a request says.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from refseg.demo.limits import Limits, RateLimit
from refseg.errors import UsageError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

API = "/gradio_api/"
FILE = f"{API}file="
UPLOAD = f"{API}upload"
JOIN = f"{API}queue/join"  # every question, and every look at an upload
OPEN = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", UPLOAD, JOIN)
    + tuple(API + name for name in ("startup-events", "theme.css", "queue/data", "upload_progress"))
    + tuple(API + name for name in ("run/predict", "cancel", "reset"))
)
OPEN_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/")
MOST_JSON = 2**18  # bytes of a request that is no upload
FORM = 2**12  # bytes that a form adds to an upload

# The page has scripts and styles in its HTML. None of it comes from elsewhere, and nothing goes elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Refused(Exception):
    """A request that goes no further: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Guard:
    """ASGI middleware. `files`: the folder of uploads and answers."""

    def __init__(self, app: App, *, files: Path, limits: Limits, root_path: str = "") -> None:
        self.app = app
        self.files = files.resolve()
        self.limits = limits
        self.root_path = root_path.rstrip("/")
        self.rates = {path: RateLimit(limits.per_minute) for path in (UPLOAD, JOIN)}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        try:
            receive = await self.checked(scope, receive)
        except Refused as refused:
            return await _answer(send, refused)
        await self.app(scope, receive, _with_headers(send))

    async def checked(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """What gives the app the request's body, once it may have it."""
        path = self.path_of(scope)
        check_address(path, self.files)
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return receive
        if path in self.rates:
            self.check_rate(path, scope)
        if path == UPLOAD:
            check_length(scope, self.limits)
            return receive
        body = await _read(receive, MOST_JSON)
        check_files(body, self.files)
        return _once(body, receive)

    def path_of(self, scope: MutableMapping[str, Any]) -> str:
        """As Gradio sees it, whether or not a proxy has taken the prefix away."""
        path = scope["path"]
        for prefix in (scope.get("root_path", ""), self.root_path):
            if prefix and path.startswith(f"{prefix}/"):
                path = path[len(prefix) :]
        return path

    def check_rate(self, path: str, scope: MutableMapping[str, Any]) -> None:
        try:
            self.rates[path].check(client_of(scope))
        except UsageError as error:
            raise Refused(429, str(error)) from None


def check_length(scope: MutableMapping[str, Any], limits: Limits) -> None:
    """Of an upload, by what it says of itself; the server reads no more than that."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        raise Refused(411, "The upload does not say how large it is.")
    if int(length) > limits.upload_bytes + FORM:
        raise Refused(413, f"The file is too large: at most {limits.upload_mb:g} MB are taken.")


def client_of(scope: MutableMapping[str, Any]) -> str:
    """The address of who asks; behind a proxy, what the proxy says of it, if the server believes the proxy."""
    return scope["client"][0] if scope.get("client") else ""


def check_address(path: str, files: Path) -> None:
    if path.startswith(FILE):
        if not is_inside(path[len(FILE) :], files):
            raise Refused(403, "This file is not for you.")
    elif path not in OPEN and not path.startswith(OPEN_BELOW):
        raise Refused(404, "There is nothing at this address.")


def check_files(body: bytes, files: Path) -> None:
    """Of a request in JSON: the files that it names are in the folder."""
    try:
        content = json.loads(body) if body else None
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not JSON.") from None
    for path in paths_in(content):
        if not isinstance(path, str) or not is_inside(path, files):
            raise Refused(403, "This file is not for you.")


def paths_in(content: Any) -> Iterator[Any]:
    """Whatever is called "path", at any depth."""
    todo = [content]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            if one.get("path") is not None:
                yield one["path"]
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def is_inside(path: str, files: Path) -> bool:
    """Whether a path, as it is and with its escapes undone, is that of something below the folder."""
    try:
        return all(Path(form).resolve().is_relative_to(files) and Path(form).is_absolute()
                   for form in (path, unquote(path)))  # fmt: skip
    except (OSError, ValueError):  # a NUL, a loop of links
        return False


async def _read(receive: Receive, most: int) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request ended early.")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"The request is too large: at most {most} bytes.")
        if not message.get("more_body"):
            return body


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, and then what still comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending


async def _answer(send: Send, refused: Refused) -> None:
    headers = [(b"content-type", b"application/json"), *HEADERS]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": str(refused)}).encode()})
