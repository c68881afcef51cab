"""`x-request-id` and `traceparent` (https://www.w3.org/TR/trace-context/) on every answer."""

from __future__ import annotations

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from kleinbild.gateway.tracing import Tracing, trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_clients_trace_goes_on_with_a_span_of_ours() -> None:
    trace = trace_of(f"00-{TRACE}-{SPAN}-01")
    assert (trace.trace_id, trace.flags) == (TRACE, "01")
    assert trace.span_id != SPAN
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-01"


def test_a_later_version_is_read_as_far_as_we_know_it() -> None:
    assert trace_of(f"cc-{TRACE}-{SPAN}-01-more").trace_id == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "hello",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-0",
    ],
)
def test_any_other_header_begins_a_new_trace(header: str) -> None:
    one, two = trace_of(header), trace_of(header)
    assert len(one.trace_id) == 32
    assert one.trace_id not in (TRACE, "0" * 32, two.trace_id)
    assert one.request_id != two.request_id


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/there", "/nowhere"])
async def test_every_answer_bears_them(path: str) -> None:
    async def there(request) -> PlainTextResponse:
        return PlainTextResponse(request.state.trace.request_id)

    app = Tracing(Starlette(routes=[Route("/there", there)]))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(path, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    if path == "/there":
        assert answer.text == answer.headers["x-request-id"]
