"""Connections that know nothing of each other: kept, given back, and never shared by two requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from kleinbild.providers.connections import Connections


class Service:
    """Answers each request with the number of the connection that it came by; it says when it was asked, and waits."""

    def __init__(self) -> None:
        self.connections, self.waiting = 0, asyncio.Event()
        self.waiting.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = b"%d" % self.connections
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.waiting.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(number), number))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def run(scenario: Callable[[Service, httpx2.AsyncClient, str], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        service = Service()
        server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with server:
            async with httpx2.AsyncClient(transport=Connections()) as client:
                await scenario(service, client, url)
            await asyncio.sleep(0.05)  # the service's ends are closed, too

    asyncio.run(all_of_it())


def test_a_connection_is_used_again_and_never_by_two_at_once() -> None:
    async def scenario(service: Service, client: httpx2.AsyncClient, url: str) -> None:
        assert [(await client.get(url)).text for _ in range(3)] == ["1", "1", "1"]
        service.waiting.clear()
        asked = [asyncio.create_task(client.get(url)) for _ in range(3)]
        await asyncio.sleep(0.1)
        service.waiting.set()
        assert sorted([(await each).text for each in asked]) == ["1", "2", "3"]
        assert (await client.get(url)).text in {"1", "2", "3"}
        assert service.connections == 3

    run(scenario)


def test_who_gives_up_takes_his_connection_with_him_and_leaves_the_others() -> None:
    async def scenario(service: Service, client: httpx2.AsyncClient, url: str) -> None:
        service.waiting.clear()
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(url, timeout=0.05)
        service.waiting.set()
        assert (await client.get(url)).text == "2"

    run(scenario)
