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


def answering(*parts: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A service that reads a request's head, says `parts` one after the other, and ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    return serve


async def asked_of(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> httpx2.Response:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with server, httpx2.AsyncClient(transport=Connections()) as client:
            return await client.post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", content=b"picture")
    finally:
        await asyncio.sleep(0.05)  # the service comes to its end


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((), httpx2.RemoteProtocolError),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",), httpx2.ReadError),
        ((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",), httpx2.ReadError),
        ((b"HTTP/1.1 two hundred\r\n\r\n",), httpx2.RemoteProtocolError),
        ((b"220 ready\r\n",), httpx2.RemoteProtocolError),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_what_was_sent(parts: tuple[bytes, ...], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        asyncio.run(asked_of(answering(*parts)))
    assert not isinstance(raised.value, httpx2.ConnectError | httpx2.ConnectTimeout)


def test_an_answer_in_parts_is_whole_and_has_all_its_headers() -> None:
    head = b"HTTP/1.1 200 OK\r\nx-one: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nconnection: close\r\n\r\n"
    response = asyncio.run(asked_of(answering(head, b"pic", b"ture")))
    assert response.content == b"picture"
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_nobody_listening_is_a_failure_to_connect() -> None:
    async def ask() -> None:
        async with httpx2.AsyncClient(transport=Connections()) as client:
            await client.post("http://127.0.0.1:9/", content=b"picture")

    with pytest.raises(httpx2.ConnectError):
        asyncio.run(ask())


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///picture"])
def test_what_cannot_be_asked_was_never_sent(url: str) -> None:
    async def ask() -> None:
        async with Connections() as connections:
            await connections.handle_async_request(httpx2.Request("GET", url))

    with pytest.raises((httpx2.UnsupportedProtocol, httpx2.ConnectError)):
        asyncio.run(ask())


def test_a_form_with_files_arrives_as_it_was_given() -> None:
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert b"transfer-encoding" not in head
        bodies.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, httpx2.AsyncClient(transport=Connections()) as client:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            await client.post(
                url, data={"prompt": "a fox"}, files=[("image", ("a.png", b"\x89PNG" * 50_000, "image/png"))]
            )

    asyncio.run(ask())
    assert b"\x89PNG" * 50_000 in bodies[0]
    assert b"a fox" in bodies[0]
