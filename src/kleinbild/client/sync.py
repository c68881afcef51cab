"""`Client`: pictures from a server, in plain blocking Python."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar, Unpack, overload

import httpx2

from kleinbild.client import flows
from kleinbild.client.answers import JobState, ModelInfo
from kleinbild.client.asking import PictureOptions
from kleinbild.client.calls import Call, Pause, Reply
from kleinbild.client.connection import call_arguments, client_arguments, reply_of, unreachable
from kleinbild.client.errors import UnreachableError
from kleinbild.client.events import MAX_EVENT_BYTES, Completed, Cursor, Ended, Event
from kleinbild.client.flows import Flow
from kleinbild.client.picture import RemotePicture
from kleinbild.client.settings import DEFAULT_TIMEOUT, Settings, settle
from kleinbild.core.jobs import JobStatus

T = TypeVar("T")


class Client:
    """A Kleinbild server. Close it, or use it in a `with`; threads may share it.

        with kleinbild.Client() as client:
            client.run("a red apple on a beach").save("apple.png")

    `base_url` is by default $KLEINBILD_BASE_URL, else http://127.0.0.1:8190, `api_key` $KLEINBILD_API_KEY. `timeout`:
    seconds that the server may be silent. Calls are repeated `max_retries` times where that is safe: a connection that
    failed, 429 and 503 (after the time that they say); idempotency keys see to it that no picture is made twice.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.settings = settle(base_url, api_key, timeout, max_retries)
        self._connection = Connection(self.settings, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @overload
    def run(
        self, prompt: str, *, n: None = None, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> RemotePicture: ...

    @overload
    def run(
        self, prompt: str, *, n: int, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> list[RemotePicture]: ...

    def run(
        self, prompt: str, *, n: int | None = None, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> RemotePicture | list[RemotePicture]:
        """The picture of `prompt`; with `n`, the list of so many, be it one. `options` are `PictureOptions`.

        With `images` the picture starts from these. Whoever stops waiting, by Ctrl-C or after `timeout` seconds
        (DeadlineError), takes the job back. Raises `KleinbildError` in one of its kinds (`kleinbild.client.errors`).
        """
        job = self.submit(prompt, n=n, **options)
        with self._connection.taken_back(job.id):
            job.wait(timeout)
        made = self._connection.drive(flows.pictures(job.state, self.settings))
        return made[0] if n is None else made

    def submit(self, prompt: str, *, n: int | None = None, **options: Unpack[PictureOptions]) -> Job:
        """The same as a job, at once. It runs whether or not anybody waits."""
        return Job(self._connection, self._connection.drive(flows.submit(prompt, n, options, self.settings)))

    def stream(self, prompt: str, *, n: int | None = None, **options: Unpack[PictureOptions]) -> Generator[Event]:
        """The same as events, of which the last is `Completed`, with the pictures. Raises what `run` does.

        Whoever breaks off the loop takes the job back.
        """
        job = self.submit(prompt, n=n, **options)
        end: Ended | None = None
        with self._connection.taken_back(job.id):
            for event in job.events():
                if isinstance(event, Ended):
                    end = event
                else:
                    yield event
        assert end is not None  # every stream of events ends with one, or raises
        end.job.require_completed()
        yield end

    def job(self, job_id: str) -> Job:
        """The job of that id. Raises NotFoundError if there is none, or it is another project's."""
        return Job(self._connection, self._connection.drive(flows.job(job_id, self.settings)))

    def jobs(self, *, status: JobStatus | None = None) -> Iterator[Job]:
        """All jobs, or those with `status`, newest first; asked for in pages as they are needed."""
        states, after = self._connection.drive(flows.page_of_jobs(self.settings, status, None))
        while True:
            yield from (Job(self._connection, state) for state in states)
            if after is None:
                return
            states, after = self._connection.drive(flows.page_of_jobs(self.settings, status, after))

    def models(self) -> list[ModelInfo]:
        """What the server has."""
        return self._connection.drive(flows.models(self.settings))


@dataclass(slots=True)
class Job:
    """A job on the server. `state` is what was last heard of it."""

    connection: Connection = field(repr=False)
    state: JobState

    @property
    def id(self) -> str:
        return self.state.id

    def status(self) -> JobStatus:
        """Asks: queued, running, completed, failed or cancelled. The rest is in `state` then."""
        self.state = self.connection.drive(flows.job(self.id, self.connection.settings))
        return self.state.status

    def wait(self, timeout: float | None = None) -> Self:
        """Waits until it has ended, however. Raises DeadlineError after `timeout` seconds; it goes on then."""
        self.state = self.connection.drive(flows.wait(self.id, timeout, self.connection.settings, time.monotonic))
        return self

    def cancel(self) -> JobStatus:
        """Takes it back, unless it has ended; what it is now."""
        self.state = self.connection.drive(flows.cancel(self.id, self.connection.settings))
        return self.state.status

    def events(self) -> Iterator[Event]:
        """What happens to it, from its beginning to its end. A connection that drops is resumed."""
        return self.connection.events(self.id)

    def pictures(self, timeout: float | None = None) -> list[RemotePicture]:
        """Its pictures; waits for them. Raises what it ended with, if that is not pictures."""
        return self.connection.drive(flows.pictures(self.wait(timeout).state, self.connection.settings))


class Connection:
    """The HTTP connections to one server: drives flows, and reads events."""

    def __init__(self, settings: Settings, transport: httpx2.BaseTransport | None = None) -> None:
        self.settings = settings
        self._http = httpx2.Client(**client_arguments(settings), transport=transport)

    def close(self) -> None:
        self._http.close()

    def drive(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    reply = self._send(step)
                except UnreachableError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value

    def _send(self, call: Call) -> Reply:
        try:
            response = self._http.request(**call_arguments(call, self.settings))
        except httpx2.RequestError as error:
            raise unreachable(error, self.settings) from error
        return reply_of(response.status_code, response.headers, response.content)

    def events(self, job_id: str) -> Iterator[Event]:
        cursor = Cursor(job_id, self.settings.max_retries)
        while not cursor.is_done:
            try:
                yield from self._events_of_one_connection(cursor)
            except httpx2.RequestError as error:
                time.sleep(cursor.dropped(str(error), silent=isinstance(error, httpx2.ReadTimeout)))

    def _events_of_one_connection(self, cursor: Cursor) -> Iterator[Event]:
        arguments = call_arguments(cursor.call(), self.settings)
        with self._http.sse(**arguments, max_event_size=MAX_EVENT_BYTES) as source:
            response = source.response
            if response.status_code != 200:
                pause = cursor.refused(reply_of(response.status_code, response.headers, response.read()))
                time.sleep(pause)
                return
            for message in source:
                event = cursor.read(message.event, message.data, message.id, message.retry)
                if event is not None:
                    yield self._with_pictures(event) if isinstance(event, Completed) else event
                if cursor.is_done:
                    return
        raise httpx2.RemoteProtocolError("it ended before the job did")

    def _with_pictures(self, event: Completed) -> Completed:
        state = self.drive(flows.job(event.job.id, self.settings))  # asked for anew: signed URLs age
        return replace(event, job=state, pictures=tuple(self.drive(flows.pictures(state, self.settings))))

    @contextmanager
    def taken_back(self, job_id: str) -> Iterator[None]:
        """Cancels the job if the block ends before it does."""
        try:
            yield
        except BaseException:  # Ctrl-C and a loop that was left, too
            self.drive(flows.take_back(job_id))
            raise
