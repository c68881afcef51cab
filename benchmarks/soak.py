"""Mixed load on a server for a while: does memory come back, and does the event loop keep up?

    python benchmarks/soak.py [--minutes 30] [--clients 6] [--json]

Clients ask for pictures, edit them, upload bodies of 20 MB as forms and as JSON, fetch results, cancel jobs, and leave
while they wait. Memory is the server process's own (its proportional set size) after the load, against what it was once
the same load had run for half a minute, so that threads, connections and caches are there. A stall is how late the
server's event loop woke a task (`/healthz`); `machine_stall_ms` is how late one was woken in a process that does nothing
else, which is the machine's doing. Aims: memory within 10 % of its start, no stall over 100 ms beyond the machine's own.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx2
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from crash import Server

PROMPT = "a fox on a mint background"
EDIT = "make the background blue"
WARM_SECONDS = 30.0
SETTLE_SECONDS = 5.0
MAX_GROWTH = 0.10
MAX_STALL_MS = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        server = Server(Path(folder) / "data")
        try:
            found = soak(server, arguments.minutes * 60, arguments.clients)
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for name, value in found.items():
        print(f"{name:24}{value}")
    if arguments.json:
        print(json.dumps(found))
    sys.exit(not found["ok"])


def soak(server: Server, seconds: float, num_clients: int) -> dict[str, Any]:
    wait_ready(server)
    before, _, _, _ = under_load(server, WARM_SECONDS, num_clients)
    with machine_stall() as read_stall:
        after, peak, worst, answers = under_load(server, seconds, num_clients)
        idle = read_stall()
    return {
        "minutes": round(seconds / 60, 1),
        "answers": dict(answers),
        "memory_before_mb": before,
        "memory_peak_mb": peak,
        "memory_after_mb": after,
        "growth": round(after / before - 1, 3),
        "worst_stall_ms": worst,
        "machine_stall_ms": idle,
        "ok": after <= before * (1 + MAX_GROWTH) and worst <= MAX_STALL_MS + idle,
    }


def under_load(server: Server, seconds: float, num_clients: int) -> tuple[float, float, float, Counter[str]]:
    """Memory afterwards and at its peak, the worst stall in milliseconds, and what was answered."""
    answers: Counter[str] = Counter()
    stop = threading.Event()
    threads = [threading.Thread(target=load, args=(server, n, stop, answers), daemon=True) for n in range(num_clients)]
    for thread in threads:
        thread.start()
    until, peak, worst = time.monotonic() + seconds, 0.0, 0.0
    while time.monotonic() < until:
        time.sleep(1.0)
        peak = max(peak, memory_mb(server.process.pid))
        worst = max(worst, httpx2.get(f"{server.url}/healthz", timeout=30.0).json()["worst_stall_ms"])
    stop.set()
    for thread in threads:
        thread.join(120)
    time.sleep(SETTLE_SECONDS)
    return memory_mb(server.process.pid), peak, worst, answers


IDLE = """
import asyncio, sys
from kleinbild.gateway.pulse import Pulse
async def main():
    pulse = Pulse()
    beating = asyncio.create_task(pulse.beat())
    worst = 0.0
    while True:
        await asyncio.sleep(1)
        worst = max(worst, pulse.worst_seconds)
        print(round(worst * 1000, 1), flush=True)
asyncio.run(main())
"""


@contextlib.contextmanager
def machine_stall() -> Iterator[Callable[[], float]]:
    """Gives the worst so far of a process that only sleeps, in milliseconds."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", IDLE], stdout=said)
        try:
            yield lambda: _last(said)
        finally:
            process.kill()
            process.wait()


def _last(said: IO[str]) -> float:
    said.seek(0)
    return float(said.read().splitlines()[-1])


def load(server: Server, number: int, stop: threading.Event, answers: Counter[str]) -> None:
    rng = random.Random(number)
    with httpx2.Client(base_url=server.url, timeout=120.0) as client:
        while not stop.is_set():
            action = rng.choice(ACTIONS)
            with contextlib.suppress(httpx2.TimeoutException):
                answers[f"{action.__name__} {action(client, rng)}"] += 1


def generate(client: httpx2.Client, rng: random.Random) -> int:
    body = {"prompt": PROMPT, "size": rng.choice(["64x64", "128x128", "192x128"]), "n": rng.choice([1, 1, 2])}
    return client.post("/v1/images/generations", json=body).status_code


def edit(client: httpx2.Client, _: random.Random) -> int:
    files = {"image": ("in.png", small_png(), "image/png")}
    return client.post("/v1/images/edits", data={"prompt": EDIT}, files=files).status_code


def large_form(client: httpx2.Client, _: random.Random) -> int:
    """20 MB that are a picture."""
    files = {"image": ("large.png", large_png(), "image/png")}
    return client.post("/v1/images/edits", data={"prompt": EDIT}, files=files).status_code


def large_json(client: httpx2.Client, _: random.Random) -> int:
    url = "data:image/png;base64," + base64.b64encode(large_png()[: 14 * 10**6]).decode()
    return client.post("/v1/images/edits", json={"prompt": EDIT, "images": [{"image_url": url}]}).status_code


def fetch(client: httpx2.Client, rng: random.Random) -> int:
    body = {"prompt": PROMPT, "response_format": "url", "seed": rng.randrange(20), "size": "64x64"}
    answer = client.post("/v1/images/generations", json=body)
    if answer.status_code != 200:
        return answer.status_code
    return client.get(answer.json()["data"][0]["url"]).status_code


def cancel(client: httpx2.Client, _: random.Random) -> int:
    job = client.post("/v1/jobs", json={"task": "image.generate", "input": {"prompt": PROMPT, "steps": 50}})
    if job.status_code != 202:
        return job.status_code
    return client.post(f"/v1/jobs/{job.json()['id']}/cancel").status_code


def leave(client: httpx2.Client, _: random.Random) -> int:
    """Goes away while the picture is made."""
    with contextlib.suppress(httpx2.TimeoutException):
        client.post("/v1/images/generations", json={"prompt": PROMPT, "steps": 100}, timeout=0.2)
    return 0


ACTIONS = (generate, edit, large_form, large_json, fetch, cancel, leave)


def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), "white").save(buffer, "PNG")
    return buffer.getvalue()


_large: list[bytes] = []


def large_png() -> bytes:
    """20 MB of noise, which no compression makes smaller."""
    if not _large:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (2600, 2600), random.Random(0).randbytes(2600 * 2600 * 3)).save(
            buffer, "PNG", compress_level=0
        )
        _large.append(buffer.getvalue())
    return _large[0]


def memory_mb(pid: int) -> float:
    """The process's share of all memory, in MB: what it shares with others counts in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return round(int(line.split()[1]) / 1000, 1)
    raise ValueError("no Pss")


def wait_ready(server: Server) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if httpx2.get(f"{server.url}/readyz").status_code == 200:
            return
        time.sleep(0.2)
    raise TimeoutError("the server was not ready")


if __name__ == "__main__":
    main()
