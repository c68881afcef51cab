"""`AsyncClient` with the blocking client's surface, so that the same tests hold for both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from kleinbild.client.asynchronous import AsyncClient, AsyncJob


async def listed(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


class Blocking:
    def __init__(self, client: AsyncClient, portal: BlockingPortal) -> None:
        self._client, self._portal = client, portal

    def run(self, prompt: str, **options: Any) -> Any:
        return self._call(self._client.run, prompt, **options)

    def submit(self, prompt: str, **options: Any) -> BlockingJob:
        return BlockingJob(self._call(self._client.submit, prompt, **options), self._portal)

    def stream(self, prompt: str, **options: Any) -> list[Any]:
        return self._portal.call(listed, self._client.stream(prompt, **options))

    def job(self, job_id: str) -> BlockingJob:
        return BlockingJob(self._portal.call(self._client.job, job_id), self._portal)

    def jobs(self, **options: Any) -> list[BlockingJob]:
        return [BlockingJob(job, self._portal) for job in self._portal.call(listed, self._client.jobs(**options))]

    def models(self) -> Any:
        return self._portal.call(self._client.models)

    def close(self) -> None:
        self._portal.call(self._client.close)

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            return await function(*arguments, **options)

        return self._portal.call(call)


class BlockingJob:
    def __init__(self, job: AsyncJob, portal: BlockingPortal) -> None:
        self._job, self._portal = job, portal

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def state(self) -> Any:
        return self._job.state

    def status(self) -> str:
        return self._portal.call(self._job.status)

    def wait(self, timeout: float | None = None) -> BlockingJob:
        self._portal.call(self._job.wait, timeout)
        return self

    def cancel(self) -> str:
        return self._portal.call(self._job.cancel)

    def pictures(self, timeout: float | None = None) -> Any:
        return self._portal.call(self._job.pictures, timeout)

    def events(self) -> list[Any]:
        return self._portal.call(listed, self._job.events())


@contextmanager
def blocking(*arguments: Any, **options: Any) -> Iterator[Blocking]:
    with start_blocking_portal() as portal:

        async def opened() -> AsyncClient:
            return AsyncClient(*arguments, **options)

        client = Blocking(portal.call(opened), portal)
        try:
            yield client
        finally:
            client.close()
