"""The blob store: bytes under the SHA-256 of themselves, in a folder or in anything that speaks S3.

Row and file are kept in step without a log of their own, whenever the process ends:

* `put` writes the row first and the file second. If it ends in between, there is a row without a file, which nobody has
  been told of; the next `put` of the same bytes finds no file and writes it. So there is never a file without a row.
* `collect` deletes the row and the file within one transaction, which holds the row's lock. If it ends in between, the
  row is back and still expired. A `put` of the same bytes waits for the lock: it comes either before, and then the row
  is no longer expired, or after, and then it finds no file and writes it.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import obstore
from obstore.store import LocalStore, ObjectStore, from_url
from sqlalchemy import Exists, delete, exists, select

from kleinbild.core.errors import KleinbildError, RequestError
from kleinbild.core.threads import FEW_BYTES, MANY_BYTES, on_bytes
from kleinbild.storage.commits import Commits, Run
from kleinbild.storage.database import Database
from kleinbild.storage.schema import blobs, files

CHUNK = 256 * 1024
LATEST_BYTES = 32 * 2**20
Data = bytes | Path | IO[bytes]


class MissingBlobError(KleinbildError):
    """There are no such bytes, or no longer."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What is read: `num_bytes` of the whole, whatever part of it `chunks` are."""

    num_bytes: int
    media_type: str
    chunks: AsyncIterator[bytes]


_KEEP = """
INSERT INTO blobs (sha256, bytes, media_type, created_at, expires_at)
VALUES (:sha256, :bytes, :media_type, :created_at, :expires_at)
ON CONFLICT (sha256) DO UPDATE SET expires_at = CASE
WHEN blobs.expires_at IS NULL OR excluded.expires_at IS NULL THEN NULL
WHEN excluded.expires_at > blobs.expires_at THEN excluded.expires_at ELSE blobs.expires_at END
RETURNING created_at
"""


class Blobs:
    def __init__(self, database: Database, store: ObjectStore, commits: Commits | None = None) -> None:
        self._database, self._store = database, store
        self._commits = commits or Commits(database)
        self._latest = _Latest()

    async def put(self, data: Data, media_type: str, expires_at: float | None) -> str:
        """Keeps `data`, all of it if it is a file, until `expires_at` at least (None: for good), and gives its SHA-256.

        Bytes that are here already are not written again; they are kept for the longest that anybody asked for.
        """
        num_given = len(data) if isinstance(data, bytes) else MANY_BYTES
        sha256, num_bytes = await on_bytes(num_given, lambda: measured(data))
        row = {
            "sha256": sha256,
            "bytes": num_bytes,
            "media_type": media_type,
            "created_at": time.time(),
            "expires_at": expires_at,
        }

        def keep_row(run: Run) -> bool:
            """Whether there was none before."""
            return bool(run(_KEEP, row).fetchall()[0][0] == row["created_at"])

        def write(is_new: bool) -> None:
            if is_new or self._size_at_once(sha256) != num_bytes:
                obstore.put(self._store, key_of(sha256), data)

        if num_given <= FEW_BYTES and isinstance(self._store, LocalStore):  # in the thread that has just kept the row
            await self._commits.make(keep_row, durable=False, after=write)
        elif await self._commits.make(keep_row, durable=False) or await self._size(sha256) != num_bytes:
            await obstore.put_async(self._store, key_of(sha256), data)
        if isinstance(data, bytes):
            self._latest.keep(sha256, data)
        return sha256

    async def get(self, sha256: str) -> bytes:
        """All of it. Raises MissingBlobError."""
        if (latest := self._latest.take(sha256)) is not None:
            return latest
        try:
            found = await obstore.get_async(self._store, key_of(sha256))
            return bytes(await found.bytes_async())
        except FileNotFoundError as error:
            raise _missing(sha256) from error

    def forget_latest(self) -> None:
        """Nobody has come for it: it is in the store."""
        self._latest.clear()

    async def stream(self, sha256: str, start: int = 0, end: int | None = None) -> Blob:
        """Bytes `start` up to `end`, which is not among them, a chunk at a time. Raises MissingBlobError."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(blobs).where(blobs.c.sha256 == sha256))).one_or_none()
        if row is None or await self._size(sha256) != row.bytes:
            raise _missing(sha256)
        stop = row.bytes if end is None else min(end, row.bytes)
        return Blob(row.bytes, row.media_type, self._chunks(sha256, start, stop))

    async def collect(self, now: float) -> int:
        """Deletes what has expired and belongs to no file any more; how many that were."""
        expired = select(blobs.c.sha256).where(blobs.c.expires_at <= now, ~_has_file())
        async with self._database.read() as connection:
            found = list(await connection.scalars(expired))
        return sum([await self._delete(sha256, now) for sha256 in found])

    async def _delete(self, sha256: str, now: float) -> bool:
        """Whether it was still to be deleted once its row was locked."""
        expired = delete(blobs).where(blobs.c.sha256 == sha256, blobs.c.expires_at <= now, ~_has_file())
        async with self._database.write() as connection:
            if (await connection.execute(expired)).rowcount == 0:
                return False
            with suppress(FileNotFoundError):  # if whoever deleted it ended before the row was gone
                await obstore.delete_async(self._store, key_of(sha256))
        self._latest.take(sha256)
        return True

    async def _size(self, sha256: str) -> int | None:
        """Of the file, None if there is none. A file cut short, as by a power failure, is not taken for the whole."""
        try:
            return (await obstore.head_async(self._store, key_of(sha256)))["size"]
        except FileNotFoundError:
            return None

    def _size_at_once(self, sha256: str) -> int | None:
        """`_size` of a store in a folder."""
        try:
            return obstore.head(self._store, key_of(sha256))["size"]
        except FileNotFoundError:
            return None

    async def _chunks(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Ranges of their own, so that a slow reader keeps neither a file nor a connection open."""
        for at in range(start, end, CHUNK):
            try:
                yield bytes(
                    await obstore.get_range_async(self._store, key_of(sha256), start=at, end=min(at + CHUNK, end))
                )
            except FileNotFoundError as error:
                raise _missing(sha256) from error


