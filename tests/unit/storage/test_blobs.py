"""Bytes are kept once, for as long as the longest of their uses, whoever ends when."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore
from sqlalchemy import insert, select

from kleinbild.storage.blobs import CHUNK, LATEST_BYTES, Blobs, MissingBlobError, key_of, open_blobs
from kleinbild.storage.database import Database, open_database, sqlite_url
from kleinbild.storage.schema import blobs as rows
from kleinbild.storage.schema import files

pytestmark = pytest.mark.anyio

PNG = "image/png"


@pytest.fixture
def blobs(database: Database, tmp_path: Path) -> Blobs:
    return open_blobs(database, tmp_path / "blobs")


async def expiry(database: Database, sha256: str) -> float | None:
    async with database.read() as connection:
        return (await connection.execute(select(rows.c.expires_at).where(rows.c.sha256 == sha256))).scalar_one()


async def is_kept(blobs: Blobs, sha256: str) -> bool:
    try:
        await blobs.get(sha256)
    except MissingBlobError:
        return False
    return True


async def test_what_was_put_is_got_under_its_hash(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = await blobs.put(b"pixels", PNG, None)
    assert sha256 == hashlib.sha256(b"pixels").hexdigest()
    assert await blobs.get(sha256) == b"pixels"
    assert (tmp_path / "blobs" / sha256[:2] / sha256[2:]).read_bytes() == b"pixels"


async def test_a_file_is_streamed_in_and_out(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(12 * CHUNK + 5))
    sha256 = await blobs.put(path, "application/octet-stream", None)
    blob = await blobs.stream(sha256)
    chunks = [chunk async for chunk in blob.chunks]
    assert b"".join(chunks) == path.read_bytes()
    assert blob.num_bytes == path.stat().st_size
    assert max(map(len, chunks)) == CHUNK


async def test_a_part_is_streamed(blobs: Blobs) -> None:
    sha256 = await blobs.put(b"0123456789", PNG, None)
    blob = await blobs.stream(sha256, 2, 5)
    assert [chunk async for chunk in blob.chunks] == [b"234"]
    assert (blob.num_bytes, blob.media_type) == (10, PNG)


async def test_nothing_there_is_an_error_of_ours(blobs: Blobs) -> None:
    with pytest.raises(MissingBlobError):
        await blobs.get("0" * 64)
    with pytest.raises(MissingBlobError):
        await blobs.stream("0" * 64)


@pytest.mark.parametrize(
    ("first", "second", "latest"), [(10, 20, 20), (20, 10, 20), (None, 10, None), (10, None, None), (None, None, None)]
)
async def test_the_latest_expiry_of_all_uses_holds(
    blobs: Blobs, database: Database, first: float | None, second: float | None, latest: float | None
) -> None:
    sha256 = await blobs.put(b"pixels", PNG, first)
    await blobs.put(b"pixels", PNG, second)
    assert await expiry(database, sha256) == latest


async def test_only_what_has_expired_is_collected(blobs: Blobs, tmp_path: Path) -> None:
    old, new, kept = [await blobs.put(data, PNG, at) for data, at in ((b"old", 10), (b"new", 30), (b"kept", None))]
    assert await blobs.collect(20) == 1
    assert [await is_kept(blobs, sha256) for sha256 in (old, new, kept)] == [False, True, True]
    assert not (tmp_path / "blobs" / key_of(old)).exists()
    assert await blobs.collect(20) == 0


async def test_what_was_put_last_is_given_once_from_memory_and_not_for_long(blobs: Blobs, tmp_path: Path) -> None:
    first, second = [await blobs.put(data, PNG, 10) for data in (b"first", b"second")]
    for sha256 in (first, second):
        (tmp_path / "blobs" / key_of(sha256)).unlink()
    assert await blobs.get(first) == b"first"
    with pytest.raises(MissingBlobError):
        await blobs.get(first)
    blobs.forget_latest()
    with pytest.raises(MissingBlobError):
        await blobs.get(second)


async def test_not_much_is_kept_in_memory(blobs: Blobs, tmp_path: Path) -> None:
    put = [await blobs.put(bytes([number]) * (LATEST_BYTES // 2), PNG, 10) for number in range(3)]
    for sha256 in put:
        (tmp_path / "blobs" / key_of(sha256)).unlink()
    with pytest.raises(MissingBlobError):
        await blobs.get(put[0])
    assert [len(await blobs.get(sha256)) for sha256 in put[1:]] == [LATEST_BYTES // 2] * 2


async def test_what_a_file_refers_to_is_not_collected(blobs: Blobs, database: Database) -> None:
    sha256 = await blobs.put(b"pixels", PNG, 10)
    async with database.write() as connection:
        row = {"id": "file_1", "project": "p", "filename": "a", "purpose": "vision", "bytes": 6, "created_at": 0}
        await connection.execute(insert(files).values(sha256=sha256, **row))
    assert await blobs.collect(20) == 0
    assert await blobs.get(sha256) == b"pixels"


async def test_a_file_that_was_cut_short_is_not_served_and_is_mended(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = await blobs.put(b"pixels", PNG, None)
    (tmp_path / "blobs" / key_of(sha256)).write_bytes(b"pix")
    with pytest.raises(MissingBlobError):
        await blobs.stream(sha256)
    await blobs.put(b"pixels", PNG, None)
    assert await blobs.get(sha256) == b"pixels"


async def test_a_put_that_ended_before_the_file_was_written_is_made_good(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = await blobs.put(b"pixels", PNG, 10)
    (tmp_path / "blobs" / key_of(sha256)).unlink()
    with pytest.raises(MissingBlobError):
        await blobs.stream(sha256)
    assert await blobs.put(b"pixels", PNG, 10) == sha256
    assert await blobs.get(sha256) == b"pixels"
    assert await blobs.collect(20) == 1


async def test_a_collection_that_ended_before_the_row_was_gone_is_made_good(blobs: Blobs, tmp_path: Path) -> None:
    sha256 = await blobs.put(b"pixels", PNG, 10)
    (tmp_path / "blobs" / key_of(sha256)).unlink()
    assert await blobs.collect(20) == 1
    assert await blobs.put(b"pixels", PNG, 30) == sha256
    assert await blobs.get(sha256) == b"pixels"


class SlowToDelete:
    """A collection that is held between the row's deletion and the file's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self._delete = obstore.delete_async
        monkeypatch.setattr(obstore, "delete_async", self)

    async def __call__(self, store: LocalStore, path: str) -> None:
        self.reached.set()
        await self.go.wait()
        await self._delete(store, path)


