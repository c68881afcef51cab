"""A thousand clients at once before a small queue: those it holds get their pictures, the others are told when to come."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from kleinbild.gateway.serve import allow_many_connections
from tests.server import serving

pytestmark = pytest.mark.alone
NUM_CLIENTS = 1000
MAX_QUEUE = 24
BODY = {"prompt": "a fox on a mint background", "size": "64x64", "steps": 1}


@pytest.mark.anyio
async def test_those_over_the_limit_are_told_when_to_come_again_and_the_rest_finish(tmp_path: Path) -> None:
    allow_many_connections()
    limits = httpx2.Limits(max_connections=NUM_CLIENTS, max_keepalive_connections=0)
    with serving(tmp_path, KLEINBILD_LIMITS__MAX_QUEUE=str(MAX_QUEUE)) as server:
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=120, trust_env=False) as client:
            asked = time.monotonic()
            answers = await asyncio.gather(
                *(client.post("/v1/images/generations", json={**BODY, "seed": n}) for n in range(NUM_CLIENTS))
            )
            seconds = time.monotonic() - asked
            counts = Counter(answer.status_code for answer in answers)
            assert counts.keys() == {200, 429}
            assert counts[200] >= MAX_QUEUE
            assert counts[429] > NUM_CLIENTS / 2, f"the queue was never full: {counts} in {seconds:.1f} s"
            for answer in answers:
                if answer.status_code == 200:
                    assert len(answer.json()["data"]) == 1
                else:
                    assert answer.json()["error"]["code"] == "queue_full"
                    assert 1 <= int(answer.headers["Retry-After"]) <= 60
            jobs = (await client.get("/v1/jobs", params={"limit": 100, "status": "completed"})).json()
            assert len(jobs["data"]) == min(100, counts[200])
            assert not (await client.get("/v1/jobs", params={"status": "queued"})).json()["data"]
            after = await client.post("/v1/images/generations", json=BODY)
            assert after.status_code == 200


def test_without_room_no_picture_is_taken_in(tmp_path: Path) -> None:
    """And whoever sends one sees the answer, although his body was not wanted."""
    with serving(tmp_path, KLEINBILD_LIMITS__MAX_QUEUE="1") as server:
        slow = {"task": "image.generate", "input": {"prompt": BODY["prompt"], "n": 4, "steps": 150}}
        job = server.ask("POST", "/v1/jobs", json=slow).json()
        noise = Image.frombytes("RGB", (2400, 2400), random.Random(0).randbytes(2400 * 2400 * 3))
        buffer = io.BytesIO()
        noise.save(buffer, "PNG", compress_level=0)
        files = {"image": ("large.png", buffer.getvalue(), "image/png")}
        refused = server.ask("POST", "/v1/images/edits", data={"prompt": "make it blue"}, files=files)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert not [path for path in (tmp_path / "server" / "blobs").rglob("*") if path.is_file()]
        server.ask("POST", f"/v1/jobs/{job['id']}/cancel")
        assert server.ask("POST", "/v1/images/generations", json=BODY).status_code == 200
