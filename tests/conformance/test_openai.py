"""The server, asked by the `openai` package: its calls, its streams and its errors."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conformance.calls import CALLS, EDIT, PROMPT, Call, apple
from tests.conformance.pictures import bytes_of, difference, opened
from tests.server import Server

SLOW = {"steps": 200, "size": "256x256"}
"""A minute's work, for what is cancelled."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with connected(server) as client:
        yield client


def connected(server: Server, key: str = "unused") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def newest(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.ask("GET", "/v1/jobs?limit=1").json()["data"][0]
    return found


def until(server: Server, *statuses: str) -> dict[str, Any]:
    """The newest job when it has one of these."""
    deadline = time.monotonic() + 60
    while (job := newest(server))["status"] not in statuses:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_call(client: OpenAI, call: Call) -> None:
    call(client)


class TestAsync:
    pytestmark = pytest.mark.anyio

    async def test_calls(self, server: Server, client: OpenAI) -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as connected:
            before = apple(client)
            made, edited = await asyncio.gather(
                connected.images.generate(prompt=PROMPT, extra_body={"seed": 7}),
                connected.images.edit(image=before, prompt=EDIT, extra_body={"seed": 1}),
            )
            assert difference(bytes_of(made), before) < 0.01
            same = client.images.edit(image=before, prompt=EDIT, extra_body={"seed": 1})
            assert difference(bytes_of(edited), bytes_of(same)) < 0.01  # made beside another: the same but for rounding
            assert [model.id async for model in connected.models.list()] == ["nano"]
            stream = await connected.images.generate(
                prompt=PROMPT, stream=True, partial_images=1, extra_body={"seed": 7}
            )
            events = [event async for event in stream]
            assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
            assert base64.b64decode(events[-1].b64_json) == before

    @pytest.mark.parametrize(("keep", "status"), [(False, "cancelled"), (True, "completed")])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_client_that_goes_away_ends_the_job_unless_it_is_to_be_kept(
        self, server: Server, keep: bool, status: str, stream: bool
    ) -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as connected:
            body = {"steps": 60, "keep": True} if keep else SLOW

            async def ask() -> None:
                answer = await connected.images.generate(prompt=PROMPT, stream=stream, extra_body=body)  # type: ignore[call-overload]
                if stream:
                    async for _ in answer:
                        pass

            before = (await asyncio.to_thread(newest, server))["id"]
            task = asyncio.create_task(ask())
            while (job := await asyncio.to_thread(newest, server))["id"] == before or job["progress"]["step"] < 1:
                assert not task.done()
                await asyncio.sleep(0.02)
            task.cancel()
            left = time.monotonic()
            job = await asyncio.to_thread(until, server, "completed", "cancelled", "failed")
        assert job["status"] == status
        if not keep:
            assert time.monotonic() - left < 3


class TestRaw:
    def test_headers(self, client: OpenAI) -> None:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        raw = client.images.with_raw_response.generate(
            prompt=PROMPT, quality="low", extra_headers={"traceparent": parent}
        )
        answer = raw.parse()
        assert bytes_of(answer)
        assert raw.headers["x-request-id"] == raw.request_id == answer._request_id
        assert raw.headers["x-kleinbild-warnings"] == "1"
        assert int(raw.headers["openai-processing-ms"]) > 0
        version, trace, span, flags = raw.headers["traceparent"].split("-")
        assert (version, trace, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01")
        assert span != "00f067aa0ba902b7"

    def test_no_warnings_no_header(self, client: OpenAI) -> None:
        assert "x-kleinbild-warnings" not in client.images.with_raw_response.generate(prompt=PROMPT).headers

    def test_streaming_response(self, client: OpenAI) -> None:
        with client.images.with_streaming_response.generate(prompt=PROMPT, extra_body={"seed": 7}) as raw:
            assert bytes_of(raw.parse()) == apple(client)


class TestStream:
    def test_generate(self, client: OpenAI) -> None:
        stream = client.images.generate(
            prompt=PROMPT,
            stream=True,
            partial_images=2,
            quality="low",
            size="128x64",
            extra_body={"seed": 7},  # type: ignore[call-overload]
        )
        events = list(stream)
        assert [event.type for event in events] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        *partial, completed = events
        assert [event.partial_image_index for event in partial] == [0, 1]
        for event in partial:
            width, height = opened(base64.b64decode(event.b64_json)).size
            assert (event.size, event.output_format) == (f"{width}x{height}", "png")
            assert width == 2 * height
        for event in events:
            assert (event.quality, event.background) == ("low", "opaque")
            assert abs(event.created_at - time.time()) < 60
        assert completed.size == "128x64"
        assert completed.usage.total_tokens > 0
        whole = client.images.generate(prompt=PROMPT, size="128x64", extra_body={"seed": 7})  # type: ignore[call-overload]
        assert base64.b64decode(completed.b64_json) == bytes_of(whole)

    def test_edit(self, client: OpenAI) -> None:
        before = apple(client)
        stream = client.images.edit(
            image=before, prompt=EDIT, stream=True, partial_images=1, output_format="webp", extra_body={"seed": 1}
        )
        events = list(stream)
        assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
        assert opened(base64.b64decode(events[-1].b64_json)).format == "WEBP"

    def test_several_pictures(self, client: OpenAI) -> None:
        events = list(client.images.generate(prompt=PROMPT, n=2, stream=True))
        assert [event.type for event in events] == ["image_generation.completed"] * 2

    def test_what_is_wrong_is_an_error_before_the_stream(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError):
            client.images.generate(prompt="a zeppelin", stream=True)

    def test_a_job_that_is_cancelled_ends_the_stream_with_an_error(self, server: Server, client: OpenAI) -> None:
        stream = client.images.generate(
            prompt=PROMPT, n=10, stream=True, partial_images=3, extra_body=SLOW | {"steps": 8}
        )
        events = iter(stream)
        next(events)
        server.ask("POST", f"/v1/jobs/{newest(server)['id']}/cancel")
        with pytest.raises(openai.APIError) as ended:
            list(events)
        assert ended.value.code == "cancelled"


class TestIdempotency:
    def test_the_same_request_gives_the_same_answer(self, client: OpenAI) -> None:
        header = {"Idempotency-Key": "same"}
        first, second = (
            client.images.with_raw_response.generate(prompt=PROMPT, extra_headers=header) for _ in range(2)
        )
        assert first.text == second.text
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"

    def test_another_request_with_the_same_key_is_422(self, client: OpenAI) -> None:
        header = {"Idempotency-Key": "other"}
        client.images.generate(prompt=PROMPT, extra_headers=header)
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.images.generate(prompt=PROMPT, n=2, extra_headers=header)
        assert refused.value.code == "idempotency_key_reused"
        assert refused.value.type == "idempotency_error"

    def test_while_the_first_runs_the_second_is_409(self, server: Server, client: OpenAI) -> None:
        before = newest(server)["id"]
        made: list[str] = []

        def ask() -> None:
            answer = client.images.generate(
                prompt=PROMPT, extra_body={"seed": 7, "steps": 60}, extra_headers={"Idempotency-Key": "busy"}
            )
            made.append(answer.to_json())

        first = threading.Thread(target=ask)
        first.start()
        while newest(server)["id"] == before:
            time.sleep(0.02)
        with pytest.raises(openai.ConflictError) as refused:
            client.images.generate(
                prompt=PROMPT, extra_body={"seed": 7, "steps": 60}, extra_headers={"Idempotency-Key": "busy"}
            )
        assert refused.value.code == "idempotency_in_progress"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        first.join(60)
        again = client.with_options(max_retries=8).images.generate(
            prompt=PROMPT, extra_body={"seed": 7, "steps": 60}, extra_headers={"Idempotency-Key": "busy"}
        )
        assert made == [again.to_json()]


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"prompt": "a zeppelin"}, "prompt", "invalid_prompt"),
            ({"prompt": ""}, "prompt", "invalid_value"),
            ({"prompt": PROMPT, "n": 11}, "n", "invalid_value"),
            ({"prompt": PROMPT, "size": "huge"}, "size", "invalid_value"),
            ({"prompt": PROMPT, "output_format": "gif"}, "output_format", "invalid_value"),
            ({"prompt": PROMPT, "extra_body": {"sede": 7}}, "sede", "unknown_parameter"),
            ({"prompt": PROMPT, "extra_body": {"references": ["ftp://a/b"]}}, "references.0", "invalid_image_url"),
        ],
    )
    def test_bad_request(self, client: OpenAI, fields: dict[str, Any], param: str | None, code: str) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(**fields)
        error = refused.value
        assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
        assert error.request_id is not None
        assert error.body["message"]  # type: ignore[index]

    def test_no_picture(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.edit(image=("a.png", b"no picture", "image/png"), prompt=EDIT)
        assert (refused.value.param, refused.value.code) == ("image", "invalid_image")

    @pytest.mark.parametrize("model", ["klein-9b", "none"])
    def test_not_found(self, client: OpenAI, model: str) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.images.generate(prompt=PROMPT, model=model)
        assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(model)
        with pytest.raises(openai.NotFoundError):
            client.files.content("file-none")

    def test_a_file_that_is_not_there(self, client: OpenAI) -> None:
        body = {"prompt": EDIT, "images": [{"file_id": "file-none"}]}
        with pytest.raises(openai.NotFoundError):
            client.post("/images/edits", body=body, cast_to=dict[str, object])

    def test_moderations_are_not_there_yet(self, client: OpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as refused:
            client.moderations.create(input="a red apple")
        assert (refused.value.status_code, refused.value.type) == (501, "server_error")

    def test_as_a_problem_where_that_is_asked_for(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt=PROMPT, n=11, extra_headers={"Accept": "application/problem+json"})
        answer = refused.value.response
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert (problem["status"], problem["title"], problem["param"]) == (400, "Bad Request", "n")
        assert problem["type"] == "urn:kleinbild:error:invalid_value"
        assert problem["instance"] == "/v1/images/generations"


class TestKeys:
    def test_none_and_a_wrong_one(self, keyed_server: Server) -> None:
        for key in ("sk-wrong", "kb_00000000_" + "0" * 52):
            with connected(keyed_server, key) as client, pytest.raises(openai.AuthenticationError) as refused:
                client.images.generate(prompt=PROMPT)
            assert (refused.value.type, refused.value.code) == ("invalid_request_error", "invalid_api_key")
            assert refused.value.response.headers["www-authenticate"] == "Bearer"

    def test_a_member_may(self, keyed_server: Server) -> None:
        with connected(keyed_server, keyed_server.new_key("member")) as client:
            assert bytes_of(client.images.generate(prompt=PROMPT))

    def test_a_viewer_may_look_only(self, keyed_server: Server) -> None:
        with connected(keyed_server, keyed_server.new_key("looks", role="viewer")) as client:
            assert [model.id for model in client.models.list()] == ["nano"]
            image = ("a.png", b"", "image/png")
            work = {"task": "image.generate", "input": {"prompt": PROMPT}}
            for refused_call in (
                lambda: client.images.generate(prompt=PROMPT),
                lambda: client.images.edit(image=image, prompt=EDIT),
                lambda: client.files.create(file=b"words", purpose="user_data"),
                lambda: client.post("/jobs", body=work, cast_to=object),
                lambda: client.post("/jobs/job_1/cancel", cast_to=object),
            ):
                with pytest.raises(openai.PermissionDeniedError) as refused:
                    refused_call()
                assert (refused.value.type, refused.value.code) == ("permission_error", "role_not_allowed")
            with pytest.raises(openai.PermissionDeniedError) as refused:
                client.post("/flux-2-klein-4b", body={"prompt": PROMPT}, cast_to=object)
            assert "viewer" in refused.value.response.text

    def test_another_model(self, keyed_server: Server) -> None:
        with connected(keyed_server, keyed_server.new_key("klein", models=["klein-4b"])) as client:
            assert list(client.models.list()) == []
            with pytest.raises(openai.PermissionDeniedError) as refused:
                client.images.generate(prompt=PROMPT)
            assert (refused.value.param, refused.value.code) == ("model", "model_not_allowed")

    def test_rates(self, keyed_server: Server) -> None:
        limits = {"requests_per_minute": 5, "images_per_minute": 2}
        with connected(keyed_server, keyed_server.new_key("few", limits=limits)) as client:
            headers = client.images.with_raw_response.generate(prompt=PROMPT, n=2).headers
            assert headers["x-ratelimit-limit-requests"] == "5"
            assert headers["x-ratelimit-remaining-requests"] == "4"
            assert headers["x-ratelimit-remaining-images"] == "0"
            assert headers["x-ratelimit-reset-images"].endswith("s")
            with pytest.raises(openai.RateLimitError) as refused:
                client.images.generate(prompt=PROMPT)
            assert (refused.value.type, refused.value.code) == ("rate_limit_error", "rate_limit_exceeded")
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
