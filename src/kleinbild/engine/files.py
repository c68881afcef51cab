"""Files of pictures: read within bounds, written whole or not at all. Errors are in words.

They are written under a temporary name in the same folder and moved, so that no reader and no interruption ever sees
half a picture.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from kleinbild.core.errors import OutputError, PictureError

MAX_FILE_BYTES = 256 * 2**20


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a reference's file. Raises PictureError where it cannot be read."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise PictureError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB", "give a smaller file")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise PictureError(f"no such file: {path}", "check the path") from error
    except IsADirectoryError as error:
        raise PictureError(f"{path} is a folder", "name a picture in it") from error
    except OSError as error:
        raise PictureError(
            f"{path} cannot be read: {error.strerror or error}", "check the file's permissions"
        ) from error


def write_file(target: Path, file: bytes) -> None:
    """Writes `target` anew. Raises OutputError where that fails; then nothing is left behind, and an older file stays."""
    try:
        _write_atomically(target, file)
    except OSError as error:
        raise OutputError(*_explain(target, error)) from error


def _write_atomically(target: Path, file: bytes) -> None:
    if target.is_dir():
        raise IsADirectoryError
    temporary = target.with_name(f".kleinbild-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(file)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:  # Ctrl-C, too
        temporary.unlink(missing_ok=True)
        raise


def _explain(target: Path, error: OSError) -> tuple[str, str]:
    folder = target.parent
    if isinstance(error, IsADirectoryError):
        return f"{target} is a folder", "name a file in it"
    if isinstance(error, FileNotFoundError | NotADirectoryError) and not folder.is_dir():
        return f"there is no folder {folder}", "make it first, or name another"
    if isinstance(error, PermissionError):
        return f"{folder} is not writable", "choose another folder, or change its permissions"
    return f"{target} cannot be written: {error.strerror or error}", "choose another place"