class _Latest:
    """What was put last, for who made it and gives it away now: once, soon, and not more than `LATEST_BYTES` of it."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    def keep(self, sha256: str, file: bytes) -> None:
        self.take(sha256)
        self._files[sha256] = file
        self._num_bytes += len(file)
        while self._num_bytes > LATEST_BYTES:
            self.take(next(iter(self._files)))

    def take(self, sha256: str) -> bytes | None:
        file = self._files.pop(sha256, None)
        self._num_bytes -= len(file or b"")
        return file

    def clear(self) -> None:
        self._files.clear()
        self._num_bytes = 0


def open_blobs(database: Database, place: Path | str, commits: Commits | None = None) -> Blobs:
    """The blobs at `place`, whose rows are in `database`. Raises RequestError as `store_at` does."""
    return Blobs(database, store_at(place), commits)


def store_at(place: Path | str) -> ObjectStore:
    """The store in the folder `place`, which is made if need be, or at the URL `place`, such as s3://bucket/prefix.

    Credentials are the environment's, as AWS's own tools read them. Raises RequestError for a URL that leads nowhere.
    """
    if not isinstance(place, str) or "://" not in place:
        return LocalStore(Path(place).expanduser(), mkdir=True)
    try:
        return from_url(place)
    except obstore.exceptions.BaseError as error:
        said = str(error).partition("\n")[0]
        raise RequestError(f"storage.blobs_url {place!r} cannot be used: {said}", "write s3://bucket/prefix") from error


def measured(data: Data) -> tuple[str, int]:
    """SHA-256 and number of bytes. Takes a while for large data: never on the event loop."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest(), len(data)
    if isinstance(data, Path):
        with data.open("rb") as file:
            return measured(file)
    data.seek(0)
    found = hashlib.file_digest(data, "sha256").hexdigest(), data.tell()  # type: ignore[arg-type]  # any file will do
    data.seek(0)
    return found


def key_of(sha256: str) -> str:
    """256 folders, so that none grows too large to list."""
    return f"{sha256[:2]}/{sha256[2:]}"


def _has_file() -> Exists:
    return exists().where(files.c.sha256 == blobs.c.sha256)


def _missing(sha256: str) -> MissingBlobError:
    return MissingBlobError(f"there is nothing kept under {sha256}", "it may have expired; make or upload it again")
