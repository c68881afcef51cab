"""What has outlived its time goes, and nothing that a job still needs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kleinbild.core.jobs import ImageWork, Job, Outcome, PictureRef
from kleinbild.storage import jobs, servers
from kleinbild.storage.blobs import MissingBlobError, open_blobs
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.retention import NEEDED_SECONDS, SWEEP_TURN, sweep
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


async def test_pictures_of_a_job_that_waits_for_longer_than_they_are_kept_stay(
    database: Database, tmp_path: Path
) -> None:
    blobs, now = open_blobs(database, tmp_path / "blobs"), time.time()
    reference, mask, other = [
        await blobs.put(text, "image/png", now + 60) for text in (b"reference", b"mask", b"other")
    ]
    work = ImageWork("image.edit", "a fox", "nano", 1, references=(PictureRef(reference),), mask=PictureRef(mask))
    async with database.write() as connection:
        await jobs.add(connection, Job("job_1", "a", "p", work, created_at=now))
    await sweep(database, blobs, now + 120, 3600)
    assert (await blobs.get(reference), await blobs.get(mask)) == (b"reference", b"mask")
    with pytest.raises(MissingBlobError):
        await blobs.get(other)
    async with database.write() as connection:
        await jobs.finish(connection, "job_1", Outcome("cancelled"), now)
    await sweep(database, blobs, now + 120 + NEEDED_SECONDS, 24 * 3600)
    with pytest.raises(MissingBlobError):
        await blobs.get(reference)


async def test_of_several_servers_one_sweeps_at_a_time(server: Postgres, tmp_path: Path) -> None:
    database = await open_database(server.new_database())
    blobs, now = open_blobs(database, tmp_path / "blobs"), time.time()
    gone = await blobs.put(b"gone", "image/png", now - 1)
    async with database.write() as other:
        assert await servers.turn(other, SWEEP_TURN, wait=False)
        assert not await sweep(database, blobs, now, 3600)
        assert await blobs.get(gone) == b"gone"
    assert await sweep(database, blobs, now, 3600)
    with pytest.raises(MissingBlobError):
        await blobs.get(gone)
    await database.close()
