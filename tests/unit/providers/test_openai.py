import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse

from kleinbild.core.deployments import Can
from kleinbild.core.prices import BilledTokens
from kleinbild.core.sizes import Size
from kleinbild.providers import openai
from kleinbild.providers.hosted import ProviderError
from kleinbild.providers.openai import RETIRED, OpenAI, capabilities, is_openais
from tests.unit.providers.forms import parts_of
from tests.unit.providers.pictures import in_base64, noise, picture
from tests.unit.providers.service import KEY, Broken, Service, Whole, call, failed, fetching, outcome, started, used

MODEL = "gpt-image-2"
OTHER = "flux-klein"
USAGE = {
    "input_tokens": 340,
    "output_tokens": 196,
    "total_tokens": 536,
    "input_tokens_details": {"text_tokens": 17, "image_tokens": 323},
    "output_tokens_details": {"image_tokens": 196, "text_tokens": 0},
}
EVENT = {
    "created_at": 1763769600,
    "size": "1024x1024",
    "quality": "low",
    "background": "opaque",
    "output_format": "png",
}


def answer(*files: bytes, **changed: Any) -> dict[str, Any]:
    data = [{"b64_json": in_base64(file)} for file in files or (picture(),)]
    return {"created": 1763769600, "data": data, "usage": USAGE, **changed}


def error(status: int, code: str | None, type_: str = "invalid_request_error", message: str = "No.", **changed: Any):
    told = {"message": message, "type": type_, "param": None, "code": code, **changed.pop("more", {})}
    return httpx2.Response(status, json={"error": told}, **changed)


def streamed(*events: dict[str, Any], end: str = "", **options: Any) -> httpx2.Response:
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events) + end
    stream = Broken(body.encode(), options["error"]) if "error" in options else None
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return httpx2.Response(200, headers=headers, stream=stream, content=None if stream else body)


def partial(file: bytes, index: int = 0) -> dict[str, Any]:
    type_ = "image_generation.partial_image"
    return {**EVENT, "type": type_, "b64_json": in_base64(file), "partial_image_index": index}


def completed(file: bytes) -> dict[str, Any]:
    return {**EVENT, "type": "image_generation.completed", "b64_json": in_base64(file), "usage": USAGE}


def body(service: Service) -> dict[str, Any]:
    fields = json.loads(service.request.content)
    assert isinstance(fields, dict)
    return fields


def test_the_fakes_are_what_the_official_package_reads():
    assert ImagesResponse.model_validate(answer()).usage.output_tokens_details.image_tokens == 196
    assert ImageGenPartialImageEvent.model_validate(partial(picture())).partial_image_index == 0
    assert ImageGenCompletedEvent.model_validate(completed(picture())).usage.total_tokens == 536


def test_pictures_come_with_their_tokens_and_the_services_own_words():
    files = [picture(colour=colour) for colour in ("red", "green")]
    headers = {"x-request-id": "req_9", "openai-processing-ms": "8250"}
    service = Service(httpx2.Response(200, json=answer(*files), headers=headers))
    made = started(OpenAI, service, call(MODEL, count=2, size=Size(32, 24)))
    assert [(each.file, each.seed) for each in made.pictures] == [(files[0], None), (files[1], None)]
    assert made.tokens == BilledTokens(input_text=17, input_image=323, output_image=196)
    assert (made.request_id, made.seconds, made.charged, made.notes) == ("req_9", 8.25, None, ())


def test_what_openais_models_are_asked():
    service = Service(httpx2.Response(200, json=answer()))
    asked = call(
        MODEL,
        size=Size(1536, 1024),
        quality="low",
        background="transparent",
        output_format="webp",
        compression=80,
        moderation="low",
        user="u1",
    )
    started(OpenAI, service, asked)
    assert str(service.request.url) == "https://api.openai.com/v1/images/generations"
    assert service.request.headers["authorization"] == f"Bearer {KEY}"
    assert service.request.headers["idempotency-key"] == service.request.headers["x-client-request-id"] == "att_1"
    assert body(service) == {
        "model": MODEL,
        "prompt": "a zeppelin at dawn",
        "n": 1,
        "size": "1536x1024",
        "quality": "low",
        "background": "transparent",
        "output_format": "webp",
        "output_compression": 80,
        "moderation": "low",
        "user": "u1",
    }


