"""A small real HTTP server that speaks the contract of jobs, and fails on demand: refuses, resets, drops, dawdles.

Its pictures are plain colours with true records; there is no engine behind it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image

from kleinbild.core.metadata import Record, ReferenceRecord
from kleinbild.core.sizes import parse_size
from kleinbild.engine.picture import Picture


@dataclass
class Fault:
    """What happens to the next call of `method path…`: an answer, a reset before it is heeded, or one after."""

    call: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    reset: str = ""  # "before" or "after"
    delay: float = 0.0


@dataclass
class Call:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Contract(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.files: dict[str, tuple[str, bytes]] = {}
        self.num_made = 0
        self.polls_until_done = 1
        self.drops: list[int] = []  # per connection of events: after so many of them it breaks
        self.outcome = "completed"
        self.error: dict[str, Any] | None = None
        self.models = ["nano"]
        self.image_base = ""  # where the URLs of pictures lead; "" is here
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def called(self, line: str) -> list[Call]:
        return [call for call in self.calls if call.line.startswith(line)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Contract

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.handle_call("GET")

    def do_POST(self) -> None:
        self.handle_call("POST")

    def handle_call(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(f"{method} {self.path}", headers, body)
        with self.server.lock:
            self.server.calls.append(call)
            fault = next((one for one in self.server.faults if call.line.startswith(one.call)), None)
            if fault:
                self.server.faults.remove(fault)
        if fault is None:
            self.answer(call)
            return
        time.sleep(fault.delay)
        if fault.status:
            self.send(fault.status, fault.body or error("not now", code=None), fault.headers)
            return
        if fault.reset == "after":
            self.wfile = _Nowhere()  # type: ignore[assignment]
        if fault.reset != "before":
            self.answer(call)
        if fault.reset:
            self.reset()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True

    def answer(self, call: Call) -> None:
        path = urlsplit(self.path).path
        parts = path.strip("/").split("/")
        if call.line == "POST /v1/jobs":
            self.submit(call)
        elif call.line == "POST /v1/files":
            self.upload(call)
        elif path == "/v1/models":
            self.send(200, {"object": "list", "data": [{"id": one, "object": "model"} for one in self.server.models]})
        elif path == "/v1/jobs":
            self.list_jobs()
        elif path.startswith("/media/"):
            self.send_bytes(200, self.picture(parts[1], int(parts[2])), "image/png")
        elif parts[:2] == ["v1", "jobs"] and parts[2] in self.server.jobs:
            self.about_job(call, parts[2], parts[3:])
        else:
            self.send(404, error(f"there is no job {parts[-1]!r}", code="not_found"))

    def submit(self, call: Call) -> None:
        server, key = self.server, call.headers.get("idempotency-key", "")
        with server.lock:
            if key in server.keys:
                replayed = server.jobs[server.keys[key]]
                self.send(202, replayed, {"Idempotent-Replayed": "true"})
                return
            server.num_made += 1
            job = new_job(f"job_{server.num_made:026d}", call.json)
            server.jobs[job["id"]] = job
            server.keys[key] = job["id"]
        self.send(202, job)

    def upload(self, call: Call) -> None:
        head, _, rest = call.body.partition(b'name="file"; filename="')
        name, _, rest = rest.partition(b'"')
        file = rest.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        file_id = f"file-{len(self.server.files)}"
        self.server.files[file_id] = (name.decode(), file)
        assert b"vision" in head + rest
        self.send(200, {"id": file_id, "object": "file", "bytes": len(file), "filename": name.decode()})

    def list_jobs(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        jobs = [job for job in self.server.jobs.values() if job["status"] == query.get("status", job["status"])]
        ids = [job["id"] for job in jobs]
        begin = ids.index(query["after"]) + 1 if "after" in query else 0
        page = jobs[begin : begin + 2]
        more = begin + 2 < len(jobs)
        self.send(200, {"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"] if page else None})

    def about_job(self, call: Call, job_id: str, rest: list[str]) -> None:
        job = self.server.jobs[job_id]
        if rest == ["events"]:
            self.events(call, job)
            return
        if rest == ["cancel"]:
            job["status"] = "cancelled"
        elif not rest and job["status"] in ("queued", "running"):
            job["polls"] = job.get("polls", 0) + 1
            job["status"] = "running"
            if job["polls"] > self.server.polls_until_done:
                self.finish(job)
        self.send(200, job)

    def finish(self, job: dict[str, Any]) -> None:
        job["status"] = self.server.outcome
        job["error"] = self.server.error
        if job["status"] == "completed":
            job["result"] = self.result(job)

    def result(self, job: dict[str, Any]) -> dict[str, Any]:
        asked = job["input"]
        seed, size = asked.get("seed", 1234), asked.get("size", "128x128")
        data = [
            {"url": f"{self.server.image_base or self.server.url}/media/{job['id']}/{i}?sig=x", "seed": seed + i}
            for i in range(asked.get("n", 1))
        ]
        usage = {"input_tokens": 3, "output_tokens": 64, "total_tokens": 67}
        return {
            "created": 1,
            "data": data,
            "output_format": "png",
            "size": size,
            "usage": usage,
            "timings": {"denoise": 0.5},
        }

    def events(self, call: Call, job: dict[str, Any]) -> None:
        self.finish(job)
        kind = f"job.{job['status']}"
        told: list[dict[str, Any]] = [
            {"type": "job.queued", "position": 0},
            {"type": "job.started"},
            {"type": "job.step", "image_index": 0, "step": 1, "num_steps": 2},
            {"type": "job.step", "image_index": 0, "step": 2, "num_steps": 2},
            {"type": "job.preview", "image_index": 0, "b64_json": base64.b64encode(b"preview").decode()},
            {"type": "job.of_the_future"},
            {"type": kind, "job": job},
        ]
        last = int(call.headers.get("last-event-id", 0))
        drop = self.server.drops.pop(0) if self.server.drops else None
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b": hello\n\nretry: 10\n\n")
        for number, (id_, data) in enumerate(list(enumerate(told, start=1))[last:]):
            if number == drop:
                self.wfile.write(f"id: {id_}\nevent: {data['type']}\ndata: {{".encode())  # in the middle of one
                self.wfile.flush()
                if number == 0:
                    self.reset()
                self.close_connection = True  # else it just ends: a reset takes away what was not read yet
                return
            text = json.dumps({**data, "job_id": job["id"], "created_at": 1})
            self.wfile.write(f"id: {id_}\nevent: {data['type']}\ndata: {text}\n\n".encode())
        self.close_connection = True

    def picture(self, job_id: str, index: int) -> bytes:
        asked = self.server.jobs[job_id]["input"]
        return made(asked, index, self.server.files).to_bytes("png")

    def send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(value).encode(), "application/json", headers)

    def send_bytes(self, status: int, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        all_headers = {"content-type": media_type, "content-length": str(len(body)), "x-request-id": "req_1"}
        for name, value in {**all_headers, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def made(asked: dict[str, Any], index: int, files: dict[str, tuple[str, bytes]]) -> Picture:
    """A picture of one colour, with a record as an engine would write it."""
    size = parse_size(asked.get("size", "128x128"))
    seed = asked.get("seed", 1234) + index
    record = Record(
        version="0",
        model=asked.get("model", "nano"),
        fingerprint="f" * 12,
        prompt=asked["prompt"],
        seed=seed,
        steps=asked.get("steps", 4),
        guidance=asked.get("guidance", 1.0),
        size=size,
        dtype="float32",
        device="cpu",
        references=tuple(reference(one, files) for one in asked.get("images", [])),
    )
    return Picture(Image.new("RGB", (size.width, size.height), (seed % 256, 20, 30)), record, {})


def reference(given: dict[str, str], files: dict[str, tuple[str, bytes]]) -> ReferenceRecord:
    if "file_id" in given:
        name, file = files[given["file_id"]]
    else:
        head, _, data = given["image_url"].partition(",")
        names = [part.removeprefix("name=") for part in head.split(";") if part.startswith("name=")]
        name, file = unquote(names[0]) if names else "", base64.b64decode(data)
    return ReferenceRecord(name, hashlib.sha256(file).hexdigest())


def new_job(job_id: str, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": job_id,
        "object": "job",
        "task": asked["task"],
        "status": "queued",
        "model": asked["input"].get("model", "nano"),
        "created_at": 1,
        "started_at": None,
        "completed_at": None,
        "input": asked["input"],
        "progress": {"position": 0, "image_index": 0, "step": 0, "num_steps": 0},
        "expected_seconds": None,
        "result": None,
        "error": None,
        "warnings": ["guidance has no effect"] if asked["input"].get("guidance") else [],
        "metadata": asked.get("metadata", {}),
    }


def error(message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


@contextmanager
def contract() -> Iterator[Contract]:
    server = Contract()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Nowhere:
    """Takes an answer that never arrives."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    closed = False
