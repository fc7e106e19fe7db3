"""Downloads for strangers: from public addresses only, within a time limit."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refseg.errors import DataError


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet: not private, local, multicast, or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    # IPv6 can embed an IPv4 address: ::ffff:10.0.0.1, 2002:a00:1::, 64:ff9b::a00:1
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(ip.packed[-4:]) if ip in ipaddress.ip_network("64:ff9b::/96") else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    return ip.is_global and not ip.is_multicast


def connect_to_public(host: str, port: int, timeout: float) -> socket.socket:
    """Connect to a host if all its addresses are public.

    The addresses are checked and then used. Asking for them twice would let a name server change its answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not all(is_public(str(address[4][0])) for address in found):
        raise DataError(f"{host} is not a public address. Images come from public addresses only.")
    error: OSError | None = None
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error or OSError(f"{host} has no address")


@contextmanager
def public_opener(seconds: float) -> Iterator[urllib.request.OpenerDirector]:
    """Yield a URL opener that connects to public addresses only, after redirects too, and uses no proxy.

    When the time is over, its connections are closed, so that a server that sends a byte now and then cannot hold it.

    Args:
        seconds: Time limit for everything together.
    """
    opened: list[socket.socket] = []

    class PublicConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = connect_to_public(self.host, self.port, seconds)
            opened.append(self.sock)

    class PublicSecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            plain = connect_to_public(self.host, self.port, seconds)
            opened.append(plain)
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
            opened.append(self.sock)

    class PublicHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(PublicConnection, request)

    class PublicSecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(PublicSecureConnection, request)

    def close_all() -> None:
        for connection in opened:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # already closed
                continue

    opener = urllib.request.OpenerDirector()
    handlers = (
        PublicHandler(),
        PublicSecureHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    timer = threading.Timer(seconds, close_all)
    timer.daemon = True
    timer.start()
    try:
        yield opener
    finally:
        timer.cancel()
