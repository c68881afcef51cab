"""A fake provider that answers at once, so that what is measured is the gateway: OpenAI's images over HTTP/1.1.

    python benchmarks/gateways/upstream.py PORT

Answers are made before the first request; a request is read as far as it takes to find its end and its body's name.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gateways.bodies import BODIES, Body, answer_of

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
NAME = re.compile(rb"\[([^\]]{1,12})\] a fox")
NAME_WITHIN = 16 * 1024  # of a request's start: a form's fields come before its files, if need be at its end
HIGH_WATER = 1 << 20


def main() -> None:
    asyncio.run(_serve(int(sys.argv[1])))


async def _serve(port: int) -> None:
    answers = {body.name.encode(): _answer(body) for body in BODIES}
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(answers), "127.0.0.1", port, backlog=1024
    )
    print("listening", flush=True)
    await server.serve_forever()


def _answer(body: Body) -> list[bytes]:
    """The whole of a usual answer in one piece, a stream's in chunks."""
    kind, parts = answer_of(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nx-request-id: req_benchmark\r\n"
    if not body.stream:
        return [f"{head}content-length: {len(parts[0])}\r\n\r\n".encode() + parts[0]]
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return [f"{head}transfer-encoding: chunked\r\n\r\n".encode(), *chunks, b"0\r\n\r\n"]


class _Connection(asyncio.Protocol):
    """One request after the other. `_missing` bytes of the present one's body are still to come; of a chunked body None."""

    def __init__(self, answers: dict[bytes, list[bytes]]) -> None:
        self._answers = answers
        self._start, self._end, self._missing = b"", b"", 0
        self._chunked = self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._start += data
            head, found, data = self._start.partition(b"\r\n\r\n")
            if not found:
                return
            length = LENGTH.search(head)
            self._start, self._end = b"", b""
            self._chunked, self._in_body = CHUNKED.search(head) is not None, True
            self._missing = int(length[1]) if length else 0
        if len(self._start) < NAME_WITHIN:
            self._start += data[:NAME_WITHIN]
        self._end = (self._end + data)[-NAME_WITHIN:] if len(data) < NAME_WITHIN else data[-NAME_WITHIN:]
        self._missing -= len(data)
        if self._end.endswith(b"0\r\n\r\n") if self._chunked else self._missing <= 0:
            self._reply()

    def _reply(self) -> None:
        name = NAME.search(self._start) or NAME.search(self._end)
        self._start, self._in_body = b"", False
        if name is None or name[1] not in self._answers:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
            return
        for part in self._answers[name[1]]:
            self._transport.write(part)


if __name__ == "__main__":
    main()
