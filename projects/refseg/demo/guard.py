"""Middleware in front of Gradio, for what Gradio itself leaves open.

Gradio limits the queue and the size of each file, and it reads and serves only files of its own folder. The guard adds
a list of open addresses, limits on requests and on the rate of each client, and security headers. It also refuses URLs
in place of files, because Gradio would download them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from refseg.demo.limits import Limits, RateLimit

API = "/gradio_api/"
FILE = f"{API}file="
UPLOAD = f"{API}upload"
JOIN = f"{API}queue/join"  # every question, and every check of an upload
OPEN = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", UPLOAD, JOIN)
    + tuple(API + name for name in ("startup-events", "theme.css", "queue/data", "upload_progress"))
    + tuple(API + name for name in ("run/predict", "cancel", "reset"))
)
OPEN_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/")
JSON_BYTES = 2**18  # largest request that is not an upload
FORM_BYTES = 2**12  # what a multipart form adds to the file

# Gradio's page has inline scripts and styles. Nothing comes from other servers or goes there.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Guard(BaseHTTPMiddleware):
    """Refuse requests that the page never makes, and add security headers to every response.

    Args:
        app: The application behind the guard.
        files: Folder of uploads, examples, and answers. Requests may name files of this folder only.
        limits: Limits for untrusted users.
        root_path: Path under which a proxy serves the page. The proxy may or may not remove it from requests.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        files: Path,
        limits: Limits,
        root_path: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(app)
        self.files, self.limits, self.root_path = files.resolve(), limits, root_path
        self.rates = {path: RateLimit(limits.per_minute, clock) for path in (UPLOAD, JOIN)}

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        try:
            await self.check(request)
        except HTTPException as refusal:
            response: Response = JSONResponse({"detail": refusal.detail}, refusal.status_code)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    async def check(self, request: Request) -> None:
        """Raise an HTTPException if a request must not reach Gradio."""
        # Address
        path = request.scope["path"].removeprefix(self.root_path)
        if path.startswith(FILE):
            if not is_inside(path.removeprefix(FILE), self.files):
                raise HTTPException(403, "Forbidden.")
        elif path not in OPEN and not path.startswith(OPEN_BELOW):
            raise HTTPException(404, "Not found.")
        if request.method not in ("POST", "PUT", "PATCH", "DELETE"):
            return
        # Rate. Behind a trusted proxy, the server has replaced the client's address by the forwarded one.
        if path in self.rates:
            refusal = self.rates[path].refusal(request.client.host if request.client else "")
            if refusal:
                raise HTTPException(429, refusal)
        # Size. The server reads no more than the announced length, unless the body comes in chunks.
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in request.headers:
            raise HTTPException(411, "The request has no Content-Length header.")
        if path == UPLOAD:
            if int(length) > self.limits.upload_bytes + FORM_BYTES:
                raise HTTPException(413, f"The file is too large (limit: {self.limits.upload_mb:g} MB).")
            return
        if int(length) > JSON_BYTES:
            raise HTTPException(413, f"The request is too large (limit: {JSON_BYTES} bytes).")
        # Files that the body names, at any depth
        try:
            json.loads(await request.body() or b"null", object_hook=self.check_object)
        except (ValueError, RecursionError, ClientDisconnect):
            raise HTTPException(400, "The request body is incomplete or not valid JSON.") from None

    def check_object(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return an object of a JSON body unless it names a URL or a file outside of the folder (403)."""
        if content.get("path") is not None and not is_inside(content["path"], self.files):
            raise HTTPException(403, "Forbidden.")
        return content


def is_inside(path: Any, folder: Path) -> bool:
    """Return whether an absolute path lies below a folder, both as it is and with its percent escapes decoded."""
    try:
        paths = Path(path), Path(unquote(path))
        return all(one.is_absolute() and one.resolve().is_relative_to(folder) for one in paths)
    except (OSError, ValueError, TypeError):  # a NUL byte, a loop of links, not a string
        return False
