from typing import Any

import httpx2
import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.hosted import ProviderError
from kleinbild.providers.stability import RATIOS, Stability, capabilities, nearest_ratio
from tests.unit.providers.forms import parts_of
from tests.unit.providers.pictures import in_base64, picture
from tests.unit.providers.service import Service, call, failed, outcome, started, used

MODEL = "sd3.5-medium"


def answer(file: bytes | None = None, **changed: Any) -> dict[str, Any]:
    return {"image": in_base64(file or picture()), "seed": 41, "finish_reason": "SUCCESS", **changed}


def error(status: int, name: str, *words: str, **changed: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"id": "a1b2", "name": name, "errors": list(words) or ["No."]}, **changed)


def fields(service: Service) -> dict[str, str]:
    return {name: content.decode() for name, file, content in parts_of(service.request) if not file}


def test_what_is_asked_and_what_comes_of_it():
    file = picture(size=(32, 18))
    service = Service(httpx2.Response(200, json=answer(file), headers={"x-request-id": "r1"}))
    made = started(Stability, service, call(MODEL, size=Size(1280, 720), guidance=4.5, user="u1", output_format="webp"))
    assert str(service.request.url) == "https://api.stability.ai/v2beta/stable-image/generate/sd3"
    assert service.request.headers["accept"] == "application/json"
    assert service.request.headers["stability-client-user-id"] == "u1"
    assert service.request.headers["content-type"].startswith("multipart/form-data")
    assert fields(service) == {
        "model": MODEL,
        "prompt": "a zeppelin at dawn",
        "seed": "41",
        "output_format": "webp",
        "mode": "text-to-image",
        "cfg_scale": "4.5",
        "aspect_ratio": "16:9",
    }
    assert [(each.file, each.seed) for each in made.pictures] == [(file, 41)]
    assert made.request_id == "r1"
    assert made.notes == ("the service made 32x18, not 1280x720",)


def test_the_service_chooses_the_shape_if_nobody_did():
    service = Service(httpx2.Response(200, json=answer()))
    assert started(Stability, service, call(MODEL)).notes == ()
    assert "aspect_ratio" not in fields(service)


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        (Size(1024, 1024), "1:1"),
        (Size(1000, 960), "1:1"),
        (Size(1920, 1080), "16:9"),
        (Size(1536, 1024), "3:2"),
        (Size(1024, 1536), "2:3"),
        (Size(1280, 1024), "5:4"),
        (Size(4096, 512), "21:9"),
        (Size(512, 4096), "9:21"),
    ],
)
def test_the_nearest_shape_is_taken(size, ratio):
    assert nearest_ratio(size) == ratio
    assert ratio in RATIOS


def test_an_edit_starts_from_its_picture_and_has_its_shape():
    file = picture("JPEG")
    service = Service(httpx2.Response(200, json=answer()))
    started(Stability, service, call(MODEL, references=(file,), size=Size(1280, 720)))
    assert ("image", "image.jpeg", file) in parts_of(service.request)
    assert {"mode": "image-to-image", "strength": "0.7"}.items() <= fields(service).items()
    assert "aspect_ratio" not in fields(service)
    assert "strength" in capabilities(MODEL).parameters
    service = Service(httpx2.Response(200, json=answer()))
    started(Stability, service, call(MODEL, references=(file,), strength=0.25))
    assert fields(service)["strength"] == "0.25"


@pytest.mark.parametrize(
    "asked",
    [call(MODEL, count=2), call(MODEL, references=(picture(), picture())), call(MODEL, mask=picture())],
    ids=["two pictures", "two references", "a mask"],
)
def test_what_the_service_cannot_do_is_not_even_asked_for(asked):
    service = Service(httpx2.Response(200, json=answer()))
    assert outcome(failed(Stability, service, asked)) == ("invalid", "refused", False)
    assert service.requests == []


@pytest.mark.parametrize(
    ("seed", "first", "sent"),
    [(41, 0, 41), (41, 3, 44), (4_294_967_294, 0, 4_294_967_294), (4_294_967_294, 2, 1), (0, 0, 4_294_967_294)],
)
def test_a_seed_is_never_the_one_that_stands_for_any(seed, first, sent):
    service = Service(httpx2.Response(200, json=answer(seed=sent)))
    assert started(Stability, service, call(MODEL, seed=seed, first=first)).pictures[0].seed == sent
    assert fields(service)["seed"] == str(sent)


