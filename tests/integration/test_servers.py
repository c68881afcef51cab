"""Several servers on one PostgreSQL, as processes of their own: asked alike, killed, and none makes another's jobs."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
import psycopg
import pytest

from kleinbild.gateway.secrets import load_secrets
from tests.integration.test_gateway import KEY, SECRETS, Services, Shop
from tests.postgres import Postgres, postgres
from tests.receiver import Receiver, receiving
from tests.server import log_of, ready, start

LAST = ("job.completed", "job.failed", "job.cancelled")
PATIENCE_S = 60.0
T = TypeVar("T")


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.process.terminate()
    services.process.wait(10)
    assert services.process.stdout is not None
    services.process.stdout.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@dataclass
class Servers:
    """All with one database, one secret, one place of pictures, and one configuration."""

    folder: Path
    url: str
    services: Services
    limits: str = ""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *names: str) -> list[Shop]:
        """At the same time."""
        self.begin(*names)
        return [self.ready(name) for name in names]

    def ready(self, name: str) -> Shop:
        return Shop(ready(self.running[name], self.folder / name).url, self.services)

    def begin(self, *names: str) -> None:
        for name in names:
            home = self.folder / name
            home.mkdir()
            load_secrets(self.folder)
            (home / "server").mkdir(0o700)
            (home / "server" / "secret").write_bytes((self.folder / "secret").read_bytes())
            (home / "server" / "secret").chmod(0o600)
            config = home / "kleinbild.toml"
            config.write_text(f"{self.services.configuration()}\n{self.limits}")
            storage = {
                "KLEINBILD_STORAGE__DATABASE_URL": self.url,
                "KLEINBILD_STORAGE__BLOBS_URL": str(self.folder / "blobs"),
            }
            self.running[name] = start(home, "--config", str(config), PROVIDER_KEY=KEY, **SECRETS, **storage)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        # Of all first, so that none is left behind by what is asserted.
        codes = {name: process.wait(PATIENCE_S) for name, process in self.running.items()}
        for name, code in codes.items():
            assert code == 0, log_of(self.folder / name).read_text()
            assert "Traceback" not in log_of(self.folder / name).read_text()

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()  # type: ignore[call-overload]


@pytest.fixture
def servers(tmp_path: Path, postgresql: Postgres, services: Services, receiver: Receiver) -> Iterator[Servers]:
    services.reset()
    limits = f'[limits]\nallowed_networks = ["127.0.0.0/8"]\nallowed_ports = [{receiver.port}]'
    opened = Servers(tmp_path, postgresql.new_database(), services, limits)
    try:
        yield opened
    except BaseException:
        for process in opened.running.values():
            process.kill()
            process.wait()
        raise
    opened.stop()


def until(look: Callable[[], T | None], seconds: float = PATIENCE_S) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def ordered(shop: Shop, model: str, **more: Any) -> str:
    job = {"task": "image.generate", "input": {"prompt": "a fox", "model": model}, **more}
    answer = shop.ask("POST", "/v1/jobs", json=job)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def states(shop: Shop, job: str) -> list[str]:
    return [each["state"] for each in shop.ask("GET", f"/v1/jobs/{job}/attempts").json()["data"]]


def ended(shop: Shop, job: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = shop.ask("GET", f"/v1/jobs/{job}").json()
        return found if found["status"] not in ("queued", "running") else None

    return until(look)


@contextmanager
def following(shop: Shop, path: str) -> Iterator[list[tuple[str, str, float]]]:
    """Types of events with their jobs, and when they came, in a list that grows."""
    told: list[tuple[str, str, float]] = []
    headers = {"Authorization": f"Bearer {shop.secret}"}
    with httpx2.Client(timeout=None) as client, client.stream("GET", shop.url + path, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)

        def read() -> None:
            kind = ""
            try:
                for line in lines:
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    if line.startswith("data: "):
                        data = json.loads(line.removeprefix("data: "))
                        told.append((kind, data.get("job_id") or data.get("id"), time.monotonic()))
            except httpx2.HTTPError:
                pass  # it was closed here

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        yield told
        answer.extensions["network_stream"].get_extra_info("socket").shutdown(
            socket.SHUT_RDWR
        )  # closed, it would be read on
        reader.join(PATIENCE_S)


def kinds(told: list[tuple[str, str, float]]) -> list[str]:
    return [kind for kind, _, _ in told]


def test_a_job_of_one_server_is_seen_followed_and_cancelled_at_another(servers: Servers) -> None:
    servers.services.put("fal", "speed", {"latency": 30.0, "spread": 0.0})
    one, other = servers.start("one", "other")
    with following(other, "/v1/events") as project:
        job = ordered(one, "fal-one")
        until(lambda: states(other, job) == ["accepted"])
        assert other.ask("GET", f"/v1/jobs/{job}").json()["status"] == "running"
        with following(other, f"/v1/jobs/{job}/events") as there, following(one, f"/v1/jobs/{job}/events") as here:
            until(lambda: kinds(there)[:2] == ["job.queued", "job.started"])
            cancelled = time.monotonic()
            assert other.ask("POST", f"/v1/jobs/{job}/cancel").json()["status"] == "cancelled"
            until(lambda: kinds(here)[-1:] == ["job.cancelled"])
            assert here[-1][2] - cancelled < 2
            until(lambda: states(one, job) == ["failed_unbilled"], 3)  # and the service is told
        assert kinds(there) == ["job.queued", "job.started", "job.cancelled"]
        servers.services.put("fal", "speed", {"latency": 1.0, "spread": 0.0})
        second = ordered(one, "fal-one")
        with following(other, f"/v1/jobs/{second}/events") as there:
            until(lambda: kinds(there)[-1:] == ["job.completed"])
        assert [kind for kind in kinds(there) if kind != "job.waiting"] == [
            "job.queued",
            "job.started",
            "job.completed",
        ]
        until(lambda: ("job.completed", second) in [each[:2] for each in project])
    assert Counter(each[:2] for each in project).most_common(1)[0][1] == 1
    assert servers.services.billed("fal") == Decimal("0.018")
    (picture,) = one.ask("GET", f"/v1/jobs/{second}").json()["result"]["data"]
    signed = httpx2.get(picture["url"].replace(one.url, other.url))
    assert (signed.status_code, signed.headers["content-type"]) == (200, "image/png")


def test_keys_and_keys_of_idempotency_hold_at_all_servers(servers: Servers) -> None:
    shops = servers.start("one", "other")
    made = shops[0].as_("boss").ask("POST", "/v1/admin/keys", json={"name": "ada", "project": "acme"})
    body = {"model": "bfl-one", "prompt": "a fox", "size": "1024x1024"}
    headers = {"Authorization": f"Bearer {made.json()['key']}", "Idempotency-Key": "one"}

    def ask(shop: Shop) -> httpx2.Response:
        return httpx2.post(f"{shop.url}/v1/images/generations", json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, shops * 4))
    assert {answer.status_code for answer in answers} <= {200, 409}
    again = [ask(shop) for shop in shops]
    assert [answer.status_code for answer in again] == [200, 200]
    assert len({answer.headers["x-kleinbild-job-id"] for answer in again}) == 1
    assert again[0].json()["data"][0]["b64_json"] == again[1].json()["data"][0]["b64_json"]
    assert servers.services.billed("bfl") == Decimal("0.014")


def test_what_a_killed_server_left_is_ended_by_another_once_and_nobody_takes_from_the_living(servers: Servers) -> None:
    one, other = servers.start("one", "other")
    servers.services.put("bfl", "speed", {"latency": 25.0, "spread": 0.0})
    ours = [ordered(one, "bfl-one") for _ in range(6)]
    theirs = [ordered(other, "bfl-one") for _ in range(6)]
    servers.begin("third")
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(lost, one) for _ in range(4)]
        until(lambda: len(servers.rows("SELECT 1 FROM jobs")) == 16)
        waited = [job for (job,) in servers.rows("SELECT id FROM jobs") if job not in {*ours, *theirs}]
        for job in (*ours, *theirs, *waited):
            until(lambda job=job: states(other, job) == ["accepted"])  # type: ignore[misc]
        made_by = dict(servers.rows("SELECT id, server FROM jobs"))
        third = servers.ready("third")
        assert len(servers.rows("SELECT number FROM servers WHERE number <> 0")) == 3
        assert dict(servers.rows("SELECT id, server FROM jobs WHERE status = 'running'")) == made_by
        with following(third, f"/v1/jobs/{ours[0]}/events") as told:
            servers.kill("one")
            assert all(future.result() for future in waiting)
            found = {job: ended(other, job) for job in (*ours, *theirs, *waited)}
            until(lambda: kinds(told)[-1:] == ["job.completed"])
    assert {job["status"] for job in found.values()} == {"completed"}
    heirs = dict(servers.rows("SELECT id, server FROM jobs"))
    assert {heirs[job] for job in theirs} == {made_by[theirs[0]]}
    assert made_by[ours[0]] not in {heirs[job] for job in (*ours, *waited)}
    assert len({heirs[job] for job in (*ours, *waited)}) == 1
    lasts = servers.rows(f"SELECT job_id, count(*) FROM events WHERE type IN {LAST} GROUP BY job_id")
    assert dict(lasts) == dict.fromkeys(found, 1)
    assert servers.rows("SELECT * FROM open_attempts") == servers.rows("SELECT * FROM reservations") == []
    spent = servers.rows("SELECT spent_nanos, reserved_nanos FROM budget_windows")
    assert servers.services.billed("bfl") == len(found) * Decimal("0.014")
    assert spent == [(int(servers.services.billed("bfl") * 10**9), 0)]
    dead = made_by[ours[0]]
    left = servers.rows(f"SELECT status FROM dbos.workflow_status WHERE executor_id = 'server {dead}'")
    assert {status for (status,) in left} <= {"CANCELLED", "SUCCESS"}
    assert servers.rows(f"SELECT * FROM servers WHERE number = {dead}") == []


def test_servers_whose_sessions_postgresql_ends_all_at_once_keep_what_is_theirs(servers: Servers) -> None:
    """As when it starts again: for a moment nobody has a lock."""
    shops = servers.start("one", "other")
    servers.services.put("bfl", "speed", {"latency": 8.0, "spread": 0.0})
    ordered_of = {ordered(shop, "bfl-one"): shop for shop in shops * 2}
    for job in ordered_of:
        until(lambda job=job: states(shops[0], job) == ["accepted"])  # type: ignore[misc]
    before = servers.rows("SELECT id, server FROM jobs ORDER BY id")
    members = servers.rows("SELECT number, started_at FROM servers WHERE number <> 0 ORDER BY number")
    everybody = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert all(done for (done,) in servers.rows(f"SELECT pg_terminate_backend(pid) FROM ({everybody})"))
    assert {ended(shops[1], job)["status"] for job in ordered_of} == {"completed"}
    assert servers.rows("SELECT id, server FROM jobs ORDER BY id") == before
    assert servers.rows("SELECT number, started_at FROM servers WHERE number <> 0 ORDER BY number") == members
    assert servers.services.billed("bfl") == 4 * Decimal("0.014")


def lost(shop: Shop) -> bool:
    """Waits for a picture of a server that is killed."""
    try:
        shop.make("bfl-one")
    except openai.APIConnectionError:
        return True
    return False


def test_a_budget_is_not_crossed_by_servers_that_spend_it_together(servers: Servers) -> None:
    shops = [shop.as_("poor") for shop in servers.start("one", "other")]

    def spend(shop: Shop) -> int:
        try:
            shop.make("openai-one")
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(spend, shops * 10))
    assert answers == {200: 2, 402: 18}
    assert servers.services.billed("openai") == Decimal("0.02")


def test_a_delivery_that_a_killed_server_was_to_try_again_is_sent_by_another_when_it_is_due(
    servers: Servers, receiver: Receiver
) -> None:
    one, other = servers.start("one", "other")
    receiver.answers["/hook"] = [500]
    webhook = one.ask("POST", "/v1/webhooks", json={"url": receiver.url("/hook")}).json()["id"]
    job = ordered(one, "bfl-one", webhook=webhook)
    receiver.wait("/hook", 1)
    until(lambda: servers.rows("SELECT attempts FROM deliveries") == [(1,)])
    servers.kill("one")
    first, second = receiver.wait("/hook", 2)
    assert 4.5 < second.at - first.at < 12  # the second of the schedule's times, counted from the first attempt
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert json.loads(second.body)["data"]["id"] == job
    until(lambda: servers.rows("SELECT attempts FROM deliveries WHERE delivered_at IS NOT NULL") == [(2,)])
    assert len(other.ask("GET", f"/v1/webhooks/{webhook}/deliveries").json()["data"]) == 1
