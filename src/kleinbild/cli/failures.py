"""Errors of others in our words: the command-line library's, missing packages, full disks."""

from __future__ import annotations

import errno
from typing import Protocol, runtime_checkable

from kleinbild.core.errors import KleinbildError, ModelError, OutputError, RequestError

ENGINE_PACKAGES = ("torch", "tokenizers", "jinja2", "safetensors", "numpy")
SERVER_PACKAGES = ("fastapi", "uvicorn", "pydantic", "sqlalchemy", "alembic", "dbos", "obstore", "cryptography")


@runtime_checkable
class UsageError(Protocol):
    """What the command-line library raises for a wrong line, whichever version is beneath."""

    exit_code: int

    def format_message(self) -> str: ...


def in_words(error: Exception) -> KleinbildError | None:
    """`error` as one that says what to do, or None: then it is a bug of ours."""
    if isinstance(error, KleinbildError):
        return error
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, ModuleNotFoundError) and error.name in ENGINE_PACKAGES:
        return ModelError(f"{error.name} is not installed; making pictures needs it", "pip install 'kleinbild[all]'")
    if isinstance(error, ModuleNotFoundError) and error.name == "httpx2":
        return RequestError("httpx2 is not installed; asking a server needs it", "pip install 'kleinbild[client]'")
    if isinstance(error, ModuleNotFoundError) and error.name in SERVER_PACKAGES:
        return RequestError(f"{error.name} is not installed; serving needs it", "pip install 'kleinbild[all]'")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutputError("no space left where the result goes", "make room, or choose another place")
    if isinstance(error, MemoryError):
        return ModelError("not enough memory", "ask for a smaller picture, or close other programs")
    return None


def _usage(error: UsageError) -> RequestError:
    command = getattr(getattr(error, "ctx", None), "command_path", "kleinbild")
    what = error.format_message().split(" (Possible options")[0].split(" Did you mean")[0].rstrip(".")
    close = getattr(error, "possibilities", None)
    if close:
        return RequestError(what, f"did you mean {' or '.join(sorted(close))}? See {command} --help")
    if what.startswith("Got unexpected extra argument"):
        return RequestError(what, f'put the prompt in quotes: {command} "a red apple on a beach"')
    return RequestError(what, f"see {command} --help")
