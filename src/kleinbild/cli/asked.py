"""What a running server is asked beside pictures, by commands that are about the server itself."""

from __future__ import annotations

import os

from kleinbild.client import running
from kleinbild.client.calls import Call, Reply
from kleinbild.client.settings import DEFAULT_TIMEOUT, URL_VARIABLE
from kleinbild.core.errors import NetworkError


def ask(server: str | None, call: Call, timeout: float = DEFAULT_TIMEOUT) -> Reply:
    """The answer of the server at that address, or of the one that is found. Raises NetworkError, AnswerError."""
    from kleinbild.client.flows import exchange  # the HTTP library: only now, when there is something to ask
    from kleinbild.client.settings import settle
    from kleinbild.client.sync import Connection

    connection = Connection(settle(server or _found(), None, timeout, 2))
    try:
        return connection.drive(exchange(call, connection.settings))
    finally:
        connection.close()


def _found() -> str:
    if url := os.environ.get(URL_VARIABLE):
        return url
    found = running.find()
    if found is None:
        raise NetworkError(
            "no server runs on this machine", "start one with `kleinbild serve`, or say with --server where one is"
        )
    return found.url
