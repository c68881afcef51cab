"""The `openai` package's calls through Prism, which checks every request and answer against OpenAI's own description.

Prism knows no server-sent events, so those are checked here, each against its schema.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import openai
import pytest
from openai import OpenAI

from tests.conformance.calls import CALLS, EDIT, PROMPT, Call, apple
from tests.server import Server

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("KLEINBILD_SHARED", ROOT.parent / "shared"))
DESCRIPTION = SHARED / "provider-specs/openai/openapi.images-files-batches.with-errors.json"
PRISM = Path(__file__).parent / ".prism/node_modules/.bin/prism"
START_S = 60.0


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """OpenAI's, but for two places. `size` lists what OpenAI's models make, where the package takes any, and nano makes
    none of them; and the content of a file is described as JSON, which it is at OpenAI only if the file is.
    """
    if not DESCRIPTION.exists():
        pytest.skip(f"OpenAI's description is not at {SHARED}")
    described: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    for name, schema in described["components"]["schemas"].items():
        if name == "ImagesResponse" or name.endswith(("PartialImageEvent", "CompletedEvent")):
            del schema["properties"]["size"]["enum"]
    content = described["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]
    content["content"] = {"application/octet-stream": {"schema": {}}}
    return described


class Upstream(ThreadingHTTPServer):
    """What Prism stands in front of: it answers each request with what the server has answered to it.

    Prism takes every body for text and so breaks a form that holds a picture. Therefore the server itself gets what the
    client sends, and Prism a copy, to look at.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answer: httpx2.Response | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.server.answer  # type: ignore[attr-defined]
        self.send_response(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name != "transfer-encoding":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


class Checking(httpx2.BaseTransport):
    """Sends a request to the server, and it and its answer to Prism. Fails with what breaks the description."""

    def __init__(self, upstream: Upstream, prism: str) -> None:
        self.upstream, self.prism = upstream, prism
        self.server = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        answer = self.server.handle_request(request)
        answer.read()
        if answer.status_code == HTTPStatus.NOT_IMPLEMENTED or answer.headers["content-type"].startswith("text/event"):
            return answer  # Prism answers in the stead of a server with a 501, and takes no streams
        self.upstream.answer = answer
        headers = [(name, value) for name, value in request.headers.multi_items() if name != "host"]
        checked = httpx2.request(
            request.method,
            f"{self.prism}{request.url.raw_path.decode()}",
            headers=headers,
            content=body,
            trust_env=False,
            timeout=60,
        )
        violations = checked.headers.get("sl-violations")
        assert violations is None, f"{request.method} {request.url.path}: {violations}"
        assert checked.status_code == answer.status_code, checked.text
        return answer

    def close(self) -> None:
        self.server.close()


@pytest.fixture(scope="module")
def transport(description: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checking]:
    """With a Prism that answers 500 to whatever breaks the description."""
    if not PRISM.exists() or shutil.which("node") is None:
        refuse = pytest.fail if "CI" in os.environ else pytest.skip
        refuse("Prism is not installed: tests/conformance/install-prism.sh")
    folder = tmp_path_factory.mktemp("prism")
    (folder / "openapi.json").write_text(json.dumps(description))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Upstream() as upstream, (folder / "log").open("w") as log:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        command = [
            PRISM,
            "proxy",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "--errors",
            folder / "openapi.json",
            upstream.url,
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(process, port, folder / "log")
            yield Checking(upstream, f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(30)
            upstream.shutdown()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"Prism does not listen:\n{log.read_text()}")


@pytest.fixture(scope="module")
def client(transport: Checking, server: Server) -> Iterator[OpenAI]:
    http = openai.DefaultHttpxClient(transport=transport)
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, http_client=http) as connected:
        yield connected


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_call(client: OpenAI, call: Call) -> None:
    call(client)


def test_a_request_that_breaks_the_description_is_seen(client: OpenAI) -> None:
    with pytest.raises(AssertionError, match="quality"):
        client.images.generate(prompt=PROMPT, quality="bogus")  # type: ignore[call-overload]


def test_an_answer_that_breaks_the_description_is_seen(client: OpenAI, transport: Checking) -> None:
    with pytest.MonkeyPatch.context() as patch:
        wrong = httpx2.Response(200, json={"object": "list"})
        patch.setattr(transport.server, "handle_request", lambda _: wrong)
        with pytest.raises(AssertionError, match="data"):
            client.models.list()


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_events_are_as_described(client: OpenAI, description: dict[str, Any], kind: str) -> None:
    if kind == "image_edit":
        stream = client.images.edit(image=apple(client), prompt=EDIT, stream=True, partial_images=1)
    else:
        stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=1)  # type: ignore[assignment]
    events = [event.to_dict() for event in stream]
    assert [event["type"] for event in events] == [f"{kind}.partial_image", f"{kind}.completed"]
    prefix = "ImageEdit" if kind == "image_edit" else "ImageGen"
    for event, name in zip(events, ("PartialImageEvent", "CompletedEvent"), strict=True):
        schema = {"$ref": f"#/components/schemas/{prefix}{name}", "components": description["components"]}
        jsonschema_rs.Draft202012Validator(schema).validate(event)


def test_errors_are_as_described(client: OpenAI) -> None:
    header = {"Idempotency-Key": "prism"}
    client.images.generate(prompt=PROMPT, extra_headers=header)
    for wrong in (
        lambda: client.images.generate(prompt="a zeppelin"),
        lambda: client.images.generate(prompt=PROMPT, model="none"),
        lambda: client.images.generate(prompt=PROMPT, extra_body={"sede": 1}),
        lambda: client.images.edit(image=b"no picture", prompt=EDIT),
        lambda: client.models.retrieve("none"),
        lambda: client.files.content("file-none"),
        lambda: client.files.delete("file-none"),
    ):
        with pytest.raises(openai.APIStatusError):
            wrong()
