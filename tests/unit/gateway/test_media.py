"""Signed URLs: good as they were given, until they expire, and for nothing else."""

from __future__ import annotations

import time

import pytest

from kleinbild.gateway.api.media import Media
from tests.unit.gateway.server import Server

pytestmark = pytest.mark.anyio
PIXELS = b"0123456789"


async def url_of(server: Server, data: bytes = PIXELS) -> str:
    return server.media.url(await server.blobs.put(data, "image/png", None), "png", "http://localhost")


async def test_a_picture_is_served_without_a_key(server: Server) -> None:
    answer = await server.client.get(await url_of(server))
    assert (answer.status_code, answer.content) == (200, PIXELS)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith('inline; filename="')
    assert answer.headers["cache-control"].startswith("private, max-age=")
    assert int(answer.headers["content-length"]) == 10


async def test_only_the_host_of_a_url_may_differ(server: Server) -> None:
    url = await url_of(server)
    path = url.removeprefix("http://localhost")
    assert (await server.client.get(path, headers={"Host": "elsewhere.example"})).status_code == 200
    other = await server.blobs.put(b"other", "image/png", None)
    sha256 = path.split("/")[-1].split(".")[0]
    expires = path.split("exp=")[1].split("&")[0]
    for wrong in (
        path.replace(sha256, other),
        path.replace(".png", ".webp"),
        path.replace(expires, str(int(expires) + 1)),
        path.replace(expires, "٣" + expires[1:]),
        path[:-1],
        path + "A",
        path.split("&sig")[0],
        path.split("?")[0],
    ):
        answer = await server.client.get(wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_signature")


async def test_an_expired_url_is_refused(server: Server) -> None:
    server.media.seconds = -1
    answer = await server.client.get(await url_of(server))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "url_expired")


async def test_a_picture_past_its_retention_is_not_found(server: Server) -> None:
    sha256 = await server.blobs.put(PIXELS, "image/png", 1.0)
    url = server.media.url(sha256, "png", "http://localhost")
    await server.blobs.collect(time.time())
    answer = await server.client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_picture_that_the_client_has_is_not_sent_again(server: Server) -> None:
    url = await url_of(server)
    tag = (await server.client.get(url)).headers["etag"]
    answer = await server.client.get(url, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_head_tells_without_sending(server: Server) -> None:
    answer = await server.client.head(await url_of(server))
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "10")
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, PIXELS, None),
        ("pages=1-2", 200, PIXELS, None),
    ],
)
async def test_a_range_is_served(server: Server, asked: str, status: int, content: bytes, told: str | None) -> None:
    answer = await server.client.get(await url_of(server), headers={"Range": asked})
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, told)


def test_a_url_stands_below_the_servers_own() -> None:
    assert (
        Media(b"s" * 32, 60)
        .url("ab", "webp", "https://x.example/pictures")
        .startswith("https://x.example/pictures/v1/media/ab.webp?exp=")
    )
