"""What the client does, without doing it: each flow yields calls to send and pauses to make, and returns a value.

The two clients drive them: a reply is sent into the flow, a failed connection is thrown as UnreachableError. So what to
send, when again and what it means is written once, and tested without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import TypeVar

from kleinbild.client.answers import (
    JobState,
    ModelInfo,
    picture_urls,
    read_error,
    read_file_id,
    read_job,
    read_jobs,
    read_json,
    read_models,
    read_picture,
)
from kleinbild.client.asking import NamedFile, PictureOptions, as_list, open_given, submit_call, upload_call
from kleinbild.client.calls import Call, Pause, Reply
from kleinbild.client.errors import UnreachableError
from kleinbild.client.picture import RemotePicture
from kleinbild.client.retrying import Retrying
from kleinbild.client.settings import Settings
from kleinbild.core.errors import DeadlineError, KleinbildError

T = TypeVar("T")
Flow = Generator[Call | Pause, Reply | None, T]

LARGE_BYTES = 12 * 2**20
"""Of all pictures of a request. OpenAI's API takes about 15 MB as a data URL, and base64 is held whole, here and there."""
TAKE_BACK_S = 2.0
LEAST_POLL_S, MOST_POLL_S = 0.02, 2.0
POLL_SHARE = 0.1
"""The next look at a job comes after this share of the time since the first: it is seen at most so much too late."""


def exchange(call: Call, settings: Settings) -> Flow[Reply]:
    """The answer to `call`, which is sent again where that helps. Raises what is wrong with it."""
    retrying = Retrying(settings.max_retries)
    while True:
        try:
            reply = yield call
        except UnreachableError:
            pause = retrying.after_failure()
            if pause is None:
                raise
        else:
            assert reply is not None
            if reply.status < 300:
                return reply
            error = read_error(reply)
            pause = retrying.after(reply, error.code)
            if pause is None:
                raise error
        yield Pause(pause)


def submit(prompt: str, n: int | None, options: PictureOptions, settings: Settings) -> Flow[JobState]:
    """A new job. Pictures too large for JSON are sent before it, by themselves."""
    images = [open_given(one) for one in as_list(options.get("images") or ())]
    given = options.get("mask")
    mask = None if given is None else open_given(given)
    if sum(len(one.bytes) for one in (*images, mask) if isinstance(one, NamedFile)) > LARGE_BYTES:
        for index, image in enumerate(images):
            images[index] = yield from _elsewhere(image, settings)
        mask = None if mask is None else (yield from _elsewhere(mask, settings))
    opened: PictureOptions = {**options, "images": images, "mask": mask}
    return read_job(read_json((yield from exchange(submit_call(prompt, n=n, **opened), settings))))


def _elsewhere(given: NamedFile | Mapping[str, str], settings: Settings) -> Flow[Mapping[str, str]]:
    """A picture given by its id on the server, which has it now."""
    if not isinstance(given, NamedFile):
        return given
    return {"file_id": read_file_id(read_json((yield from exchange(upload_call(given), settings))))}


def job(job_id: str, settings: Settings) -> Flow[JobState]:
    return read_job(read_json((yield from exchange(Call("GET", f"/v1/jobs/{job_id}"), settings))))


def cancel(job_id: str, settings: Settings) -> Flow[JobState]:
    return read_job(read_json((yield from exchange(cancel_call(job_id), settings))))


def cancel_call(job_id: str, timeout: float | None = None) -> Call:
    return Call("POST", f"/v1/jobs/{job_id}/cancel", timeout=timeout)


def take_back(job_id: str) -> Flow[None]:
    """Cancels a job that nobody waits for any more: once, quickly, and whether or not that works."""
    with suppress(KleinbildError):
        yield cancel_call(job_id, TAKE_BACK_S)


def page_of_jobs(
    settings: Settings, status: str | None, after: str | None
) -> Flow[tuple[list[JobState], str | None]]:  # fmt: skip
    """Some jobs, newest first, and the id after which the next page begins."""
    params = {name: value for name, value in (("status", status), ("after", after)) if value}
    return read_jobs(read_json((yield from exchange(Call("GET", "/v1/jobs", params=params), settings))))


def models(settings: Settings) -> Flow[list[ModelInfo]]:
    return read_models(read_json((yield from exchange(Call("GET", "/v1/models"), settings))))


def wait(job_id: str, timeout: float | None, settings: Settings, clock: Callable[[], float]) -> Flow[JobState]:
    """The job when it has ended, however. Raises DeadlineError after `timeout` seconds; the job goes on then."""
    begun = clock()
    while not (state := (yield from job(job_id, settings))).is_final:
        waited = clock() - begun
        if timeout is not None and waited >= timeout:
            raise DeadlineError(
                f"{job_id} is {state.status} after {timeout:g} s", "wait longer, or cancel it; it goes on meanwhile"
            )
        pause = min(max(waited * POLL_SHARE, LEAST_POLL_S), MOST_POLL_S)
        yield Pause(pause if timeout is None else min(pause, timeout - waited))
    return state


def pictures(state: JobState, settings: Settings) -> Flow[list[RemotePicture]]:
    """The pictures of a job that has ended. Raises what it ended with, if that is not pictures."""
    state.require_completed()
    made = []
    for index, url in enumerate(picture_urls(state)):
        own = url.startswith("/") or settings.is_ours(url)  # a signed URL may lead to a store of somebody else
        reply = yield from exchange(Call("GET", url, headers={"Accept": "image/*"}, with_key=own), settings)
        made.append(read_picture(state, index, url, reply.body))
    return made
