"""Jobs, their events and keys of idempotency, files and the audit log: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from kleinbild.core.jobs import ImageWork, Job, JobError, JobEvent, MadePicture, Outcome, PictureRef
from kleinbild.core.sizes import Size
from kleinbild.core.tokens import Tokens
from kleinbild.storage import audit, files, idempotency, jobs, schema
from kleinbild.storage.audit import Entry
from kleinbild.storage.blobs import open_blobs
from kleinbild.storage.database import Database
from kleinbild.storage.files import File
from kleinbild.storage.idempotency import Claim
from kleinbild.storage.retention import sweep

pytestmark = pytest.mark.anyio

WORK = ImageWork(
    "image.edit", "a fox 🦊", "nano", 2**63 - 1, size=Size(96, 64), references=(PictureRef("ab" * 32, "f"),)
)
JOB = Job("job_1", "key_1", "p", WORK, 100.25, warnings=("no", "way"), metadata={"a": "b"})
MADE = Outcome(
    "completed", (MadePicture("cd" * 32, 7, Size(96, 64), 5),), None, {"denoise": 0.5}, Tokens(3, 4, 5), "fp"
)


@pytest.fixture
async def kept(database: Database) -> Database:
    """With three jobs, one of them of another project."""
    async with database.write() as connection:
        for job in (JOB, replace(JOB, id="job_2"), replace(JOB, id="job_3", project="q")):
            await jobs.add(connection, job)
    return database


async def test_a_job_comes_back_as_it_was_and_to_its_project_alone(kept: Database) -> None:
    async with kept.read() as connection:
        assert await jobs.find(connection, "job_1") == JOB
        assert await jobs.find(connection, "job_1", "q") is None
        assert [job.id for job in await jobs.newest(connection, "p", limit=9)] == ["job_2", "job_1"]
        assert [job.id for job in await jobs.newest(connection, "p", limit=9, after="job_2")] == ["job_1"]


async def test_a_job_starts_again_after_an_interruption_and_ends_once(kept: Database) -> None:
    async with kept.write() as connection:
        for now in (110.0, 120.0):
            started = await jobs.start(connection, "job_1", now)
            assert started is not None
            assert (started.status, started.started_at) == ("running", 110.0)
        ended = await jobs.finish(connection, "job_1", MADE, 130.0)
        assert ended == replace(JOB, status="completed", started_at=110.0, completed_at=130.0, outcome=MADE)
        assert await jobs.finish(connection, "job_1", Outcome("failed", error=JobError("no")), 140.0) is None
        assert await jobs.start(connection, "job_1", 150.0) is None
        assert await jobs.unfinished(connection) == ["job_2", "job_3"]
        assert [job.id for job in await jobs.newest(connection, "p", limit=9, status="completed")] == ["job_1"]


async def test_events_are_told_in_order_from_where_one_was(kept: Database) -> None:
    told = [JobEvent(10**15 + n, f"job_{1 + n % 2}", "p", "job.step", {"step": n}, 1e9 + n / 1e6) for n in range(4)]
    async with kept.write() as connection:
        assert await jobs.last_event_id(connection) == 0
        for event in told:
            await jobs.add_event(connection, event)
        assert await jobs.events_after(connection, "p", told[0].id) == told[1:]
        assert await jobs.events_after(connection, "p", 0, "job_2") == told[1::2]
        assert await jobs.events_after(connection, "q", 0) == []
        assert await jobs.last_event_id(connection) == told[-1].id


async def test_an_idempotency_key_is_held_once_and_for_a_day(kept: Database) -> None:
    claim = Claim("key_1", "k", "f" * 64, "job_1")
    async with kept.write() as connection:
        await idempotency.take(connection, claim, 100.0)
        assert await idempotency.holder(connection, "key_1", "k", 100.0 + idempotency.KEPT_SECONDS - 1) == claim
        assert await idempotency.holder(connection, "key_1", "k", 100.0 + idempotency.KEPT_SECONDS) is None
        assert await idempotency.holder(connection, "key_2", "k", 100.0) is None
        await idempotency.take(connection, replace(claim, job_id="job_2"), 10**6)  # it had expired
        await idempotency.release(connection, "job_2")
        assert await idempotency.holder(connection, "key_1", "k", 10**6) is None


async def test_a_claim_on_a_job_that_is_not_there_is_refused(kept: Database) -> None:
    with pytest.raises(IntegrityError):
        async with kept.write() as connection:
            await idempotency.take(connection, Claim("key_1", "k", "f", "job_unknown"), 100.0)


async def test_files_are_counted_listed_and_gone_when_they_expire(database: Database) -> None:
    one = File("file_1", "p", "ä/b.png", "vision", "ab" * 32, 3 * 10**9, 100.0, 200.0)
    two = replace(one, id="file_2", expires_at=None)
    async with database.write() as connection:
        assert await files.num_bytes(connection, "p") == 0
        for file in (one, two):
            await files.add(connection, file)
        assert await files.num_bytes(connection, "p") == 6 * 10**9
        assert await files.find(connection, "file_1", "p") == one
        assert await files.find(connection, "file_1", "p", 200.0) is None
        assert await files.find(connection, "file_1", "q") is None
        assert await files.listed(connection, "p", 150.0, limit=9) == [two, one]
        assert await files.listed(connection, "p", 150.0, limit=9, order="asc", after="file_1") == [two]
        assert await files.listed(connection, "p", 200.0, limit=9, purpose="vision") == [two]
        assert not await files.remove(connection, "file_1", "q")
        assert await files.remove(connection, "file_1", "p")


async def test_the_audit_log_is_numbered_and_read_backwards(database: Database) -> None:
    told = [Entry(float(n), "cli:anna", "key.create", f"key_{n}", {"name": "n", "models": None}) for n in range(3)]
    async with database.write() as connection:
        for entry in told:
            await audit.append(connection, entry)
        newest = await audit.newest(connection, limit=2)
        assert [replace(entry, id=0) for entry in newest] == [told[2], told[1]]
        assert [replace(one, id=0) for one in await audit.newest(connection, limit=9, after=newest[-1].id)] == told[:1]


async def test_what_has_outlived_its_time_goes_with_all_that_hangs_on_it(kept: Database, tmp_path: Path) -> None:
    async with kept.write() as connection:
        await jobs.finish(connection, "job_1", MADE, 130.0)
        for number, job_id in enumerate(("job_1", "job_2")):
            await jobs.add_event(connection, JobEvent(number + 1, job_id, "p", "job.queued", {}, 0.0))
            await idempotency.take(connection, Claim("key_1", job_id, "f", job_id), 1000.0)
    blobs = open_blobs(kept, tmp_path / "blobs")
    await blobs.put(b"pixels", "image/png", 150.0)
    await sweep(kept, blobs, 200.0, 60.0)
    async with kept.read() as connection:
        assert await jobs.find(connection, "job_1") is None
        assert await jobs.unfinished(connection) == ["job_2", "job_3"]
        for table, left in ((schema.events, 1), (schema.idempotency, 1), (schema.blobs, 0)):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == left
