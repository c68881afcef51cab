"""The server, asked by the `openai` package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.conformance.pictures import bytes_of
from tests.server import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as connected:
        yield connected


def test_the_same_seed_gives_the_same_bytes(client: OpenAI) -> None:
    first, second = (client.images.generate(prompt="a red apple on a beach", extra_body={"seed": 7}) for _ in range(2))
    assert bytes_of(first) == bytes_of(second)
