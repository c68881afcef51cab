"""Providers that take work on, against mocks made of the services' own descriptions: what is asked fits them, and every
answer and every error that they describe is understood.

A mock has no memory: each poll gets the same answer. The addresses in its answers are the real services', so that here all
of a service's hosts lead to its mock, and those that deliver pictures to one picture.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx2
import pytest

from kleinbild.core.jobs import ImageWork
from kleinbild.core.sizes import Size
from kleinbild.providers.base import Inputs
from kleinbild.providers.bfl import BlackForestLabs
from kleinbild.providers.fal import Fal
from kleinbild.providers.hosted import Accepted, Answer, Call, Hosted, ProviderError
from kleinbild.providers.replicate import Replicate
from kleinbild.safety.fetch import Fetcher
from tests.conformance.mocks import DESCRIPTIONS, mocks
from tests.unit.providers.pictures import noise, picture
from tests.unit.providers.service import Whole
from tests.unit.providers.taking_on import Time

Result = TypeVar("Result")
Outcome = tuple[str, str, bool | None]

PATHS = {
    "bfl": "bfl/openapi.flux2-with-errors.json",
    "replicate": "replicate/openapi.klein-with-errors.json",
    "fal": "fal/queue.flux-2-klein-4b.openapi.json",
}
KINDS: dict[str, Callable[..., Hosted]] = {"bfl": BlackForestLabs, "replicate": Replicate, "fal": Fal}
MODELS = {
    "bfl": "flux-2-klein-4b",
    "replicate": "black-forest-labs/flux-2-klein-4b",
    "fal": "fal-ai/flux-2/klein/4b",
}
REPLICATE, FAL = "https://api.replicate.com/v1/predictions/p1", "https://queue.fal.run/fal-ai/flux-2/requests/r1"
HANDLES: Mapping[str, dict[str, Any]] = {
    "bfl": {"id": "task-1", "polling_url": "https://api.eu2.bfl.ai/v1/get_result?id=task-1", "charged": "0.014"},
    "replicate": {"id": "p1", "get": REPLICATE, "cancel": f"{REPLICATE}/cancel"},
    "fal": {
        "id": "r1",
        "app": "fal-ai/flux-2",
        "status_url": f"{FAL}/status",
        "response_url": FAL,
        "cancel_url": f"{FAL}/cancel",
    },
}
DELIVERING = ("delivery-eu1.bfl.ai", "replicate.delivery", "v3.fal.media")
PICTURE = picture()

SUBMISSIONS = {
    "bfl": "/v1/flux-2-klein-4b",
    "replicate": "/v1/models/black-forest-labs/flux-2-klein-4b/predictions",
    "fal": "/fal-ai/flux-2/klein/4b",
}
REFUSED: Mapping[int, Outcome] = {
    400: ("invalid", "refused", False),
    401: ("credentials", "refused", False),
    402: ("credit", "refused", False),
    403: ("credentials", "refused", False),
    404: ("not_found", "refused", False),
    422: ("invalid", "refused", False),
    429: ("rate_limited", "refused", False),
    500: ("overloaded", "unknown", None),
    503: ("overloaded", "refused", False),
}
POLLS = {
    "bfl": "/v1/get_result",
    "replicate": "/v1/predictions/{prediction_id}",
    "fal": "/fal-ai/flux-2/requests/{request_id}/status",
}
WAITED: Outcome = ("timeout", "accepted", None)
UNREADABLE: Outcome = ("bad_answer", "accepted", None)
POLLED: Mapping[int, Outcome] = {
    400: UNREADABLE,
    401: ("credentials", "accepted", None),
    402: UNREADABLE,
    403: ("credentials", "accepted", None),
    404: ("not_found", "unknown", None),
    422: UNREADABLE,
    429: WAITED,
    500: WAITED,
    503: WAITED,
}
BROKEN: Outcome = ("overloaded", "refused", False)
RESULTS: Mapping[int, Outcome] = {  # of fal, where the work's own end is an answer
    401: POLLED[401],
    404: POLLED[404],
    422: ("invalid", "accepted", None),
    429: WAITED,
    500: BROKEN,
    503: BROKEN,
    504: ("timeout", "refused", False),
}
TASKS: Mapping[str, Outcome] = {
    "pending": WAITED,
    "request_moderated": ("moderated", "refused", False),
    "content_moderated": ("moderated", "refused", False),
    "not_found": ("not_found", "unknown", None),
    "error": ("failed", "accepted", None),
}
CANCELS = {
    "replicate": "/v1/predictions/{prediction_id}/cancel",
    "fal": "/fal-ai/flux-2/requests/{request_id}/cancel",
}


class Rerouted(httpx2.AsyncBaseTransport):
    """Leads to the mock at `url`, and asks it for `answers` by the end of a path: an answer's status, and its example."""

    def __init__(self, url: str, answers: Mapping[str, tuple[int, str | None]]) -> None:
        self.url, self.answers = httpx2.URL(url), answers
        self.transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.headers["host"] in DELIVERING:
            return httpx2.Response(200, stream=Whole(PICTURE))
        body = await request.aread()
        url = request.url.copy_with(scheme="http", host=self.url.host, port=self.url.port)
        for end, (status, example) in self.answers.items():
            if request.url.path.endswith(end):
                wish = {"__code": str(status)} | ({"__example": example} if example else {})
                url = url.copy_merge_params(wish)
        headers = [(name, value) for name, value in request.headers.multi_items() if name != "host"]
        sent = httpx2.Request(request.method, url, headers=headers, content=body, extensions=request.extensions)
        answer = await self.transport.handle_async_request(sent)
        assert "sl-violations" not in answer.headers, answer.headers["sl-violations"]
        return answer

    async def aclose(self) -> None:
        await self.transport.aclose()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with mocks(PATHS, tmp_path_factory.mktemp("mocks")) as started:
        yield started