def test_other_servers_are_asked_for_base64_and_nothing_that_they_may_not_know():
    service = Service(httpx2.Response(200, json=answer()))
    asked = call(OTHER, size=Size(32, 24), quality="high", output_format="webp", compression=80, num_previews=2)
    started(OpenAI, service, asked, base_url="http://127.0.0.1:9000/v1/", key=None)
    assert str(service.request.url) == "http://127.0.0.1:9000/v1/images/generations"
    assert "authorization" not in service.request.headers
    assert body(service) == {
        "model": OTHER,
        "prompt": "a zeppelin at dawn",
        "n": 1,
        "size": "32x24",
        "seed": 41,
        "response_format": "b64_json",
    }


def test_the_service_chooses_the_size_if_nobody_did():
    service = Service(httpx2.Response(200, json=answer()))
    started(OpenAI, service, call(MODEL))
    assert "size" not in body(service)


def test_a_size_made_instead_is_said():
    service = Service(httpx2.Response(200, json=answer(picture(size=(32, 24)))))
    made = started(OpenAI, service, call(OTHER, size=Size(48, 24)))
    assert made.notes == ("the service made 32x24, not 48x24",)


@pytest.mark.parametrize(("num", "name"), [(1, "image"), (2, "image[]")])
def test_an_edit_sends_its_pictures_as_files(num, name):
    files = tuple(picture(format_) for format_ in ("PNG", "JPEG"))[:num]
    service = Service(httpx2.Response(200, json=answer()))
    mask = picture(mode="RGBA")
    started(OpenAI, service, call(MODEL, references=files, mask=mask, num_previews=9))
    assert service.request.url.path == "/v1/images/edits"
    parts = parts_of(service.request)
    names = ("image0.png", "image1.jpeg")
    assert [part for part in parts if part[1]] == [
        *((name, *each) for each in zip(names, files, strict=False)),
        ("mask", "mask.png", mask),
    ]
    fields = {part[0]: part[2] for part in parts if not part[1]}
    assert fields["stream"] == b"true"
    assert fields["partial_images"] == b"3"
    assert "response_format" not in fields


def test_an_edit_with_a_moderation_of_its_own_is_json_which_has_that_field():
    service = Service(httpx2.Response(200, json=answer()))
    file, mask = picture("JPEG"), picture(mode="RGBA")
    asked = call("gpt-image-1.5", references=(file,), mask=mask, moderation="low", input_fidelity="high")
    made = started(OpenAI, service, asked)
    assert service.request.url.path == "/v1/images/edits"
    told = body(service)
    assert (told["moderation"], told["input_fidelity"], made.notes) == ("low", "high", ())
    assert told["images"] == [{"image_url": f"data:image/jpeg;base64,{in_base64(file)}"}]
    assert told["mask"] == {"image_url": f"data:image/png;base64,{in_base64(mask)}"}


def test_pictures_too_large_for_json_go_as_files_and_it_is_said(monkeypatch):
    monkeypatch.setattr(openai, "MAX_DATA_URL_BYTES", 10)
    service = Service(httpx2.Response(200, json=answer()))
    made = started(OpenAI, service, call(MODEL, references=(picture(),), moderation="low"))
    assert "moderation" not in {part[0] for part in parts_of(service.request)}
    assert made.notes == ("moderation: low is not honoured with pictures as large as these",)


@pytest.mark.parametrize(
    ("model", "always"),
    [("gpt-image-1.5", None), ("gpt-image-1-mini", "low"), ("gpt-image-2", "high"), ("gpt-image-2.5-flare", "high")],
)
def test_input_fidelity_goes_to_those_that_have_a_choice(model, always):
    can = capabilities(model)
    assert {name: can.does("input_fidelity", name) for name in ("low", "high")} == {
        name: always in (None, name) for name in ("low", "high")
    }
    service = Service(httpx2.Response(200, json=answer()))
    started(OpenAI, service, call(model, references=(picture(),), input_fidelity="high"))
    sent = {part[0]: part[2] for part in parts_of(service.request)}
    assert sent.get("input_fidelity") == (None if always else b"high")


def test_an_edit_elsewhere_asks_for_base64():
    service = Service(httpx2.Response(200, json=answer()))
    started(OpenAI, service, call(OTHER, references=(picture(),)))
    assert ("response_format", "", b"b64_json") in parts_of(service.request)


