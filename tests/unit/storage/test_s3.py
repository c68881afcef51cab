"""The blob store over S3, at a server that speaks it, told of by the environment alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import httpx2
import obstore
import pytest
from moto.server import ThreadedMotoServer

from kleinbild.storage.blobs import CHUNK, Blobs, MissingBlobError, key_of, open_blobs, store_at
from kleinbild.storage.database import Database, sqlite_url

pytestmark = pytest.mark.anyio

PNG = "image/png"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty one."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "anna",
        "AWS_SECRET_ACCESS_KEY": "hush",
    }.items():
        monkeypatch.setenv(name, value)
    httpx2.post(f"{endpoint}/moto-api/reset", trust_env=False).raise_for_status()
    httpx2.put(f"{endpoint}/pictures", trust_env=False).raise_for_status()
    return f"{endpoint}/pictures"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "kleinbild.db")


@pytest.fixture
def blobs(database: Database, bucket: str) -> Blobs:
    return open_blobs(database, "s3://pictures/of/ours")


def keys_in(bucket: str) -> list[str]:
    listing = httpx2.get(bucket, trust_env=False).text
    return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]


async def test_bytes_are_put_under_the_prefix_got_and_deleted(blobs: Blobs, bucket: str) -> None:
    sha256 = await blobs.put(b"pixels", PNG, 10)
    assert await blobs.put(b"pixels", PNG, None) == sha256
    assert keys_in(bucket) == [f"of/ours/{key_of(sha256)}"]
    assert await blobs.get(sha256) == b"pixels"
    assert await blobs.collect(20) == 0
    old = await blobs.put(b"old", PNG, 10)
    assert await blobs.collect(20) == 1
    assert keys_in(bucket) == [f"of/ours/{key_of(sha256)}"]
    with pytest.raises(MissingBlobError):
        await blobs.get(old)
    with pytest.raises(MissingBlobError):
        await blobs.stream(old)


async def test_a_file_of_several_parts_is_streamed_in_and_out(blobs: Blobs, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(48 * CHUNK + 5))  # more than one part of an upload
    sha256 = await blobs.put(path, "application/octet-stream", None)
    blob = await blobs.stream(sha256)
    assert b"".join([chunk async for chunk in blob.chunks]) == path.read_bytes()
    part = await blobs.stream(sha256, CHUNK - 1, CHUNK + 2)
    assert b"".join([chunk async for chunk in part.chunks]) == path.read_bytes()[CHUNK - 1 : CHUNK + 2]
    assert blob.num_bytes == path.stat().st_size


async def test_what_the_bucket_lost_is_missing_and_put_again(blobs: Blobs, bucket: str) -> None:
    sha256 = await blobs.put(b"pixels", PNG, None)
    await obstore.delete_async(store_at("s3://pictures"), f"of/ours/{key_of(sha256)}")
    assert keys_in(bucket) == []
    with pytest.raises(MissingBlobError):
        await blobs.stream(sha256)
    await blobs.put(b"pixels", PNG, None)
    assert await blobs.get(sha256) == b"pixels"
