import asyncio
import base64
import json
import os
import subprocess
import sys

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from kleinbild.core.errors import RequestError
from kleinbild.gateway.bodies import BodyError, FormLimits, LimitBody, read_form, read_json
from tests.unit.gateway.serving import measured_stall, serving

pytestmark = pytest.mark.anyio

MAX_BYTES = 1_000_000
LIMITS = FormLimits(max_files=2, max_file_bytes=100_000, max_fields=3, max_field_bytes=1000)


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def json_route(request):
    body = await read_json(request)
    return JSONResponse({name: len(value) if isinstance(value, str) else value for name, value in body.items()})


async def form_route(request):
    async with read_form(request, request.app.state.limits) as form:
        items = []
        for name, value in form.multi_items():
            content = value if isinstance(value, str) else (await value.read()).decode("latin-1")
            items.append([name, getattr(value, "filename", None), len(content)])
        request.app.state.files = [value for _, value in form.multi_items() if not isinstance(value, str)]
    return JSONResponse(items)


async def in_words(_request, error):
    return JSONResponse({"words": error.message, "hint": error.hint, "param": error.param}, error.status)


async def unread(_request):
    return JSONResponse("done")


def application(max_bytes=MAX_BYTES, limits=LIMITS, handled=True):
    routes = [Route("/json", json_route, methods=["POST"]), Route("/form", form_route, methods=["POST"])]
    routes.append(Route("/unread", unread, methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers={BodyError: in_words} if handled else {})
    app.state.limits = limits
    return app, LimitBody(app, lambda: max_bytes)


@pytest.fixture
async def client():
    _, app = application()
    async with serving(app) as url, httpx2.AsyncClient(base_url=url) as client:
        yield client


async def sent(parts):
    """A body of unknown length, chunk by chunk."""
    for part in parts:
        yield part


JSON = {"content-type": "application/json"}


async def test_json_is_read(client):
    answer = await client.post("/json", json={"prompt": "ein Fuchs", "n": 2, "image": "A" * 900_000})
    assert answer.json() == {"prompt": 9, "n": 2, "image": 900_000}
    answer = await client.post("/json", content=b'{"a":1}', headers={"content-type": "application/json; charset=utf-8"})
    assert answer.json() == {"a": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"a":1,}', "not valid JSON: trailing comma at line 1 column 8"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b"[" * 900, "not valid JSON: recursion limit"),
        (b"[" * 900_000, "too many values"),
        (b'{"a":[' + b"1," * 300_000 + b"1]}", "too many values"),
        (b"9" * 900_000, "not valid JSON"),
        (b"[]", "no object"),
        (b'"a"', "no object"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
    ],
)
async def test_what_is_no_json_object_is_refused_in_words(client, body, words):
    answer = await client.post("/json", content=body, headers=JSON)
    assert answer.status_code == 400
    assert words in answer.json()["words"]
    assert answer.json()["hint"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_json_must_be_declared(client, content_type):
    """What a page of another site may send without asking first is not taken."""
    answer = await client.post("/json", content=b'{"a":1}', headers={"content-type": content_type})
    assert answer.status_code == 415


async def test_a_form_is_read(client):
    files = [("image[]", ("a.png", b"x" * 90_000)), ("image[]", ("b.png", b"y"))]
    answer = await client.post("/form", data={"prompt": "Füchse", "n": "2"}, files=files)
    assert sorted(answer.json(), key=str) == sorted(
        [["prompt", None, 6], ["n", None, 1], ["image[]", "a.png", 90_000], ["image[]", "b.png", 1]], key=str
    )


async def test_files_are_closed_when_the_route_is_done():
    app, limited = application()
    async with serving(limited) as url, httpx2.AsyncClient(base_url=url) as client:
        await client.post("/form", files={"image": b"x"})
    assert [file.file.closed for file in app.state.files] == [True]


def part(name, content, *headers, filename=None):
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    head = "\r\n".join(["--b", f"content-disposition: {disposition}", *headers, "", ""])
    return head.encode() + content + b"\r\n"


FORM = {"content-type": "multipart/form-data; boundary=b"}
END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (part("image", b"x" * 100_001, filename="fox.png") + END, 413, "fox.png is larger than 0.1 MB"),
        (part("image", b"x", filename="a") * 3 + END, 400, "more than 2 files"),
        (part("n", b"1") * 4 + END, 400, "Too many fields"),
        (part("prompt", b"x" * 1001) + END, 400, "Part exceeded maximum size"),
        (part("n", b"1", *[f"x-{i}: y" for i in range(50)]) + END, 400, "cannot be read"),
        (part("n", b"1", "x: " + "y" * 900_000) + END, 400, "cannot be read"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", 400, "cannot be read"),
        (b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n", 400, "name"),
        (b"nonsense", 400, "cannot be read"),
        (part("image", b"x" * 500, filename="a")[:-300], 400, "ends before its last boundary"),
        (part("n", b"1"), 400, "ends before its last boundary"),
        (b"", 400, "ends before its last boundary"),
    ],
)
async def test_what_is_no_form_for_us_is_refused_in_words(client, body, status, words):
    answer = await client.post("/form", content=body, headers=FORM)
    assert (answer.status_code, words in answer.json()["words"]) == (status, True), answer.text
    assert answer.json()["hint"]


async def test_a_refused_file_is_named_by_its_field(client):
    answer = await client.post("/form", content=part("mask", b"x" * 100_001, filename="m.png") + END, headers=FORM)
    assert answer.json()["param"] == "mask"


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", ""])
async def test_a_form_must_be_declared(client, content_type):
    assert (await client.post("/form", content=b"a=b", headers={"content-type": content_type})).status_code == 415


async def test_a_form_without_a_boundary_is_refused(client):
    answer = await client.post("/form", content=b"a", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    assert "boundary" in answer.json()["words"]


TOO_LARGE = {
    "message": "the request's body is larger than 1 MB: send fewer or smaller pictures, or URLs of them",
    "type": "invalid_request_error",
    "param": None,
    "code": "request_too_large",
}


@pytest.mark.parametrize("charset", ["undefined", "punycode", "unicode_escape", "utf-7", "latin-1", "nonsense", '""'])
async def test_a_form_in_anything_but_utf8_is_refused_in_words(client, charset):
    """Some of Python's codecs raise errors of their own, some give halves of surrogate pairs."""
    body = part("prompt", rb"\ud800 +2AA-") + part("image", b"x", filename=r"\ud800+2AA-.png") + END
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    answer = await client.post("/form", content=body, headers=headers)
    assert (answer.status_code, answer.json()["hint"]) == (415, "send UTF-8, and no charset")


async def test_a_form_may_say_that_it_is_utf8(client):
    headers = {"content-type": "multipart/form-data; boundary=b; charset=UTF-8"}
    assert (await client.post("/form", content=part("n", b"1") + END, headers=headers)).json() == [["n", None, 1]]


@pytest.mark.parametrize("handled", [True, False], ids=["the application has a handler", "it has none"])
@pytest.mark.parametrize("path", ["/json", "/form"])
async def test_a_body_beyond_the_limit_is_413_in_openais_shape(path, handled):
    headers = JSON if path == "/json" else FORM
    chunks = [part("image", b"", filename="a")[:-2], *[b"x" * 50_000] * 21]
    _, app = application(limits=FormLimits(), handled=handled)
    async with serving(app) as url, httpx2.AsyncClient(base_url=url) as client:
        declared = await client.post(path, content=b"".join(chunks), headers=headers)
        counted = await client.post(path, content=sent(chunks), headers=headers)
    for answer in (declared, counted):
        assert answer.status_code == 413
        assert answer.json() == {"error": TOO_LARGE}


async def test_a_declared_length_is_refused_before_the_body_is_sent(client):
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (MAX_BYTES + 1))
    answer = await reader.read()  # to the end: the connection is closed
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_that_sends_on_still_gets_its_answer(client, declared):
    chunks = [b"x" * 1_000_000] * 30
    answer = await client.post("/json", content=b"".join(chunks) if declared else sent(chunks), headers=JSON)
    assert answer.status_code == 413


async def test_a_body_at_the_limit_is_taken(client):
    body = b'{"a":"' + b"x" * (MAX_BYTES - 8) + b'"}'
    assert (await client.post("/json", content=body, headers=JSON)).status_code == 200
    assert (await client.post("/json", content=sent([body]), headers=JSON)).status_code == 200
    assert (await client.post("/json", content=sent([body, b" "]), headers=JSON)).status_code == 413


async def test_what_is_no_form_may_have_a_limit_of_its_own():
    """It is read into memory whole, whatever it says that it is."""
    app, _ = application()
    async with (
        serving(LimitBody(app, lambda: MAX_BYTES, lambda: 1000)) as url,
        httpx2.AsyncClient(base_url=url) as client,
    ):
        body = b'{"a":"' + b"x" * 1000 + b'"}'
        for content, content_type in (
            (body, "application/json"),
            (sent([body]), "application/json"),
            (body, "text/plain"),
        ):
            answer = await client.post("/json", content=content, headers={"content-type": content_type})
            assert (answer.status_code, "larger than 0.001 MB" in answer.text) == (413, True)
        form = part("image", b"x" * 2000, filename="a") + END
        assert (await client.post("/form", content=form, headers=FORM)).status_code == 200


async def test_a_refusal_does_not_wait_for_more_than_there_is():
    messages = []

    async def app(scope, receive, send):
        await receive()

    async def receive():
        if messages:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"x" * 11, "more_body": False}

    async def send(message):
        messages.append(message)

    with anyio.fail_after(1):
        await LimitBody(app, lambda: 10)({"type": "http", "headers": []}, receive, send)
    assert messages[0]["status"] == 413
    assert messages[-1] == {"type": "http.response.body", "body": b""}