def call(service: str, *references: bytes, **changed: Any) -> Call:
    fields = {"size": Size(1024, 768), "seed": 7, "prompt": "a cat", "model": "klein-4b", **changed}
    work = ImageWork("image.edit" if references else "image.generate", **fields)
    return Call("attempt-1", MODELS[service], work, Inputs(references))


def used(
    url: str,
    service: str,
    do: Callable[[Hosted], Awaitable[Result]],
    key: str | None = "key",
    **answers: tuple[int, str | None],
) -> Result:
    async def resolver(_: str, __: int) -> list[str]:
        return ["93.184.216.34"]

    async def run() -> Result:
        transport = Rerouted(url, {end.replace("__", "/"): answer for end, answer in answers.items()})
        fetcher = Fetcher(resolver=resolver, transport=transport)
        # Replicate's mock looks at no wish for an answer where there is a `Prefer`.
        options = {"wait_seconds": 0} if service == "replicate" and answers else {}
        provider = KINDS[service](key, transport=transport, fetcher=fetcher, clock=Time().clock, **options)
        try:
            return await do(provider)
        finally:
            await provider.close()

    return asyncio.run(run())


def outcome(url: str, service: str, do: Callable[[Hosted], Awaitable[Any]], **options: Any) -> Outcome:
    with pytest.raises(ProviderError) as caught:
        used(url, service, do, **options)
    return caught.value.cause, caught.value.acceptance, caught.value.billed


def described(paths: Mapping[str, str], method: str) -> list[tuple[str, int]]:
    """Every error that the descriptions have for it. Empty where they are not at hand."""
    found = []
    for service, path in paths.items():
        file = DESCRIPTIONS / PATHS[service]
        if file.exists():
            answers = json.loads(file.read_text())["paths"][path][method]["responses"]
            found += [(service, int(status)) for status in answers if int(status) >= 400]
    return found


@pytest.mark.parametrize("service", KINDS)
@pytest.mark.parametrize("given", [(), (PICTURE,), (PICTURE, noise("PNG", (420, 420)))], ids=["made", "edit", "large"])
def test_a_picture_is_made(urls: dict[str, str], service: str, given: tuple[bytes, ...]) -> None:
    asked = call(service, *given)

    async def made(provider: Hosted) -> Answer:
        begun = await provider.start(asked)
        if isinstance(begun, Accepted):
            return await provider.collect(json.loads(json.dumps(begun.handle)), asked)
        return begun

    answer = used(urls[service], service, made)
    assert [each.file for each in answer.pictures] == [PICTURE]
    assert answer.request_id


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("service", KINDS)
def test_every_format_is_one_that_the_service_has(urls: dict[str, str], service: str, format_: str) -> None:
    asked = call(service, output_format=format_, compression=80, size=None)
    assert used(urls[service], service, lambda provider: provider.start(asked))


