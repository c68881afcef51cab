"""Both clients against a real HTTP server that speaks the contract, and breaks it in the ways that networks do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kleinbild.client import errors, flows
from kleinbild.client.events import Completed, Failed, Preview, Queued, Started, Step
from kleinbild.client.sync import Client
from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import CancelledError, DeadlineError, PictureError, RequestError
from kleinbild.engine.picture import read_record
from tests.unit.client.contract import Contract, Fault, contract, error


def test_without_n_one_picture_with_n_a_list(client: Any, server: Contract) -> None:
    picture = client.run("a red apple", seed=7, size=(64, 48))
    assert (picture.seed, str(picture.size), picture.pil().size) == (7, "64x48", (64, 48))
    assert picture.record.prompt == "a red apple"
    assert picture.usage["total_tokens"] == 67
    assert (picture.timings, picture.cost, picture.warnings) == ({"denoise": 0.5}, None, ())
    assert picture.url.startswith(server.url)
    assert picture.job_id in server.jobs
    assert [one.seed for one in client.run("a red apple", seed=7, n=2)] == [7, 8]
    assert [one.seed for one in client.run("a red apple", seed=7, n=1)] == [7]


def test_only_what_was_said_is_sent(client: Any, server: Contract) -> None:
    client.run("a fox")
    client.run(
        "a fox", model="nano", guidance=2.0, strict=True, previews=1, extra={"adapters": ["x"]}, metadata={"a": "b"}
    )
    plain, full = (call.json for call in server.called("POST /v1/jobs"))
    assert plain == {"task": "image.generate", "input": {"prompt": "a fox"}}
    assert full == {
        "task": "image.generate",
        "input": {
            "prompt": "a fox",
            "model": "nano",
            "guidance": 2.0,
            "strict": True,
            "partial_images": 1,
            "stream": True,
            "adapters": ["x"],
        },
        "metadata": {"a": "b"},
    }


def test_adapters_go_by_name_and_with_their_strengths(client: Any, server: Contract) -> None:
    client.run("a fox", adapters=["crayon", AdapterUse("fuchur", 0.5)])
    (call,) = server.called("POST /v1/jobs")
    assert call.json["input"]["adapters"] == [{"name": "crayon"}, {"name": "fuchur", "scale": 0.5}]
    with pytest.raises(RequestError, match="5 is not a strength"):
        client.run("a fox", adapters=[AdapterUse("fuchur", 5)])


def test_pictures_to_start_from_arrive_as_they_are(client: Any, server: Contract, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "ein Apfel.png")
    file = (tmp_path / "ein Apfel.png").read_bytes()
    record = client.run("edit", images=[tmp_path / "ein Apfel.png", file, Image.new("CMYK", (16, 16))]).record
    named, unnamed, converted = record.references
    assert (named.name, unnamed.name, converted.name) == ("ein Apfel.png", "", "")
    assert named.sha256 == unnamed.sha256 != converted.sha256
    assert server.called("POST /v1/jobs")[0].json["task"] == "image.edit"
    again = client.run("edit", images=client.run("a fox"), mask="https://example.org/mask.png")
    assert len(again.record.references) == 1
    assert server.called("POST /v1/jobs")[-1].json["input"]["mask"] == {"image_url": "https://example.org/mask.png"}


def test_large_pictures_are_sent_by_themselves(
    client: Any, server: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "LARGE_BYTES", 100)
    Image.effect_noise((64, 64), 90).save(tmp_path / "noise.png")
    record = client.run("edit", images=tmp_path / "noise.png").record
    assert record.references[0].name == "noise.png"
    assert server.called("POST /v1/jobs")[0].json["input"]["images"] == [{"file_id": "file-0"}]
    assert server.files["file-0"][1] == (tmp_path / "noise.png").read_bytes()


def test_a_picture_that_is_none_is_refused_before_anything_is_sent(client: Any, server: Contract) -> None:
    with pytest.raises(PictureError, match="no such file"):
        client.run("edit", images="missing.png")
    with pytest.raises(RequestError, match="int is no picture"):
        client.run("edit", images=[3])
    with pytest.raises(TypeError, match="colour"):
        client.run("a fox", colour="red")
    assert server.calls == []


def test_a_job_is_a_handle(client: Any, server: Contract) -> None:
    job = client.submit("a fox", seed=3)
    assert job.state.status == "queued"
    assert job.status() == "running"
    assert job.wait(5).state.is_final
    assert [picture.seed for picture in job.pictures()] == [3]
    assert client.job(job.id).state.status == "completed"
    assert client.submit("a fox").cancel() == "cancelled"
    assert [model.id for model in client.models()] == ["nano"]


def test_waiting_ends_in_time_and_the_job_goes_on(client: Any, server: Contract) -> None:
    server.polls_until_done = 10_000
    job = client.submit("a fox")
    with pytest.raises(DeadlineError, match=r"running after 0\.1 s"):
        job.wait(0.1)
    assert job.status() == "running"
    assert not server.called(f"POST /v1/jobs/{job.id}/cancel")


def test_run_takes_the_job_back_when_it_stops_waiting(client: Any, server: Contract) -> None:
    server.polls_until_done = 10_000
    with pytest.raises(DeadlineError):
        client.run("a fox", timeout=0.1)
    (job,) = server.jobs.values()
    assert job["status"] == "cancelled"


def test_jobs_come_in_pages(client: Any, server: Contract) -> None:
    made = [client.submit(f"number {number}").id for number in range(5)]
    assert [job.id for job in client.jobs()] == made
    client.job(made[0]).cancel()
    assert [job.id for job in client.jobs(status="cancelled")] == made[:1]


def test_events_are_typed_and_end_with_the_pictures(client: Any, server: Contract) -> None:
    *others, end = client.stream("a fox", seed=7)
    assert [type(event) for event in others] == [Queued, Started, Step, Step, Preview]
    assert (others[0].position, others[3].step, others[3].num_steps, others[4].file) == (0, 2, 2, b"preview")
    assert isinstance(end, Completed)
    assert [picture.seed for picture in end.pictures] == [7]


@pytest.mark.parametrize("drops", [[3], [0, 0, 2, 0], [6]])
def test_a_dropped_stream_is_resumed_behind_what_came(client: Any, server: Contract, drops: list[int]) -> None:
    server.drops = [*drops]
    events = list(client.stream("a fox"))
    assert [type(event) for event in events] == [Queued, Started, Step, Step, Preview, Completed]
    calls = [call for call in server.calls if call.line.endswith("/events")]
    assert len(calls) == len(drops) + 1
    assert "last-event-id" not in calls[0].headers
    assert calls[-1].headers.get("last-event-id") == (str(sum(drops)) if sum(drops) else None)


def test_a_stream_that_never_gets_anywhere_is_given_up(client: Any, server: Contract) -> None:
    server.drops = [0] * 10
    job = client.submit("a fox")
    with pytest.raises(errors.UnreachableError, match="broke off 3 times"):
        list(job.events())


def test_a_stream_that_may_not_be_opened_yet_is_opened_later(client: Any, server: Contract) -> None:
    job = client.submit("a fox")
    server.faults = [Fault(f"GET /v1/jobs/{job.id}/events", 429, {"Retry-After": "0"})]
    assert isinstance(list(job.events())[-1], Completed)
    server.faults = [Fault(f"GET /v1/jobs/{job.id}/events", 401)]
    with pytest.raises(errors.AuthenticationError):
        list(job.events())


def test_a_job_that_failed_is_an_error_of_its_kind(client: Any, server: Contract) -> None:
    server.outcome, server.error = "failed", error("no more memory", "server_error", "engine_error")["error"]
    with pytest.raises(errors.JobFailedError, match="no more memory") as failed:
        client.run("a fox")
    assert (failed.value.exit_code, failed.value.code) == (6, "engine_error")
    with pytest.raises(errors.JobFailedError):
        list(client.stream("a fox"))
    assert isinstance(list(client.submit("a fox").events())[-1], Failed)
    assert not [call for call in server.calls if call.line.endswith("/cancel")]

    server.error = error("no such word", code="invalid_prompt", param="prompt")["error"]
    with pytest.raises(errors.BadRequestError) as wrong:
        client.run("a fox")
    assert (wrong.value.exit_code, wrong.value.param) == (2, "prompt")


def test_a_job_that_was_cancelled_says_so(client: Any, server: Contract) -> None:
    job = client.submit("a fox")
    job.cancel()
    with pytest.raises(CancelledError):
        job.pictures()


@pytest.mark.parametrize(
    ("status", "body", "kind", "exit_code"),
    [
        (400, error("no", code="invalid_value", param="size"), errors.BadRequestError, 2),
        (401, error("no", code="invalid_api_key"), errors.AuthenticationError, 2),
        (403, error("no", "permission_error"), errors.ForbiddenError, 2),
        (404, error("no", code="model_not_found"), errors.ModelNotFoundError, 3),
        (409, error("no", "idempotency_error"), errors.ConflictError, 2),
        (422, error("no", "idempotency_error"), errors.ConflictError, 2),
        (429, error("no", "insufficient_quota", "insufficient_quota"), errors.BusyError, 6),
        (500, error("no", "server_error"), errors.ServerError, 6),
        (418, {"title": "Teapot", "detail": "no"}, errors.BadRequestError, 2),
    ],
)
def test_errors_have_kinds_and_are_not_tried_again(
    client: Any, server: Contract, status: int, body: Any, kind: type[errors.AnswerError], exit_code: int
) -> None:
    server.faults = [Fault("POST /v1/jobs", status, body=body)]
    with pytest.raises(kind, match="no") as raised:
        client.run("a fox")
    assert type(raised.value) is kind
    assert raised.value.exit_code == exit_code
    assert (raised.value.status, raised.value.request_id) == (status, "req_1")
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /v1/jobs", 429, {"Retry-After": "0"}),
        Fault("POST /v1/jobs", 503),
        Fault("POST /v1/jobs", 502),
        Fault("POST /v1/jobs", 409, {"Retry-After": "0"}),
        Fault("POST /v1/jobs", reset="before"),
        Fault("POST /v1/jobs", reset="after"),
        Fault("GET /v1/jobs/", reset="before"),
        Fault("GET /media/", 503),
    ],
    ids=lambda fault: f"{fault.call} {fault.status or fault.reset}",
)
def test_what_may_pass_is_tried_again_and_nothing_is_made_twice(client: Any, server: Contract, fault: Fault) -> None:
    server.faults = [fault]
    assert client.run("a fox", seed=7).seed == 7
    keys = {call.headers["idempotency-key"] for call in server.called("POST /v1/jobs")}
    assert (server.num_made, len(keys)) == (1, 1)


def test_a_silent_server_is_asked_again_with_the_same_key(connect: Callable[..., Any], server: Contract) -> None:
    server.faults = [Fault("POST /v1/jobs", delay=0.6)]
    assert connect(server.url, timeout=0.2).run("a fox").record.prompt == "a fox"
    assert len(server.called("POST /v1/jobs")) == 2


def test_retries_end(connect: Callable[..., Any], server: Contract) -> None:
    server.faults = [Fault("POST /v1/jobs", 429, {"Retry-After": "0"}) for _ in range(9)]
    with pytest.raises(errors.BusyError):
        connect(server.url, max_retries=3).run("a fox")
    assert len(server.calls) == 4


def test_a_server_that_says_to_come_back_much_later_is_an_error_at_once(client: Any, server: Contract) -> None:
    server.faults = [Fault("POST /v1/jobs", 429, {"Retry-After": "3600"})]
    with pytest.raises(errors.BusyError) as busy:
        client.run("a fox")
    assert busy.value.retry_after == 3600


def test_a_key_of_ones_own_names_one_job(client: Any, server: Contract) -> None:
    assert client.submit("a fox", idempotency_key="k").id == client.submit("a fox", idempotency_key="k").id
    assert server.num_made == 1


def test_no_server_at_all(connect: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.UnreachableError, match="no server answers at") as unreachable:
            connect(url).models()
    assert unreachable.value.exit_code == 5
    assert "kleinbild serve" in unreachable.value.hint


def test_something_else_on_the_port(client: Any, server: Contract) -> None:
    server.faults = [Fault("GET /v1/models", 200, body="hello")]
    with pytest.raises(errors.ServerError, match="is it a Kleinbild server"):
        client.models()


def test_the_key_goes_to_the_server_and_to_nobody_else(connect: Callable[..., Any], server: Contract) -> None:
    client = connect(server.url + "/v1/", api_key="kb_secret")
    client.run("a fox")
    assert {call.headers["authorization"] for call in server.calls} == {"Bearer kb_secret"}
    with contract() as store:
        store.jobs = server.jobs
        server.image_base = store.url
        client.run("a fox")
        assert [call.line.split("?")[0].rsplit("/", 2)[0] for call in store.calls] == ["GET /media"]
        assert "authorization" not in store.calls[0].headers
    assert "kb_secret" not in repr(Client("http://127.0.0.1:1", "kb_secret").settings)


def test_settings_come_from_the_environment(server: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_BASE_URL", server.url)
    monkeypatch.setenv("KLEINBILD_API_KEY", "kb_env")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy is asked for this very machine
    with Client() as client:
        client.models()
    assert server.calls[0].headers["authorization"] == "Bearer kb_env"
    monkeypatch.delenv("KLEINBILD_BASE_URL")
    with Client() as client:
        assert client.settings.base_url == "http://127.0.0.1:8190"
    with pytest.raises(RequestError, match="not a server's address"):
        Client("localhost:8190")


def test_saving_decides_by_suffix_and_keeps_the_record(client: Any, tmp_path: Path) -> None:
    picture = client.run("a fox", seed=7)
    assert picture.save(tmp_path / "a.png").read_bytes() == picture.bytes
    for name in ("b.webp", "c.jpg"):
        assert read_record(picture.save(tmp_path / name)) == picture.record
    with Image.open(tmp_path / "b.webp") as lossless:
        assert lossless.tobytes() == picture.pil().tobytes()
    with pytest.raises(RequestError.__base__, match="unknown suffix"):
        picture.save(tmp_path / "d.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.webp", "c.jpg"]


def test_a_loop_that_is_left_takes_the_job_back(server: Contract) -> None:
    with Client(server.url) as client:
        for event in client.stream("a fox"):
            if isinstance(event, Step):
                break
    assert len(server.called("POST /v1/jobs/job_")) == 1


def test_threads_share_a_client(server: Contract) -> None:
    seeds: list[int | None] = []
    with Client(server.url) as client:
        threads = [
            threading.Thread(target=lambda s=seed: seeds.append(client.run("a fox", seed=s).seed)) for seed in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(seeds) == list(range(8))