@pytest.mark.parametrize(
    ("told", "seed"), [(7, 7), ("7", 7), (None, 41), ("?", 41), (-1, 41), (10**30, 41), ("9" * 5000, 41)]
)
def test_the_services_own_word_on_the_seed_counts(told, seed):
    service = Service(httpx2.Response(200, json=answer(seed=told)))
    assert started(Stability, service, call(MODEL)).pictures[0].seed == seed


@pytest.mark.parametrize(
    "response",
    [
        httpx2.Response(200, json=answer(finish_reason="CONTENT_FILTERED")),
        httpx2.Response(
            200, content=picture(), headers={"content-type": "image/png", "finish-reason": "CONTENT_FILTERED"}
        ),
    ],
    ids=["json", "bare"],
)
def test_a_filtered_picture_is_a_moderation_error_and_free(response):
    assert outcome(failed(Stability, Service(response), call(MODEL))) == ("moderated", "accepted", False)


def test_a_picture_that_comes_bare_is_taken():
    file = picture("JPEG")
    headers = {"content-type": "image/jpeg", "finish-reason": "SUCCESS", "seed": "12"}
    made = started(Stability, Service(httpx2.Response(200, content=file, headers=headers)), call(MODEL))
    assert [(each.file, each.seed) for each in made.pictures] == [(file, 12)]


@pytest.mark.parametrize("finish", ["ERROR", "", None, 3])
def test_another_end_than_success_is_a_failure(finish):
    told = failed(Stability, Service(httpx2.Response(200, json=answer(finish_reason=finish))), call(MODEL))
    assert outcome(told) == ("failed", "accepted", None)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (error(400, "bad_request", "some-field: is required"), ("invalid", "refused", False)),
        (error(401, "unauthorized"), ("credentials", "refused", False)),
        (error(402, "payment_required"), ("credit", "refused", False)),
        (error(403, "content_moderation"), ("moderated", "refused", False)),
        (error(403, "forbidden"), ("credentials", "refused", False)),
        (error(413, "payload_too_large"), ("invalid", "refused", False)),
        (error(422, "invalid_language"), ("invalid", "refused", False)),
        (error(422, "public_figure"), ("moderated", "refused", False)),
        (error(429, "rate_limit_exceeded"), ("rate_limited", "refused", False)),
        (error(500, "internal_error"), ("overloaded", "refused", False)),
        (httpx2.Response(500, text="<html>"), ("overloaded", "unknown", None)),
    ],
)
def test_an_error_says_why_and_whether_anything_was_taken_on(response, expected):
    assert outcome(failed(Stability, Service(response), call(MODEL))) == expected


def test_whoever_was_too_fast_waits_a_minute_unless_told_otherwise():
    blocked = failed(Stability, Service(error(429, "rate_limit_exceeded")), call(MODEL))
    told = failed(Stability, Service(error(429, "rate_limit_exceeded", headers={"retry-after": "9"})), call(MODEL))
    assert (blocked.retry_after, told.retry_after) == (60.0, 9.0)


def test_callers_read_what_is_wrong_with_their_request():
    told = failed(Stability, Service(error(422, "invalid_language", "English only.", "See stability.ai.")), call(MODEL))
    assert told.message == "the service does not take the request: English only.; See …"


def test_a_probe_asks_for_the_balance():
    service = Service(httpx2.Response(200, json={"credits": 98.5}))
    used(Stability, service, lambda provider: provider.probe())
    assert (service.request.method, service.request.url.path) == ("GET", "/v1/user/balance")


def test_a_probe_tells_that_no_credit_is_left():
    with pytest.raises(ProviderError) as caught:
        used(Stability, Service(httpx2.Response(200, json={"credits": 0})), lambda provider: provider.probe())
    assert caught.value.cause == "credit"


def test_what_the_family_does():
    can = capabilities(MODEL)
    assert (can.sizes, can.exact_sizes, can.ratios) == (None, (), RATIOS)
    assert (can.max_images, can.max_references, can.formats) == (1, 1, {"png", "jpeg", "webp"})
    assert used(Stability, Service(httpx2.Response(200)), _can) == can


async def _can(provider):
    return provider.can(MODEL)