@pytest.mark.parametrize("service", KINDS)
def test_a_service_that_lets_us_in_says_so(urls: dict[str, str], service: str) -> None:
    used(urls[service], service, lambda provider: provider.probe())


@pytest.mark.parametrize(("service", "status"), described(SUBMISSIONS, "post"))
def test_each_error_of_a_submission_is_understood(urls: dict[str, str], service: str, status: int) -> None:
    end = SUBMISSIONS[service].replace("/", "__")
    asked = call(service)
    found = outcome(urls[service], service, lambda provider: provider.start(asked), **{end: (status, None)})
    expected = ("credit", "refused", False) if (service, status) == ("fal", 403) else REFUSED[status]
    assert found == expected


@pytest.mark.parametrize(("service", "status"), described(POLLS, "get"))
def test_each_error_of_a_poll_is_understood(urls: dict[str, str], service: str, status: int) -> None:
    end = {"bfl": "get_result", "replicate": "p1", "fal": "status"}[service]
    asked = call(service)
    assert POLLED[status] == outcome(
        urls[service],
        service,
        lambda provider: provider.collect(HANDLES[service], asked),
        **{end: (status, None)},
    )


@pytest.mark.parametrize(("service", "status"), described({"fal": "/fal-ai/flux-2/requests/{request_id}"}, "get"))
def test_each_error_of_a_result_is_understood(urls: dict[str, str], service: str, status: int) -> None:
    asked = call(service)
    assert RESULTS[status] == outcome(
        urls[service], service, lambda provider: provider.collect(HANDLES[service], asked), r1=(status, None)
    )


@pytest.mark.parametrize("example", TASKS)
def test_each_end_of_a_task_is_understood(urls: dict[str, str], example: str) -> None:
    asked = call("bfl")
    found = outcome(
        urls["bfl"], "bfl", lambda provider: provider.collect(HANDLES["bfl"], asked), get_result=(200, example)
    )
    assert found == TASKS[example]


def test_what_goes_on_is_waited_for(urls: dict[str, str]) -> None:
    asked = call("fal")
    found = outcome(urls["fal"], "fal", lambda provider: provider.collect(HANDLES["fal"], asked), status=(202, None))
    assert found == WAITED


@pytest.mark.parametrize(
    ("service", "expected"), [("bfl", "impossible"), ("replicate", "cancelled"), ("fal", "too_late")]
)
def test_what_is_cancelled(urls: dict[str, str], service: str, expected: str) -> None:
    """fal's mock has completed everything, whatever it was asked before."""
    assert used(urls[service], service, lambda provider: provider.cancel(HANDLES[service])) == expected


@pytest.mark.parametrize(
    ("service", "status"),
    described({"replicate": CANCELS["replicate"]}, "post") + described({"fal": CANCELS["fal"]}, "put"),
)
def test_each_error_of_cancelling_is_understood(urls: dict[str, str], service: str, status: int) -> None:
    def cancel(provider: Hosted) -> Awaitable[str]:
        return provider.cancel(HANDLES[service])

    if (service, status) == ("fal", 400):
        assert used(urls[service], service, cancel, cancel=(status, None)) == "too_late"
    else:
        assert outcome(urls[service], service, cancel, cancel=(status, None))[1:] == ("accepted", None)


def test_a_request_that_breaks_the_description_is_seen(urls: dict[str, str]) -> None:
    asked, wrong = call("replicate"), call("replicate", output_format="jpeg", compression=101)
    with pytest.raises(AssertionError, match="security"):
        used(urls["replicate"], "replicate", lambda provider: provider.start(asked), key=None)
    with pytest.raises(AssertionError, match="output_quality"):
        used(urls["replicate"], "replicate", lambda provider: provider.start(wrong))