async def test_an_answer_that_has_begun_is_not_answered_again():
    messages = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    async def receive():
        return {"type": "http.request", "body": b"x" * 11, "more_body": False}

    async def send(message):
        messages.append(message)

    with pytest.raises(BodyError):
        await LimitBody(app, lambda: 10)({"type": "http", "headers": []}, receive, send)
    assert [message["type"] for message in messages] == ["http.response.start"]


def test_body_errors_are_the_requests():
    assert issubclass(BodyError, RequestError)


CLIENT = """
import sys, httpx2
url, kind, path = sys.argv[1:]
content = open(path, "rb").read()
if kind == "json":
    answer = httpx2.post(url + "/json", content=content, headers={"content-type": "application/json"})
else:
    answer = httpx2.post(url + "/form", files={"image": content}, data={"prompt": "fox"})
print(answer.status_code, answer.text)
"""

LARGE = {
    "form": lambda: os.urandom(20_000_000),
    "json": lambda: json.dumps({"image": base64.b64encode(os.urandom(15_000_000)).decode()}).encode(),
    "json with escaped slashes": lambda: b'{"image":"' + (b"A" * 30 + b"\\/") * 620_000 + b'"}',
    "json of small values": lambda: b'{"a":[' + b"[]," * 6_000_000 + b"1]}",
    "form of lines": lambda: b"\r\n--" * 5_000_000,
}


@pytest.mark.alone
@pytest.mark.parametrize("kind", LARGE)
async def test_twenty_megabytes_do_not_hold_up_the_event_loop(kind, tmp_path):
    path = tmp_path / "body"
    path.write_bytes(LARGE[kind]())
    _, app = application(max_bytes=100_000_000, limits=FormLimits())
    stalls = []
    async with serving(app) as url:
        for _ in range(2):  # the machine may be busy with something else once
            command = [sys.executable, "-c", CLIENT, url, kind.split()[0], str(path)]
            with measured_stall() as stall:
                done = await output_of(command)
            stalls.append(stall.seconds)
    assert done.startswith("400" if kind == "json of small values" else "200"), done
    assert min(stalls) < 0.1, stalls
    print(f"{kind}: {min(stalls) * 1000:.0f} ms")


async def output_of(command):
    process = await anyio.run_process(command, stderr=subprocess.STDOUT)
    return process.stdout.decode()
