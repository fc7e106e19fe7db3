"""Middleware in front of the HTTP API: token, host, rate, size, and time of requests, and security headers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refseg.demo.limits import Limits, RateLimit

OPEN = ("/", "/health")  # without a token
EXTRA_BYTES = 2**18  # largest request beside the image
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class ApiGuard:
    """Check requests before the API sees them, and read their bodies.

    Args:
        app: The API.
        limits: Limits for untrusted users.
        token: What clients must send as a bearer token, or as the password of basic authentication. None: nothing.
        hosts: Names under which clients may reach the server. None: all. A server on localhost should name its own, so
            that a web page whose name leads to localhost (DNS rebinding) cannot use it.
        body_seconds: Time in which the body of a request must arrive.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None = None,
        hosts: Collection[str] | None = None,
        body_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.limits, self.token, self.hosts, self.body_seconds = app, limits, token, hosts, body_seconds
        self.rate = RateLimit(limits.per_minute, clock)
        self.max_bytes = limits.upload_bytes * 4 // 3 + EXTRA_BYTES  # base64 makes four bytes of three
        self.max_bodies = limits.waiting + 12  # held in memory at the same time
        self.num_bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        headers, has_body = Headers(scope=scope), scope["method"] not in ("GET", "HEAD", "OPTIONS")
        self.num_bodies += has_body
        try:
            self.check(scope, headers, has_body)
            if has_body:
                receive = replay(await self.read_body(headers, receive), receive)
        except HTTPException as refusal:
            response = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            await response(scope, receive, send_with_headers)
        except ClientGone:
            return
        else:
            await self.app(scope, receive, send_with_headers)
        finally:
            self.num_bodies -= has_body

    def check(self, scope: Scope, headers: Headers, has_body: bool) -> None:
        """Raise an HTTPException if the headers of a request are enough to refuse it."""
        if self.hosts is not None and (urlsplit(f"//{headers.get('host', '')}").hostname or "") not in self.hosts:
            raise HTTPException(403, f"Unknown host name. This server answers as {', '.join(self.hosts)}.")
        # Rate. Wrong tokens count too. Behind a trusted proxy, the server has replaced the client's address.
        authorized = self.is_authorized(scope["path"], headers)
        if has_body or not authorized:
            refusal = self.rate.refusal(scope["client"][0] if scope.get("client") else "")
            if refusal:
                raise HTTPException(429, refusal, {"Retry-After": "10"})
        if not authorized:
            sentence = "The token is missing or wrong. Send the header `Authorization: Bearer TOKEN`."
            raise HTTPException(401, sentence, {"WWW-Authenticate": 'Basic realm="refseg"'})
        if self.num_bodies > self.max_bodies:
            raise HTTPException(503, "The server is busy. Try again in a few seconds.", {"Retry-After": "5"})

    def is_authorized(self, path: str, headers: Headers) -> bool:
        """Return whether a request has the token, or needs none."""
        if self.token is None or path in OPEN:
            return True
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":  # Label Studio sends a user and a password
            try:
                value = base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(value.strip().encode(), self.token.encode())

    async def read_body(self, headers: Headers, receive: Receive) -> bytes:
        """Return the body of a request, or raise an HTTPException if it is too large or takes too long."""
        announced = headers.get("content-length", "")
        too_large = announced.isdecimal() and int(announced) > self.max_bytes
        if too_large and headers.get("expect"):  # the client waits for an answer before it sends the body
            raise HTTPException(413, self.size_message)
        body, received = bytearray(), 0
        end = time.monotonic() + self.body_seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except asyncio.TimeoutError:
                raise HTTPException(408, f"The request took longer than {self.body_seconds:g} s to arrive.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            received += len(part)
            # The rest of a large body is read and dropped: many clients see an answer only after they have sent it all
            if received > self.max_bytes:
                too_large = True
                body.clear()
            if received > 4 * self.max_bytes:
                break
            if not too_large:
                body += part
        if too_large:
            raise HTTPException(413, self.size_message)
        return bytes(body)

    @property
    def size_message(self) -> str:
        return f"The request is too large (limit: an image of {self.limits.upload_mb:g} MB)."


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that delivers a body that was already read, and then what comes later."""
    delivered = False

    async def receive_again() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
