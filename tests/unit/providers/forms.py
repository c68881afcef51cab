"""Forms as they were sent."""

from __future__ import annotations

import email.parser
import email.policy

import httpx2


def parts_of(request: httpx2.Request) -> list[tuple[str, str, bytes]]:
    """The parts: each one's name, its file's name ("" if it is no file) and its content."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.content)
    assert message.is_multipart()
    parts = []
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts.append((str(part.get_param("name", header="content-disposition")), part.get_filename() or "", content))
    return parts