def test_a_mask_without_a_picture_is_not_even_asked_for():
    service = Service(httpx2.Response(200, json=answer()))
    assert outcome(failed(OpenAI, service, call(MODEL, mask=picture()))) == ("invalid", "refused", False)
    assert service.requests == []


def test_a_url_of_the_service_is_fetched_with_the_key():
    file = picture()

    def handle(request):
        if request.method == "GET":
            return httpx2.Response(200, content=file)
        return httpx2.Response(200, json={"created": 1, "data": [{"url": "https://img.local.test/a.png?Signature=x"}]})

    service = Service(handle)
    made = started(OpenAI, service, call(OTHER), base_url="https://local.test/v1")
    assert made.pictures[0].file == file
    assert [request.headers.get("authorization") for request in service.requests] == [f"Bearer {KEY}"] * 2


def test_a_url_elsewhere_is_fetched_without_the_key():
    file = picture()
    elsewhere = Service(httpx2.Response(200, stream=Whole(file)))
    service = Service(
        httpx2.Response(200, json={"created": 1, "data": [{"url": "https://cdn.test/a.png?Signature=x"}]})
    )
    made = started(OpenAI, service, call(OTHER), fetcher=fetching(elsewhere))
    assert made.pictures[0].file == file
    assert KEY not in str(elsewhere.request.headers)


def test_a_data_url_is_read():
    file = picture()
    url = f"data:image/png;base64,{in_base64(file)}"
    service = Service(httpx2.Response(200, json={"created": 1, "data": [{"url": url, "b64_json": None}]}))
    assert started(OpenAI, service, call(OTHER)).pictures[0].file == file


@pytest.mark.parametrize("url", ["https://cdn.test/a.png?Signature=x", "/relative.png", "ftp://a/b", "https://[", ""])
def test_a_url_that_leads_nowhere_is_a_bad_answer(url):
    gone = Service(httpx2.Response(403, content=b"expired"))
    service = Service(httpx2.Response(200, json={"created": 1, "data": [{"url": url}, {"url": url}]}))
    told = failed(OpenAI, service, call(OTHER, count=2), fetcher=fetching(gone))
    assert outcome(told) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize("cut", [httpx2.ConnectError("no"), httpx2.ReadError("cut"), httpx2.Response(404)], ids=str)
def test_a_url_of_the_service_that_fails_is_of_work_that_is_done(cut):
    def handle(request):
        if request.method == "POST":
            url = "https://api.openai.com/files/a.png"
            return httpx2.Response(200, json={"created": 1, "data": [{"url": url}]})
        if isinstance(cut, Exception):
            raise cut
        return cut

    assert outcome(failed(OpenAI, Service(handle), call(OTHER))) == ("bad_answer", "accepted", None)


def test_previews_are_shown_as_png_before_the_picture_comes():
    final, shown = picture(), []
    service = Service(
        streamed(partial(picture("JPEG"), 0), partial(b"broken", 1), partial(picture("PNG"), 2), completed(final))
    )
    made = started(OpenAI, service, call(MODEL, num_previews=2), lambda *told: shown.append(told))
    assert {"stream": True, "partial_images": 2}.items() <= body(service).items()
    assert [(position, file[:4]) for position, file in shown] == [(None, b"\x89PNG")] * 2
    assert made.pictures[0].file == final
    assert made.tokens == BilledTokens(17, 323, 196)


def test_what_comes_after_the_picture_is_not_waited_for():
    service = Service(streamed(completed(picture()), error=None))
    assert len(started(OpenAI, service, call(MODEL, num_previews=1)).pictures) == 1


def test_several_pictures_are_not_streamed():
    service = Service(httpx2.Response(200, json=answer(picture(), picture())))
    started(OpenAI, service, call(MODEL, num_previews=2, count=2))
    assert "stream" not in body(service)


def test_an_answer_that_is_not_streamed_though_asked_for_is_taken():
    service = Service(httpx2.Response(200, json=answer()))
    assert len(started(OpenAI, service, call(MODEL, num_previews=2)).pictures) == 1


@pytest.mark.parametrize(
    "response",
    [
        streamed(partial(picture())),
        streamed(partial(picture()), end="data: [DONE]\n\n"),
        streamed(partial(picture()), error=httpx2.ReadError("cut")),
        streamed(partial(picture()), error=httpx2.ReadTimeout("slow")),
        streamed(end="event: image_generation.completed\ndata: {\n\n"),
        streamed(end="data: 7\n\n"),
        streamed(completed(noise()[:2000])),
        streamed({"type": "image_generation.completed"}),
    ],
    ids=["none", "done", "cut", "slow", "half an event", "no object", "half a picture", "no picture"],
)
def test_a_stream_without_a_whole_picture_is_a_bad_answer(response):
    told = failed(OpenAI, Service(response), call(MODEL, num_previews=1))
    assert outcome(told) == ("bad_answer", "accepted", None)


