"""The whole server on PostgreSQL: keys, pictures, idempotency, and what a killed one left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest

import kleinbild
from tests.integration.command import kleinbild as command
from tests.integration.served import served
from tests.postgres import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def variables(server: Postgres, tmp_path: Path) -> dict[str, str]:
    return {"KLEINBILD_STORAGE__DATABASE_URL": server.new_database(), "KLEINBILD_HOME": str(tmp_path)}


def tables(url: str) -> dict[str, set[str]]:
    """Their names, by schema."""
    found: dict[str, set[str]] = {}
    with psycopg.connect(url) as connection:
        query = (
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for schema, name in connection.execute(query):
            found.setdefault(schema, set()).add(name)
    return found


def jobs_of(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT id, status FROM jobs ORDER BY id").fetchall()


def test_a_picture_is_made_with_a_key_and_everything_is_in_postgresql(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    made = command("keys", "create", "--json", cwd=tmp_path, **variables)
    assert made.code == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    with served(tmp_path, **{name: value for name, value in variables.items() if name != "KLEINBILD_HOME"}) as running:
        assert httpx2.get(f"{running.url}/v1/models", trust_env=False).status_code == 401
        with kleinbild.Client(running.url, api_key=key) as client:
            picture = client.run("a red apple on a beach", seed=7)
        nul = httpx2.get(f"{running.url}/v1/jobs/a%00b", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        assert (nul.status_code, nul.json()["error"]["code"]) == (400, "invalid_value")
        assert picture.bytes == kleinbild.generate("a red apple on a beach", seed=7).to_bytes("png")
    url = variables["KLEINBILD_STORAGE__DATABASE_URL"]
    found = tables(url)
    assert {"jobs", "events", "keys", "blobs", "alembic_version"} <= found["public"]
    assert "workflow_status" in found["dbos"]
    assert found.keys() == {"public", "dbos"}
    assert [status for _, status in jobs_of(url)] == ["completed"]
    assert list((tmp_path / "server").glob("*.sqlite*")) == []


def test_jobs_that_a_killed_server_left_are_made_once(tmp_path: Path, variables: dict[str, str]) -> None:
    environ = {name: value for name, value in variables.items() if name != "KLEINBILD_HOME"}
    url = variables["KLEINBILD_STORAGE__DATABASE_URL"]
    job = {"task": "image.generate", "input": {"prompt": "a red apple", "steps": 20}}
    asked = []
    with served(tmp_path, **environ) as running:
        for number in range(2):
            answer = httpx2.post(
                f"{running.url}/v1/jobs", json=job, headers={"Idempotency-Key": str(number)}, trust_env=False
            )
            assert answer.status_code == 202
            asked.append(answer.json()["id"])
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(60)
    assert {status for _, status in jobs_of(url)} & {"queued", "running"}
    with served(tmp_path, **environ) as running, kleinbild.Client(running.url) as client:
        answer = httpx2.post(f"{running.url}/v1/jobs", json=job, headers={"Idempotency-Key": "0"}, trust_env=False)
        assert answer.json()["id"] == asked[0]
        for job_id in asked:
            client.job(job_id).pictures(60)
    assert jobs_of(url) == [(job_id, "completed") for job_id in sorted(asked)]
