"""Zips and tars of data, unpacked once, within bounds, into a folder of their own. Nothing in them can write elsewhere.

Only files and folders are taken, no links; names that lead out are errors. Bytes are counted as they come, not as the
archive says. The folder is named by the archive's content and moved to its place when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from kleinbild.core.errors import RequestError
from kleinbild.core.home import home

ARCHIVES = frozenset({".zip", ".tar"})
CHUNK = 2**20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """`max_ratio`: how many times its own size an archive may hold, from `free_bytes` on; pictures hardly shrink."""

    max_files: int = 500_000
    max_bytes: int = 200 * 10**9
    max_ratio: float = 100.0
    free_bytes: int = 100 * 10**6


Member = tuple[str, IO[bytes]]


def unpacked(path: Path, limits: ArchiveLimits = ArchiveLimits()) -> Path:
    """The folder with what is in the archive. Raises RequestError for one that is damaged, too large or leads out."""
    try:
        with path.open("rb") as stream:
            key = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        place = home() / "training" / "unpacked" / key
        if not place.is_dir():
            _unpack(path, place, limits)
    except _BROKEN as error:
        raise RequestError(f"{path} is damaged, or no archive that can be read: {error}", "pack it again") from error
    except OSError as error:
        raise RequestError(
            f"{path} cannot be unpacked: {error.strerror or error}", "check that it is there and that there is room"
        ) from error
    return place


def _unpack(path: Path, place: Path, limits: ArchiveLimits) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    most = min(limits.max_bytes, max(limits.free_bytes, int(path.stat().st_size * limits.max_ratio)))
    written = num_files = 0
    try:
        with _members(path, limits) as members:
            for name, stream in members:
                target = _inside(path, beside, name)
                num_files += 1
                if num_files > limits.max_files:
                    raise RequestError(f"{path} holds more than {limits.max_files:,} files", "divide it")
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("xb") as out:
                    while chunk := stream.read(CHUNK):
                        written += len(chunk)
                        if written > most:
                            raise RequestError(
                                f"{path} holds more than {most / 1e6:,.0f} MB once unpacked: that is no set of pictures",
                                "unpack it yourself and give the folder, if you trust it",
                            )
                        out.write(chunk)
        if not place.is_dir():  # another may have been faster
            beside.rename(place)
    except FileExistsError as error:
        raise RequestError(f"{path} holds one name twice: {Path(error.filename).name}", "pack it again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _members(path: Path, limits: ArchiveLimits) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > 2 * limits.max_files:
                raise RequestError(f"{path} holds more than {limits.max_files:,} files", "divide it")
            yield _in_zip(path, archive)
    else:
        with tarfile.open(path, "r:") as tar:
            yield _in_tar(path, tar)


def _in_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise RequestError(f"{path} is locked with a password", "pack it without one")
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise RequestError(f"{path} holds a link, {info.filename}", "pack the files themselves")
        if not info.is_dir() and not _left_by_programs(info.filename):
            yield info.filename, archive.open(info)


def _in_tar(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        if info.isdir() or (info.isfile() and _left_by_programs(info.name)):
            continue
        stream = tar.extractfile(info) if info.isfile() else None
        if stream is None:
            raise RequestError(f"{path} holds {info.name}, which is no file", "pack the files themselves")
        yield info.name, stream


def _left_by_programs(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1:] in ((".DS_Store",), ("Thumbs.db",))


def _inside(path: Path, folder: Path, name: str) -> Path:
    """Where the member goes. Raises RequestError for a name that is no path below the folder, on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise RequestError(f"{path} holds {name!r}, a name that leads out of its folder", "pack it again")
    return folder.joinpath(*parts)