@pytest.mark.parametrize(
    ("code", "more", "expected"),
    [
        ("moderation_blocked", {}, ("moderated", "accepted", None)),
        ("moderation_blocked", {"moderation_details": {"moderation_stage": "input"}}, ("moderated", "accepted", False)),
        ("moderation_blocked", {"moderation_details": {"moderation_stage": "output"}}, ("moderated", "accepted", None)),
        (None, {}, ("failed", "accepted", None)),
    ],
)
def test_an_error_in_the_stream_or_of_status_200_is_of_accepted_work(code, more, expected):
    told = {"message": f"No. {KEY}", "type": "image_generation_user_error", "param": None, "code": code, **more}
    event = streamed(partial(picture()), {"type": "error", "error": told})
    assert outcome(failed(OpenAI, Service(event), call(MODEL, num_previews=1))) == expected
    assert outcome(failed(OpenAI, Service(httpx2.Response(200, json={"error": told})), call(MODEL))) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (error(400, "invalid_value"), ("invalid", "refused", False)),
        (error(400, "unknown_parameter"), ("invalid", "refused", False)),
        (error(400, "moderation_blocked", "image_generation_user_error"), ("moderated", "refused", False)),
        (error(400, "content_policy_violation"), ("moderated", "refused", False)),
        (error(400, "billing_hard_limit_reached", "image_generation_user_error"), ("credit", "refused", False)),
        (error(401, "invalid_api_key"), ("credentials", "refused", False)),
        (error(403, None), ("credentials", "refused", False)),
        (error(403, "model_not_found"), ("not_found", "refused", False)),
        (error(404, "model_not_found"), ("not_found", "refused", False)),
        (error(429, "rate_limit_exceeded", "requests"), ("rate_limited", "refused", False)),
        (error(429, "insufficient_quota", "insufficient_quota"), ("credit", "refused", False)),
        (error(429, None, "insufficient_quota"), ("credit", "refused", False)),
        (error(500, None, "server_error"), ("overloaded", "unknown", None)),
        (error(502, None, "server_error"), ("overloaded", "unknown", None)),
        (error(503, None, "server_error"), ("overloaded", "refused", False)),
        (error(504, None, "server_error"), ("timeout", "unknown", None)),
        (httpx2.Response(524, text="<html>A timeout occurred"), ("overloaded", "unknown", None)),
        (httpx2.Response(422, json={"detail": [{"loc": ["n"], "msg": "too many"}]}), ("invalid", "refused", False)),
        (httpx2.Response(400, json={"error": "no"}), ("invalid", "refused", False)),
        (httpx2.Response(400, json=[]), ("invalid", "refused", False)),
    ],
)
def test_an_error_says_why_and_whether_anything_was_taken_on(response, expected):
    told = failed(OpenAI, Service(response), call(MODEL))
    assert outcome(told) == expected
    assert told.status == response.status_code


def test_what_was_made_and_then_held_back_may_be_billed():
    more = {"moderation_details": {"moderation_stage": "output", "categories": ["sexual"]}}
    blocked = error(400, "moderation_blocked", "image_generation_user_error", more=more)
    assert outcome(failed(OpenAI, Service(blocked), call(MODEL))) == ("moderated", "accepted", None)


def test_callers_read_what_is_wrong_with_their_request_and_nothing_more():
    message = f"Invalid size: see https://platform.openai.com/x?key={KEY} or docs.openai.com/y of org-abcdefgh, {KEY}."
    told = failed(OpenAI, Service(error(400, "invalid_value", message=message)), call(MODEL))
    assert told.message == "the service does not take the request: Invalid size: see … or … of …, …."
    assert "platform.openai.com" in told.detail


