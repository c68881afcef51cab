"""Kills the server and its engine at random points under load, and then counts what came of every request.

    python benchmarks/crash.py [--kills 100] [--clients 6] [--seed 0] [--json]

Clients ask for pictures with idempotency keys, half as jobs and half in one request, and ask again with the same key
whenever a connection breaks. Every kill is SIGKILL, of the server (which is then started again) or of its engine. In
the end every key must stand for one job that was completed, every job must have ended once, and every picture must be the
one that its seed makes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

PROMPTS = ("a fox on a mint background", "a rocket on a night sky", "two cats on a beach", "a red apple on white")
SIZES = ("64x64", "128x128", "128x96")
BROKEN = (httpx2.TransportError,)
GIVEN_UP = "engine_unavailable"  # a picture during which the engine was killed five times in a row
START_SECONDS = 60.0
END_SECONDS = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the times and targets of the kills")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), arguments.kills, arguments.clients, random.Random(arguments.seed))
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for name, value in found.items():
        print(f"{name:32}{value}")
    if arguments.json:
        print(json.dumps(found))
    sys.exit(bool(found["violations"]))


@dataclass
class Server:
    """A server process on `data`, and whoever comes after it there. `url` stays the same."""

    data: Path
    port: int = 0
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()
        self.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def announced(self) -> Path:
        return self.data / "server" / "server.json"

    def start(self) -> None:
        command = [sys.executable, "-m", "kleinbild", "serve", "--port", str(self.port), "--data", str(self.data)]
        log = (self.data.parent / "server.log").open("ab")
        self.announced.unlink(missing_ok=True)
        environment = {**os.environ, "KLEINBILD_HOME": str(self.data)}
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        log.close()

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError, *BROKEN):
                self.port = int(json.loads(self.announced.read_text())["url"].rsplit(":", 1)[1])
                httpx2.get(f"{self.url}/healthz")
                return
            time.sleep(0.05)
        raise TimeoutError((self.data.parent / "server.log").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def engine(self) -> int | None:
        """The process id of its worker, if it has one just now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        threads = Path(f"/proc/{self.process.pid}/task")
        for path in (children, *(thread / "children" for thread in threads.iterdir())):
            with contextlib.suppress(OSError):
                for child in path.read_text().split():
                    return int(child)
        return None


@dataclass
class Request:
    """One picture that somebody wants, and what was answered about it."""

    key: str
    body: dict[str, Any]
    as_job: bool
    jobs: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)  # digests of the files that were answered
    errors: list[str] = field(default_factory=list)


def run(folder: Path, num_kills: int, num_clients: int, rng: random.Random) -> dict[str, Any]:
    (folder / "data").mkdir()
    server = Server(folder / "data")
    requests: list[Request] = []
    stop = threading.Event()
    clients = [
        threading.Thread(target=ask, args=(server, number, requests, stop), daemon=True)
        for number in range(num_clients)
    ]
    for client in clients:
        client.start()
    begun = time.monotonic()
    kills = Counter(kill(server, rng) for _ in range(num_kills))
    stop.set()
    for client in clients:
        client.join(END_SECONDS)
    seconds = time.monotonic() - begun
    violations = check(server, requests)
    states = Counter(job["status"] for job in all_jobs(server))
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    return {
        "kills_server": kills["server"],
        "kills_engine": kills["engine"],
        "requests": len(requests),
        "jobs": dict(states),
        "seconds": round(seconds, 1),
        "violations": violations,
    }


