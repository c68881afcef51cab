"""What the client decides, without a network: when to try again, how long to wait, what an answer means."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from kleinbild.client import flows, retrying
from kleinbild.client.answers import read_error, read_job, retry_after
from kleinbild.client.asking import NamedFile, picture_json, size_text, submit_call
from kleinbild.client.calls import Call, Pause, Reply
from kleinbild.client.errors import BadRequestError, ConflictError, ServerError, UnreachableError
from kleinbild.client.events import Cursor, Queued, Step
from kleinbild.client.retrying import LONGEST_RETRY_AFTER_S
from kleinbild.client.settings import Settings
from kleinbild.core.errors import DeadlineError, SizeError
from kleinbild.core.sizes import Size

HERE = Settings("http://127.0.0.1:1")


def reply(status: int, value: Any = None, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode())


def job(status: str) -> dict[str, Any]:
    return {"id": "job_1", "status": status, "task": "image.generate"}


def answer_for_ever(flow: flows.Flow[Any], answer: Reply, now: list[float]) -> None:
    """Gives every call the same answer, and counts the seconds of the pauses between them."""
    while True:
        step = flow.send(answer)
        assert isinstance(step, Pause)
        now[0] += step.seconds
        flow.send(None)


def test_pauses_are_what_the_server_says_else_they_grow() -> None:
    flow = flows.exchange(Call("GET", "/"), Settings("http://127.0.0.1:1", max_retries=3))
    next(flow)
    assert flow.send(reply(429, retry_after="7")) == Pause(7)
    assert isinstance(flow.send(None), Call)
    pauses = []
    for _ in range(2):
        step = flow.throw(UnreachableError("gone"))
        assert isinstance(step, Pause)
        pauses.append(step.seconds)
        flow.send(None)
    first = retrying.FIRST_PAUSE_S
    assert 1.5 * first <= pauses[0] <= 2 * first < 3 * first <= pauses[1] <= 4 * first
    with pytest.raises(UnreachableError):
        flow.throw(UnreachableError("gone"))


def test_waiting_for_the_first_with_the_same_key_is_bounded() -> None:
    flow = flows.exchange(Call("POST", "/"), HERE)
    next(flow)
    now = [0.0]
    with pytest.raises(ConflictError):
        answer_for_ever(flow, reply(409, retry_after="5"), now)
    waited = now[0]
    assert LONGEST_RETRY_AFTER_S - 5 <= waited <= LONGEST_RETRY_AFTER_S


def test_a_job_is_looked_at_often_at_first_and_rarely_later() -> None:
    now = [0.0]
    flow = flows.wait("job_1", None, HERE, lambda: now[0])
    next(flow)
    pauses = []
    for _ in range(200):
        step = flow.send(reply(200, job("running")))
        assert isinstance(step, Pause)
        pauses.append(step.seconds)
        now[0] += step.seconds
        flow.send(None)
    assert pauses[0] == flows.LEAST_POLL_S
    assert pauses[-1] == flows.MOST_POLL_S
    assert pauses == sorted(pauses)
    with pytest.raises(StopIteration) as end:
        flow.send(reply(200, job("completed")))
    assert end.value.value.is_final


def test_the_last_look_is_at_the_deadline() -> None:
    now = [0.0]
    flow = flows.wait("job_1", 1.0, HERE, lambda: now[0])
    next(flow)
    with pytest.raises(DeadlineError):
        answer_for_ever(flow, reply(200, job("queued")), now)
    assert now[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("0.5", 0.5), ("-1", 0), ("Tue, 24 Nov 2026 12:00:09 GMT", 9), ("soon", None), ("", None)],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after(reply(503, retry_after=text), datetime(2026, 11, 24, 12, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "no"}', b'{"error": null}', b"null"])
def test_an_error_without_words_is_still_an_error(body: bytes) -> None:
    assert "400" in read_error(Reply(400, {}, body)).message
    assert type(read_error(Reply(400, {}, body))) is BadRequestError


@pytest.mark.parametrize("value", [None, [], {}, {"id": "x"}, {**job("dancing")}, {"id": "x", "status": []}])
def test_what_is_no_job_is_told(value: Any) -> None:
    with pytest.raises(ServerError, match="not a job"):
        read_job(value)


def test_events_that_came_before_are_left_out_and_a_new_one_resets_the_failures() -> None:
    cursor = Cursor("job_1", max_retries=1)
    queued, step = '{"job_id": "job_1", "position": 2}', '{"job_id": "job_1", "step": 1, "num_steps": 4}'
    assert cursor.read("job.queued", queued, "5", 40) == Queued("job_1", 2)
    assert cursor.read("job.queued", queued, "5", None) is None
    assert cursor.dropped("gone") == 0.04
    assert cursor.call().headers["Last-Event-ID"] == "5"
    assert cursor.read("job.step", step, "6", None) == Step("job_1", 0, 1, 4)
    assert cursor.dropped("silence", silent=True) == 0
    cursor.dropped("gone")
    with pytest.raises(UnreachableError):
        cursor.dropped("gone")
    with pytest.raises(ServerError, match="malformed"):
        cursor.read("job.step", "{", "7", None)


def test_names_survive_in_data_urls() -> None:
    url = picture_json(NamedFile("ein Apfel; 1,5.png", b"\x89PNG"))["image_url"]
    assert url == "data:image/png;name=ein%20Apfel%3B%201%2C5.png;base64,iVBORw=="
    assert picture_json({"file_id": "file-1"}) == {"file_id": "file-1"}


def test_sizes_are_read_before_they_are_sent() -> None:
    assert [size_text(size) for size in ("64x48", (64, 48), Size(64, 48), "auto")] == ["64x48"] * 3 + ["auto"]
    with pytest.raises(SizeError):
        size_text("large")


def test_every_job_has_a_key_of_its_own() -> None:
    keys = {submit_call("a fox").headers["Idempotency-Key"] for _ in range(50)}
    assert len(keys) == 50