def test_callers_do_not_read_of_the_operators_account():
    message = f"Incorrect API key provided: {KEY}. Find yours at https://platform.openai.com/account/api-keys."
    told = failed(OpenAI, Service(error(401, "invalid_api_key", message=message)), call(MODEL))
    assert told.message == "the service does not let this server in"
    assert told.detail.startswith("invalid_api_key Incorrect API key provided: ….")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_kept(headers, seconds):
    limited = error(429, "rate_limit_exceeded", "requests", headers={**headers, "x-request-id": "req_1"})
    told = failed(OpenAI, Service(limited), call(MODEL))
    assert (told.retry_after, told.request_id) == (seconds, "req_1")


def test_a_retired_model_names_what_stands_in():
    told = failed(OpenAI, Service(error(404, "model_not_found")), call("dall-e-3"))
    assert (told.message, told.hint) == (
        "the service has no such model",
        "'dall-e-3' is retired; 'gpt-image-2' stands in for it",
    )


def test_what_stands_in_is_not_retired_itself():
    assert not RETIRED.keys() & RETIRED.values()
    assert all(map(is_openais, RETIRED.values()))


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"input_tokens": None},
        {"input_tokens_details": 3, "output_tokens": "many"},
        {"input_tokens": 10},
        {"input_tokens": 10, "output_tokens": 10**30},
    ],
)
def test_tokens_that_cannot_be_read_are_unknown(usage):
    assert started(OpenAI, Service(httpx2.Response(200, json=answer(usage=usage))), call(MODEL)).tokens is None


def test_tokens_without_details_are_of_text_given_and_of_pictures_made():
    usage = {"input_tokens": 10, "output_tokens": 196, "total_tokens": 206}
    made = started(OpenAI, Service(httpx2.Response(200, json=answer(usage=usage))), call(MODEL))
    assert made.tokens == BilledTokens(10, 0, 196)


@pytest.mark.parametrize("status", [200, 404, 405])
def test_a_server_that_does_not_list_its_models_can_be_reached_all_the_same(status):
    service = Service(httpx2.Response(status, json={"data": []}))
    used(OpenAI, service, lambda provider: provider.probe())
    assert (service.request.method, service.request.url.path) == ("GET", "/v1/models")


def test_a_probe_tells_that_the_key_is_wrong():
    with pytest.raises(ProviderError) as caught:
        used(OpenAI, Service(error(401, "invalid_api_key")), lambda provider: provider.probe())
    assert caught.value.cause == "credentials"


def test_older_models_make_three_sizes_and_later_ones_any():
    older, later = capabilities("gpt-image-1.5"), capabilities("gpt-image-2.5-flare-2026-09-08")
    assert (older.sizes, older.exact_sizes) == (None, ("1024x1024", "1536x1024", "1024x1536"))
    assert later.exact_sizes == ()
    assert later.sizes is not None
    assert later.sizes.allows(Size(3840, 2160))
    assert not later.sizes.allows(Size(1000, 1000))
    assert capabilities("chatgpt-image-latest").exact_sizes == older.exact_sizes


def test_of_other_models_little_is_promised():
    can = capabilities(OTHER)
    assert (can.parameters, can.one_seed) == ({"size", "mask", "user"}, False)
    assert (can.formats, can.previews, can.max_images) == ({"png"}, False, 10)
    assert used(OpenAI, Service(httpx2.Response(200)), _can) == can


@pytest.mark.parametrize("host", ["api.openai.com", "mine.openai.azure.com", "api.openai.com:443"])
def test_openai_has_no_seeds_and_other_servers_do(host):
    assert "seed" not in capabilities(OTHER, f"https://{host}/v1").parameters
    here = capabilities(OTHER, "http://127.0.0.1:8000/v1")
    assert ("seed" in here.parameters, here.one_seed) == (True, True)
    assert "seed" not in capabilities(MODEL, "http://127.0.0.1:8000/v1").parameters


@pytest.mark.parametrize(
    ("count", "can", "sent"),
    [
        (1, Can(frozenset({"image.generate"}), frozenset({"seed"})), 43),
        (1, Can(frozenset({"image.generate"}), frozenset()), None),
        (2, Can(frozenset({"image.generate"}), frozenset({"seed"})), None),
    ],
    ids=["a picture", "a server without", "several, which one seed would make the same"],
)
def test_a_seed_is_sent_to_those_that_take_one(count, can, sent):
    service = Service(httpx2.Response(200, json=answer(*[picture()] * count)))
    started(OpenAI, service, replace(call(OTHER, first=2, count=count), can=can))
    assert body(service).get("seed") == sent


async def _can(provider):
    return provider.can(OTHER)