def kill(server: Server, rng: random.Random) -> str:
    """Waits for a random moment, then kills; the server is started again."""
    time.sleep(rng.uniform(0.05, 2.0) if rng.random() < 0.5 else rng.uniform(2.0, 7.0))
    if rng.random() < 0.5 and (pid := server.engine()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "engine"
    server.kill()
    server.start()
    if rng.random() < 0.8:  # else it may be killed while it starts
        server.wait()
    return "server"


def ask(server: Server, number: int, requests: list[Request], stop: threading.Event) -> None:
    """One picture after the other, each until it is there."""
    rng = random.Random(number)
    with httpx2.Client(timeout=60.0) as client:
        while not stop.is_set():
            body = {"prompt": rng.choice(PROMPTS), "size": rng.choice(SIZES), "seed": rng.randrange(1000)}
            request = Request(f"key-{number}-{len(requests)}-{rng.random()}", body, as_job=rng.random() < 0.5)
            requests.append(request)
            persist(client, server, request)


def persist(client: httpx2.Client, server: Server, request: Request) -> None:
    until = time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        try:
            if make(client, server, request):
                return
        except BROKEN:
            time.sleep(0.1)  # ask again with the same key
    request.errors.append("no answer")


def make(client: httpx2.Client, server: Server, request: Request) -> bool:
    """Whether there is a picture now. Raises what breaks a connection."""
    headers = {"Idempotency-Key": request.key}
    if request.as_job:
        body = {"task": "image.generate", "input": request.body}
        answer = client.post(f"{server.url}/v1/jobs", json=body, headers=headers)
        if answer.status_code != 202:
            return refused(request, answer)
        request.jobs.add(answer.json()["id"])
        return finished(client, server, request, answer.json()["id"])
    answer = client.post(f"{server.url}/v1/images/generations", json=request.body, headers=headers)
    if answer.status_code != 200:
        return refused(request, answer)
    request.jobs.add(answer.json()["id"])
    request.pictures.add(digest(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    return True


def refused(request: Request, answer: httpx2.Response) -> bool:
    """409: the first request with the key still runs; 429 and 503: not now. All else is wrong."""
    if answer.status_code not in (409, 429, 503):
        request.errors.append(f"{answer.status_code} {answer.text}")
        return True
    time.sleep(min(float(answer.headers.get("retry-after", 1)), 1.0))
    return False


def finished(client: httpx2.Client, server: Server, request: Request, job_id: str) -> bool:
    while True:
        answer = client.get(f"{server.url}/v1/jobs/{job_id}")
        if answer.status_code != 200:
            request.errors.append(f"a job that was accepted is gone: {answer.status_code} {answer.text}")
            return True
        job = answer.json()
        if job["status"] == "completed":
            request.pictures.add(digest(client.get(job["result"]["data"][0]["url"]).content))
            return True
        if job["status"] == "failed" and job["error"]["code"] == GIVEN_UP:
            request.jobs.discard(job_id)
            return False  # ask again with the same key
        if job["status"] in ("failed", "cancelled"):
            request.errors.append(f"{job['status']}: {job['error']}")
            return True
        time.sleep(0.1)


def check(server: Server, requests: list[Request]) -> list[str]:
    """Everything that is not as it must be, in words."""
    wrong = [f"{request.key}: {error}" for request in requests for error in request.errors]
    wrong += [f"{request.key} stands for {len(request.jobs)} jobs" for request in requests if len(request.jobs) != 1]
    jobs = all_jobs(server)
    completed = [job["id"] for job in jobs if job["status"] == "completed"]
    given_up = [job["id"] for job in jobs if job["status"] == "failed" and job["error"]["code"] == GIVEN_UP]
    wrong += [f"{job['id']} is {job['status']}" for job in jobs if job["id"] not in {*completed, *given_up}]
    known = {job for request in requests for job in request.jobs}
    wrong += [f"{job} was made for nobody" for job in completed if job not in known]
    by_job = ends(server)
    wrong += [f"{job} ended {count} times" for job, count in by_job.items() if count != 1]
    return wrong + different_pictures(server, requests)


def different_pictures(server: Server, requests: list[Request]) -> list[str]:
    """Equal requests must have equal pictures, and those that a quiet server makes."""
    by_body: defaultdict[str, set[str]] = defaultdict(set)
    for request in requests:
        by_body[json.dumps(request.body)] |= request.pictures
    wrong = []
    for body, pictures in by_body.items():
        answer = httpx2.post(f"{server.url}/v1/images/generations", json=json.loads(body), timeout=60.0).json()
        made = digest(base64.b64decode(answer["data"][0]["b64_json"]))
        if pictures != {made}:
            wrong.append(f"{body} has {len(pictures | {made})} pictures")
    return wrong


def all_jobs(server: Server) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = httpx2.get(f"{server.url}/v1/jobs", params={"limit": 100, **after}).json()
        jobs += page["data"]
        if not page["has_more"]:
            return jobs
        after = {"after": page["last_id"]}


def ends(server: Server) -> Counter[str]:
    """How often each job ended, by the events that were kept."""
    found: Counter[str] = Counter()
    headers = {"Last-Event-ID": "0"}
    with (
        contextlib.suppress(httpx2.ReadTimeout),
        httpx2.stream("GET", f"{server.url}/v1/events", headers=headers, timeout=5.0) as stream,
    ):
        for line in stream.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                found[data["job_id"]] += data["type"] in ("job.completed", "job.failed", "job.cancelled")
    return found


def digest(file: bytes) -> str:
    return hashlib.sha256(file).hexdigest()


if __name__ == "__main__":
    main()
