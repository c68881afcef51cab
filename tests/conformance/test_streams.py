"""Event streams of a server with keys: for as long as the key is good, and no longer."""

from __future__ import annotations

import threading
import time

import httpx2

from tests.server import Server

JOB = {"task": "image.generate", "input": {"prompt": "a fox on a mint background", "size": "64x64", "steps": 1}}


def test_a_stream_tells_nothing_more_once_its_key_is_revoked(keyed_server: Server) -> None:
    made = keyed_server.ask("POST", "/v1/admin/keys", json={"name": "short", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    told: list[str] = []
    connected, ended = threading.Event(), threading.Event()

    def follow() -> None:
        with httpx2.stream("GET", f"{keyed_server.url}/v1/events", headers=headers, timeout=60) as stream:
            for line in stream.iter_lines():
                connected.set()
                told.append(line)
        ended.set()

    threading.Thread(target=follow, daemon=True).start()
    assert connected.wait(30)
    assert keyed_server.ask("POST", "/v1/jobs", json=JOB).status_code == 202
    deadline = time.monotonic() + 30
    while "event: job.completed" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert keyed_server.ask("DELETE", f"/v1/admin/keys/{made['id']}").status_code == 200
    before = len(told)
    assert keyed_server.ask("POST", "/v1/jobs", json=JOB).status_code == 202
    assert ended.wait(30)
    assert not [line for line in told[before:] if line.startswith("event:")]
