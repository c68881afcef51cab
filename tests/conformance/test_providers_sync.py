"""Providers that answer in the request, against mocks made of the services' own descriptions: what is asked fits them, and
every answer and every error that they describe is understood."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

from kleinbild.core.jobs import ImageWork
from kleinbild.core.prices import BilledTokens
from kleinbild.core.sizes import Size
from kleinbild.providers.base import Inputs
from kleinbild.providers.hosted import Answer, Call, Hosted, ProviderError
from kleinbild.providers.openai import OpenAI
from kleinbild.providers.stability import Stability
from kleinbild.providers.together import Together
from tests.conformance.mocks import DESCRIPTIONS, Preferring, mocks
from tests.unit.providers.pictures import picture

Result = TypeVar("Result")
Outcome = tuple[str, str, bool | None]

PATHS = {
    "openai": "openai/openapi.images-files-batches.with-errors.json",
    "together": "together/openapi.images-files-batches-rerank.with-errors.json",
    "stability": "stability/stable-image.openapi.json",
}
OPERATIONS = {
    "openai": "/v1/images/generations",
    "together": "/v1/images/generations",
    "stability": "/v2beta/stable-image/generate/sd3",
}
KINDS: dict[str, Callable[..., Hosted]] = {"openai": OpenAI, "together": Together, "stability": Stability}
BELOW = {"openai": "/v1", "together": "/v1", "stability": ""}
MODELS = {"openai": "gpt-image-1.5", "together": "black-forest-labs/FLUX.2-dev", "stability": "sd3.5-medium"}

INVALID, CREDENTIALS, CREDIT = (
    ("invalid", "refused", False),
    ("credentials", "refused", False),
    ("credit", "refused", False),
)
MODERATED, NOT_FOUND = ("moderated", "refused", False), ("not_found", "refused", False)
LIMITED, OVERLOADED, UNSURE = (
    ("rate_limited", "refused", False),
    ("overloaded", "refused", False),
    ("overloaded", "unknown", None),
)
MEANINGS: Mapping[str, Mapping[tuple[int, str | None], Outcome]] = {
    "openai": {
        (400, "invalid_request"): INVALID,
        (400, "moderation_blocked"): MODERATED,
        (400, "billing_hard_limit_reached"): CREDIT,
        (401, "default"): CREDENTIALS,
        (403, "default"): NOT_FOUND,
        (404, "default"): NOT_FOUND,
        (429, "rate_limit_exceeded"): LIMITED,
        (429, "insufficient_quota"): CREDIT,
        (500, "default"): UNSURE,
        (503, "default"): OVERLOADED,
    },
    "together": {
        (400, "default"): INVALID,
        (401, "default"): CREDENTIALS,
        (402, "default"): CREDIT,
        (404, "default"): NOT_FOUND,
        (429, "default"): LIMITED,
        (500, "default"): UNSURE,
        (503, "default"): OVERLOADED,
    },
    "stability": {
        (400, None): INVALID,
        (401, None): CREDENTIALS,
        (402, None): CREDIT,
        (403, None): MODERATED,
        (413, None): INVALID,
        (422, None): INVALID,
        (429, None): LIMITED,
        (500, None): OVERLOADED,
    },
}
CASES = [(name, *case) for name, cases in MEANINGS.items() for case in cases]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with mocks(PATHS, tmp_path_factory.mktemp("prism")) as running:
        yield {name: f"{url}{BELOW[name]}" for name, url in running.items()}


def used(name: str, url: str, do: Callable[[Hosted], Awaitable[Result]], wish: Preferring | None = None) -> Result:
    async def run() -> Result:
        provider = KINDS[name]("sk-unused", base_url=url, transport=wish)
        try:
            return await do(provider)
        finally:
            await provider.close()

    return asyncio.run(run())


def call(name: str, references: tuple[bytes, ...] = (), mask: bytes | None = None, **changed: Any) -> Call:
    task = "image.edit" if references else "image.generate"
    settled: dict[str, Any] = {"task": task, "prompt": "a zeppelin", "model": "any", "seed": 41, **changed}
    return Call("att_1", MODELS[name], ImageWork(**settled), Inputs(references, mask))


def started(name: str, url: str, asked: Call, wish: Preferring | None = None) -> Answer:
    answer = used(name, url, lambda provider: provider.start(asked), wish)
    assert isinstance(answer, Answer)
    return answer


def responses(name: str) -> dict[str, Any]:
    described = json.loads((DESCRIPTIONS / PATHS[name]).read_text())
    found: dict[str, Any] = described["paths"][OPERATIONS[name]]["post"]["responses"]
    for status, response in found.items():
        if "$ref" in response:
            found[status] = described["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_comes_of_what_is_described(urls: dict[str, str], name: str) -> None:
    asked = call(name, size=Size(1024, 1024), output_format="jpeg")
    answer = started(name, urls[name], asked)
    assert answer.pictures[0].file.startswith(b"\x89PNG")  # the description's own example
    assert answer.notes == ("the service made 1x1, not 1024x1024",)
    expected = {"openai": None, "together": 41, "stability": 343940597}
    assert answer.pictures[0].seed == expected[name]


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_is_asked_for_as_described(urls: dict[str, str], name: str) -> None:
    file = picture(size=(64, 64))
    assert len(started(name, urls[name], call(name, (file,))).pictures) == 1


def test_a_mask_and_several_pictures_are_asked_for_as_described(urls: dict[str, str]) -> None:
    files = (picture(size=(64, 64)), picture("JPEG", size=(64, 64)))
    asked = call("openai", files, picture(size=(64, 64), mode="RGBA"), quality="low", num_previews=2)
    answer = started("openai", urls["openai"], asked)
    assert answer.tokens == BilledTokens(input_text=10, output_image=196)


def test_everything_that_openais_models_take_is_as_described(urls: dict[str, str]) -> None:
    asked = call(
        "openai",
        quality="high",
        background="transparent",
        output_format="webp",
        compression=70,
        num_previews=3,
        moderation="low",
        size=Size(1536, 1024),
    )
    assert len(started("openai", urls["openai"], asked).pictures) == 1


@pytest.mark.parametrize("moderation", ["auto", "low"], ids=["form", "json"])
def test_how_pictures_are_to_be_looked_at_is_asked_for_as_described(urls: dict[str, str], moderation: str) -> None:
    file, mask = picture(size=(64, 64)), picture(size=(64, 64), mode="RGBA")
    asked = call("openai", (file,), mask, input_fidelity="high", moderation=moderation)
    assert len(started("openai", urls["openai"], asked).pictures) == 1


def test_how_far_an_edit_may_go_is_asked_for_as_described(urls: dict[str, str]) -> None:
    asked = call("stability", (picture(size=(64, 64)),), strength=0.25)
    assert len(started("stability", urls["stability"], asked).pictures) == 1


@pytest.mark.parametrize(("name", "wrong"), [("openai", {"quality": "bogus"}), ("stability", {"guidance": 99.0})])
def test_the_mock_refuses_what_is_not_described(urls: dict[str, str], name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ProviderError) as caught:
        started(name, urls[name], call(name, **wrong))
    assert caught.value.cause == "invalid"


@pytest.mark.parametrize("name", KINDS)
def test_a_probe_asks_what_is_described(urls: dict[str, str], name: str) -> None:
    used(name, urls[name], lambda provider: provider.probe())


@pytest.mark.parametrize(("name", "status", "example"), CASES)
def test_each_error_described_is_understood(urls: dict[str, str], name: str, status: int, example: str | None) -> None:
    with pytest.raises(ProviderError) as caught:
        started(name, urls[name], call(name), Preferring(status, example))
    error = caught.value
    assert error.status == status
    assert (error.cause, error.acceptance, error.billed) == MEANINGS[name][status, example]
    assert error.detail  # the service's words were found


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("urls")
def test_no_error_described_is_left_out(name: str) -> None:
    described = {
        (int(status), example)
        for status, response in responses(name).items()
        if int(status) >= 400
        for example in response["content"]["application/json"].get("examples", [None])
    }
    assert described == MEANINGS[name].keys()
