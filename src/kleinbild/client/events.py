"""What happens to a job, as typed events, and the place in its stream that a reader has come to.

Queued → Started → Step, Preview, … → Completed | Failed | Cancelled
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from kleinbild.client.answers import JobState, read_error, read_job, retry_after
from kleinbild.client.calls import Call, Reply
from kleinbild.client.errors import Reason, ServerError, UnreachableError
from kleinbild.client.picture import RemotePicture
from kleinbild.client.retrying import LONGEST_RETRY_AFTER_S, TRANSIENT

MAX_EVENT_BYTES = 64 * 2**20
"""A preview is a picture."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting; `position` 0 is next."""

    job_id: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Started:
    job_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """Step `step` of `num_steps` of picture `image_index` is done."""

    job_id: str
    image_index: int
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """How picture `image_index` looks by now: an encoded picture."""

    job_id: str
    image_index: int
    file: bytes


@dataclass(frozen=True, slots=True)
class Completed:
    """`pictures` have been fetched."""

    job: JobState
    pictures: tuple[RemotePicture, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    job: JobState


@dataclass(frozen=True, slots=True)
class Cancelled:
    job: JobState


Ended = Completed | Failed | Cancelled
Event = Queued | Started | Step | Preview | Ended


def read_event(kind: str, data: Any) -> Event | None:
    """The event with `data`; None for one that a newer server may know."""
    if kind in ("job.queued", "job.waiting"):  # at first by the number of jobs, then by what the engine knows
        return Queued(data["job_id"], data.get("position"))
    if kind == "job.started":
        return Started(data["job_id"])
    if kind == "job.step":
        return Step(data["job_id"], data.get("image_index") or 0, data["step"], data["num_steps"])
    if kind == "job.preview":
        return Preview(data["job_id"], data.get("image_index") or 0, base64.b64decode(data["b64_json"]))
    ends = {"job.completed": Completed, "job.failed": Failed, "job.cancelled": Cancelled}
    return ends[kind](read_job(data["job"])) if kind in ends else None


class Cursor:
    """The place in a job's stream. Where a connection drops, the next one goes on behind the last event that came.

    A connection that brings an event makes up for those that failed before; `max_retries` in a row end it.
    """

    def __init__(self, job_id: str, max_retries: int) -> None:
        self.job_id = job_id
        self.is_done = False
        self._max_retries = max_retries
        self._last_id: str | None = None
        self._failures = 0
        self._retry_s: float | None = None

    def call(self) -> Call:
        """The call that opens the stream here."""
        resume = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        return Call("GET", f"/v1/jobs/{self.job_id}/events", headers={"Accept": "text/event-stream", **resume})

    def read(self, kind: str, data: str, event_id: str, retry_ms: int | None) -> Event | None:
        """The event, unless it came before or says nothing to us. Raises ServerError for a malformed one."""
        if retry_ms is not None:
            self._retry_s = min(retry_ms / 1000, 30.0)
        if not data:
            return None
        try:
            event = read_event(kind, json.loads(data))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ServerError(Reason(f"an event {kind!r} of {self.job_id} is malformed: {error!r}")) from error
        ends = isinstance(event, Ended)
        if self._came_before(event_id) and not ends:  # an end is never left out, or we would wait for ever
            return None
        self._last_id = event_id or self._last_id
        self._failures = 0
        self.is_done = ends
        return event

    def dropped(self, why: str, *, silent: bool = False) -> float:
        """The stream broke or ended early: seconds to wait before the next attempt. Raises UnreachableError in the end.

        `silent`: nothing came for a long time, which is no failure while the job waits in a long queue.
        """
        if silent:
            return 0.0
        self._failures += 1
        if self._failures > self._max_retries:
            raise UnreachableError(
                f"the events of {self.job_id} broke off {self._failures} times: {why}",
                "the job itself goes on; `client.job(id)` finds it again",
            )
        return self._backoff() if self._retry_s is None else self._retry_s

    def refused(self, reply: Reply) -> float:
        """The stream was not opened: seconds to wait before the next attempt. Raises what the answer says."""
        self._failures += 1
        if reply.status not in TRANSIENT or self._failures > self._max_retries:
            raise read_error(reply)
        said = retry_after(reply)
        return min(self._backoff() if said is None else said, LONGEST_RETRY_AFTER_S)

    def _backoff(self) -> float:
        return min(0.25 * 2.0**self._failures, 5.0)

    def _came_before(self, event_id: str) -> bool:
        last = self._last_id
        return last is not None and event_id.isdigit() and last.isdigit() and int(event_id) <= int(last)
