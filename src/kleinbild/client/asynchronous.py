"""`AsyncClient`: pictures from a server, in asyncio or trio. The twin of `sync`, with the same surface and words."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar, Unpack, overload

import anyio
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


class AsyncClient:
    """A Kleinbild server. Close it, or use it in an `async with`; tasks may share it.

        async with kleinbild.AsyncClient() as client:
            (await client.run("a red apple on a beach")).save("apple.png")

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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = settle(base_url, api_key, timeout, max_retries)
        self._connection = AsyncConnection(self.settings, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    @overload
    async def run(
        self, prompt: str, *, n: None = None, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> RemotePicture: ...

    @overload
    async def run(
        self, prompt: str, *, n: int, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> list[RemotePicture]: ...

    async def run(
        self, prompt: str, *, n: int | None = None, timeout: float | None = None, **options: Unpack[PictureOptions]
    ) -> RemotePicture | list[RemotePicture]:
        """The picture of `prompt`; with `n`, the list of so many, be it one. `options` are `PictureOptions`.

        With `images` the picture starts from these. Whoever stops waiting, by being cancelled or after `timeout` seconds
        (DeadlineError), takes the job back. Raises `KleinbildError` in one of its kinds (`kleinbild.client.errors`).
        """
        job = await self.submit(prompt, n=n, **options)
        async with self._connection.taken_back(job.id):
            await job.wait(timeout)
        made = await self._connection.drive(flows.pictures(job.state, self.settings))
        return made[0] if n is None else made

    async def submit(self, prompt: str, *, n: int | None = None, **options: Unpack[PictureOptions]) -> AsyncJob:
        """The same as a job, at once. It runs whether or not anybody waits."""
        return AsyncJob(self._connection, await self._connection.drive(flows.submit(prompt, n, options, self.settings)))

    async def stream(
        self, prompt: str, *, n: int | None = None, **options: Unpack[PictureOptions]
    ) -> AsyncIterator[Event]:
        """The same as events, of which the last is `Completed`, with the pictures. Raises what `run` does.

        Whoever breaks off the loop, by closing it (`contextlib.aclosing`) or by being cancelled, takes the job back.
        """
        job = await self.submit(prompt, n=n, **options)
        end: Ended | None = None
        async with self._connection.taken_back(job.id):
            async for event in job.events():
                if isinstance(event, Ended):
                    end = event
                else:
                    yield event
        assert end is not None  # every stream of events ends with one, or raises
        end.job.require_completed()
        yield end

    async def job(self, job_id: str) -> AsyncJob:
        """The job of that id. Raises NotFoundError if there is none, or it is another project's."""
        return AsyncJob(self._connection, await self._connection.drive(flows.job(job_id, self.settings)))

    async def jobs(self, *, status: JobStatus | None = None) -> AsyncIterator[AsyncJob]:
        """All jobs, or those with `status`, newest first; asked for in pages as they are needed."""
        states, after = await self._connection.drive(flows.page_of_jobs(self.settings, status, None))
        while True:
            for state in states:
                yield AsyncJob(self._connection, state)
            if after is None:
                return
            states, after = await self._connection.drive(flows.page_of_jobs(self.settings, status, after))

    async def models(self) -> list[ModelInfo]:
        """What the server has."""
        return await self._connection.drive(flows.models(self.settings))


@dataclass(slots=True)
class AsyncJob:
    """A job on the server. `state` is what was last heard of it."""

    connection: AsyncConnection = field(repr=False)
    state: JobState

    @property
    def id(self) -> str:
        return self.state.id

    async def status(self) -> JobStatus:
        """Asks: queued, running, completed, failed or cancelled. The rest is in `state` then."""
        self.state = await self.connection.drive(flows.job(self.id, self.connection.settings))
        return self.state.status

    async def wait(self, timeout: float | None = None) -> Self:
        """Waits until it has ended, however. Raises DeadlineError after `timeout` seconds; it goes on then."""
        self.state = await self.connection.drive(flows.wait(self.id, timeout, self.connection.settings, time.monotonic))
        return self

    async def cancel(self) -> JobStatus:
        """Takes it back, unless it has ended; what it is now."""
        self.state = await self.connection.drive(flows.cancel(self.id, self.connection.settings))
        return self.state.status

    def events(self) -> AsyncIterator[Event]:
        """What happens to it, from its beginning to its end. A connection that drops is resumed."""
        return self.connection.events(self.id)

    async def pictures(self, timeout: float | None = None) -> list[RemotePicture]:
        """Its pictures; waits for them. Raises what it ended with, if that is not pictures."""
        return await self.connection.drive(flows.pictures((await self.wait(timeout)).state, self.connection.settings))


class AsyncConnection:
    """The HTTP connections to one server: drives flows, and reads events."""

    def __init__(self, settings: Settings, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.settings = settings
        self._http = httpx2.AsyncClient(**client_arguments(settings), transport=transport)

    async def close(self) -> None:
        await self._http.aclose()

    async def drive(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await anyio.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    reply = await self._send(step)
                except UnreachableError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _send(self, call: Call) -> Reply:
        try:
            response = await self._http.request(**call_arguments(call, self.settings))
        except httpx2.RequestError as error:
            raise unreachable(error, self.settings) from error
        return reply_of(response.status_code, response.headers, response.content)

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        cursor = Cursor(job_id, self.settings.max_retries)
        while not cursor.is_done:
            try:
                async with aclosing(self._events_of_one_connection(cursor)) as events:
                    async for event in events:
                        yield event
            except httpx2.RequestError as error:
                await anyio.sleep(cursor.dropped(str(error), silent=isinstance(error, httpx2.ReadTimeout)))

    async def _events_of_one_connection(self, cursor: Cursor) -> AsyncGenerator[Event]:
        arguments = call_arguments(cursor.call(), self.settings)
        async with self._http.sse(**arguments, max_event_size=MAX_EVENT_BYTES) as source:
            response = source.response
            if response.status_code != 200:
                pause = cursor.refused(reply_of(response.status_code, response.headers, await response.aread()))
                await anyio.sleep(pause)
                return
            async for message in source:
                event = cursor.read(message.event, message.data, message.id, message.retry)
                if event is not None:
                    yield (await self._with_pictures(event)) if isinstance(event, Completed) else event
                if cursor.is_done:
                    return
        raise httpx2.RemoteProtocolError("it ended before the job did")

    async def _with_pictures(self, event: Completed) -> Completed:
        state = await self.drive(flows.job(event.job.id, self.settings))  # asked for anew: signed URLs age
        return replace(event, job=state, pictures=tuple(await self.drive(flows.pictures(state, self.settings))))

    @asynccontextmanager
    async def taken_back(self, job_id: str) -> AsyncIterator[None]:
        """Cancels the job if the block ends before it does."""
        try:
            yield
        except BaseException:  # a task that is cancelled and a loop that was left, too
            with anyio.CancelScope(shield=True):  # it is short, and has its own bound
                await self.drive(flows.take_back(job_id))
            raise
