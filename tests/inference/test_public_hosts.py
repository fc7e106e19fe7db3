"""Downloads for strangers: public addresses only, after redirects too, and within the time limit."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from refseg.errors import DataError
from refseg.inference import public_hosts
from refseg.inference.inputs import Loading, fetch
from refseg.inference.public_hosts import is_public

STRANGERS = Loading(allow_url=True, private_addresses=False)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # metadata of cloud machines
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:a00:1::", False),  # 10.0.0.1 in 6to4
        ("64:ff9b::a00:1", False),  # 10.0.0.1 behind NAT64
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) == expected


@pytest.mark.parametrize(
    "url", ["http://localhost/a", "http://127.0.0.1:1/a", "http://[::1]/a", "http://2130706433/a", "https://0x7f.1/a"]
)
def test_this_machine_is_refused(url: str) -> None:
    with pytest.raises(DataError, match=r"not a public address|cannot be fetched"):
        fetch(url, STRANGERS)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://localhost:1/secret")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100 if self.path == "/slow" else 1):
                self.wfile.write(b"a")
                self.wfile.flush()
                time.sleep(0.1 if self.path == "/slow" else 0)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose address counts as public. The name localhost does not."""
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **more: Any) -> Any:
        return real("127.0.0.2" if host == "localhost" else host, *args, **more)

    monkeypatch.setattr(public_hosts.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(public_hosts, "is_public", lambda address: address == "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_downloads(server: str) -> None:
    assert fetch(f"{server}/a", STRANGERS) == b"a"


def test_redirects_are_checked(server: str) -> None:
    with pytest.raises(DataError, match="localhost is not a public address"):
        fetch(f"{server}/away", STRANGERS)


def test_slow_servers(server: str) -> None:
    """The server sends a byte every 0.1 s for 10 s."""
    start = time.monotonic()
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(f"{server}/slow", Loading(allow_url=True, private_addresses=False, url_seconds=0.5))
    assert time.monotonic() - start < 8
