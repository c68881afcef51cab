"""A small hub on this machine: the parts of the hub's interface that fetching a model uses, served from memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository. `damaged` are files served with other bytes than stated; `gated`: nobody has access.

    `break_after`: the connection closes after so many bytes of a file's body.
    """

    repo: str
    files: dict[str, bytes]
    damaged: set[str] = field(default_factory=set)
    gated: bool = False
    break_after: int | None = None
    url: str = ""
    gets: list[tuple[str, int]] = field(default_factory=list)  # (file, first byte)

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            sibling: dict[str, object] = {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            }
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": self.repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            if hub.gated:
                self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
            elif path.startswith(f"/api/models/{hub.repo}"):
                self.send(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"}, with_body)
            else:
                name = path.removeprefix(f"/{hub.repo}/resolve/{COMMIT}/")
                self.send_file(name, hub.files[name], with_body)

        def send_file(self, name: str, content: bytes, with_body: bool) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if with_body:
                hub.gets.append((name, start))
            body = bytes(len(content)) if name in hub.damaged else content
            self.send(206 if start else 200, body[start:], headers, with_body)

        def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body and status in (200, 206) and "ETag" in headers and hub.break_after is not None:
                self.wfile.write(body[: hub.break_after])
                self.close_connection = True
            elif with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that stops in the middle is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
