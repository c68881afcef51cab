"""Every answer bears `x-request-id`, and continues the trace of its request (W3C Trace Context). Pure ASGI."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kleinbild.core.ids import new_id, random_bytes

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """`trace_id` is the client's or a new one; `span_id` this request's."""

    request_id: str
    trace_id: str
    span_id: str
    flags: str = "00"

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


class Tracing:
    """Puts a `Trace` into `request.state.trace`, and its ids on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trace = trace_of(dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1"))
        scope.setdefault("state", {})["trace"] = trace
        begun = time.perf_counter()

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = trace.request_id
                headers["traceparent"] = trace.traceparent
                headers["openai-processing-ms"] = str(round((time.perf_counter() - begun) * 1000))
                headers.setdefault("x-content-type-options", "nosniff")
            await send(message)

        await self.app(scope, receive, send_with_ids)


def request_id_of(request: Request) -> str:
    """Empty where no `Tracing` is around."""
    trace = getattr(request.state, "trace", None)
    return trace.request_id if isinstance(trace, Trace) else ""


def trace_of(traceparent: str) -> Trace:
    """A span of the trace that the header names, or of a new one if it names none."""
    known = _TRACEPARENT.fullmatch(traceparent.strip())
    trace_id, flags = (known[1], known[2]) if known else (random_bytes(16).hex(), "00")
    return Trace(new_id("req"), trace_id, random_bytes(8).hex(), flags)