async def test_a_put_during_the_collection_of_the_same_bytes_keeps_them(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = await blobs.put(b"pixels", PNG, 10)
    slow = SlowToDelete(monkeypatch)
    collection = asyncio.create_task(blobs.collect(20))
    await asyncio.wait_for(slow.reached.wait(), 10)
    put = asyncio.create_task(blobs.put(b"pixels", PNG, 30))
    await asyncio.sleep(0.05)
    slow.go.set()
    await asyncio.gather(collection, put)
    assert await blobs.get(sha256) == b"pixels"
    assert await blobs.collect(20) == 0


async def test_puts_and_collections_at_once_lose_nothing(blobs: Blobs) -> None:
    """Every put is of an expiry that a collection spares; those before it were of one that it does not."""

    async def use(number: int) -> str:
        await blobs.put(b"%d" % (number % 5), PNG, 10)
        await asyncio.sleep(random.random() / 100)
        return await blobs.put(b"%d" % (number % 5), PNG, 30)

    async def collect() -> None:
        for _ in range(20):
            await blobs.collect(20)

    done = await asyncio.gather(*(use(number) for number in range(40)), collect(), collect())
    assert all([await is_kept(blobs, sha256) for sha256 in done if sha256])


CRASHER = """
import asyncio, sys, time
from pathlib import Path
from kleinbild.storage.blobs import LATEST_BYTES, open_blobs
from kleinbild.storage.database import open_database, sqlite_url

async def main(folder):
    database = await open_database(sqlite_url(folder / "kleinbild.db"))
    blobs = open_blobs(database, folder / "blobs")
    print("ready", flush=True)
    while True:
        sha256s = await asyncio.gather(*(blobs.put(bytes([n]) * 100_000, "image/png", 1) for n in range(20)))
        await blobs.collect(2)

asyncio.run(main(Path(sys.argv[1])))
"""


def use_and_kill(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CRASHER, folder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.random() / 5)
        os.kill(process.pid, signal.SIGKILL)


async def test_killed_at_any_moment_it_leaves_nothing_that_the_next_start_cannot_use(tmp_path: Path) -> None:
    for _ in range(3):
        use_and_kill(tmp_path)
        database = await open_database(sqlite_url(tmp_path / "kleinbild.db"))
        blobs = open_blobs(database, tmp_path / "blobs")
        async with database.read() as connection:
            known = set(await connection.scalars(select(rows.c.sha256)))
        there = {path.parent.name + path.name for path in (tmp_path / "blobs").glob("??/*") if "#" not in path.name}
        assert there <= known
        wanted = [await blobs.put(bytes([n]) * 100_000, PNG, 3) for n in range(20)]
        assert all([len(await blobs.get(sha256)) == 100_000 for sha256 in wanted])
        await blobs.collect(4)
        assert not [path for path in (tmp_path / "blobs").glob("??/*") if "#" not in path.name]
        await database.close()


async def test_many_bytes_are_hashed_off_the_event_loop(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def measured(data: bytes) -> tuple[str, int]:
        threads.append(threading.get_ident())
        return hashlib.sha256(data).hexdigest(), len(data)

    monkeypatch.setattr("kleinbild.storage.blobs.measured", measured)
    await blobs.put(b"pixels" * 20_000, PNG, None)
    assert threading.get_ident() not in threads
    assert len(threads) == 1
