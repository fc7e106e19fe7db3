"""A hub on loopback, with as much of the protocol as huggingface_hub needs to upload a folder and to download it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INLINE_LIMIT = 100_000  # bytes of the largest file inside a commit; others are LFS objects


class FakeHub(ThreadingHTTPServer):
    """Repositories with one commit each.

    Attributes:
        files: Content by repository ("user/model") and file.
        objects: Content of LFS objects by its SHA-256.
        tokens: What the requests had as authorization.
        requests: Method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self._parts()
        if parts == ["api", "repos", "create"]:
            content = json.loads(body)
            name = f"{content['organization']}/{content['name']}"
            self.server.files.setdefault(name, {})
            self._json({"url": f"{self.server.endpoint}/{name}"})
        elif parts == ["api", "validate-yaml"]:
            self._json({"warnings": [], "errors": []})
        elif parts[4:5] == ["preupload"]:
            modes = {file["path"]: "lfs" if file["size"] > INLINE_LIMIT else "regular"
                     for file in json.loads(body)["files"]}  # fmt: skip
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self._json({"files": files})
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": self._object(one["oid"])}}
            self._json({"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            name = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[name][value["path"]] = self.server.objects[value["oid"]]
            oid = self._commit(name)
            self._json({"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""})
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        self._parts()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self._send(b"", {})

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[0] == "lfs":
            self._send(self.server.objects[parts[1]], {})
            return
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        files = self.server.files.get(name)
        if files is None:
            self._json({"error": "Repository not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif parts[4:5] == ["tree"]:
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()])
        elif parts[:1] == ["api"]:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": self._commit(name), "siblings": siblings, "private": False, "tags": []})
        elif parts[2:3] == ["resolve"] and (content := files.get("/".join(parts[4:]))) is not None:
            headers = {"X-Repo-Commit": self._commit(name), "ETag": f'"{_oid(content)}"'}
            if len(content) > INLINE_LIMIT:
                oid = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
                self._send(b"", {**headers, "Location": self._object(oid)}, status=302)
            else:
                self._send(content, headers)
        else:
            self._json({"error": "Entry not found"}, status=404, headers={"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _parts(self) -> list[str]:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        return path.strip("/").split("/")

    def _object(self, oid: str) -> str:
        """Return the address of an LFS object, on another host, as a real hub's storage is."""
        return f"http://localhost:{self.server.server_port}/lfs/{oid}"

    def _commit(self, name: str) -> str:
        return _oid(b"".join(content for _, content in sorted(self.server.files[name].items())))

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
