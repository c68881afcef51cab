import json
from typing import Any

import httpx2
import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.together import Together, capabilities
from tests.unit.providers.pictures import in_base64, picture
from tests.unit.providers.service import Service, call, failed, outcome, started, used

DEV, PRO, KONTEXT = (f"black-forest-labs/{name}" for name in ("FLUX.2-dev", "FLUX.2-pro", "FLUX.1-kontext-pro"))


def answer(*files: bytes) -> dict[str, Any]:
    data = [{"index": index, "type": "b64_json", "b64_json": in_base64(file)} for index, file in enumerate(files)]
    return {"id": "nyBhJtE-6UHjtw", "model": DEV, "object": "list", "data": data}


def error(status: int, code: str | None, type_: str = "invalid_request_error", message: str = "No.") -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"message": message, "type": type_, "param": None, "code": code}})


def body(service: Service) -> dict[str, Any]:
    fields = json.loads(service.request.content)
    assert isinstance(fields, dict)
    return fields


def test_the_fakes_are_what_the_official_package_reads():
    types = pytest.importorskip("together.types", reason="the package `together` is not installed")
    assert types.ImageFile.model_validate(answer(picture())).data[0].type == "b64_json"


def test_what_is_asked_and_what_comes_of_it():
    file = picture()
    service = Service(httpx2.Response(200, json=answer(file)))
    asked = call(DEV, size=Size(1024, 768), steps=28, guidance=3.5, first=2, output_format="jpeg")
    made = started(Together, service, asked)
    assert str(service.request.url) == "https://api.together.ai/v1/images/generations"
    assert body(service) == {
        "model": DEV,
        "prompt": "a zeppelin at dawn",
        "n": 1,
        "seed": 43,
        "width": 1024,
        "height": 768,
        "steps": 28,
        "guidance_scale": 3.5,
        "response_format": "base64",
        "output_format": "jpeg",
    }
    assert [(each.file, each.seed) for each in made.pictures] == [(file, 43)]
    assert (made.request_id, made.charged) == ("nyBhJtE-6UHjtw", None)
    assert made.notes == ("the service made 32x24, not 1024x768",)


def test_what_nobody_chose_the_service_does():
    service = Service(httpx2.Response(200, json=answer(picture())))
    started(Together, service, call(DEV, seed=2**32 + 5, output_format="webp"))
    fields = body(service)
    assert not {"width", "height", "steps", "guidance_scale", "image_url", "reference_images"} & fields.keys()
    assert (fields["seed"], fields["output_format"]) == (5, "png")


def test_of_several_pictures_only_the_firsts_seed_is_known():
    files = [picture(colour=colour) for colour in ("red", "green", "blue")]
    shuffled = answer(*files)
    shuffled["data"].reverse()
    service = Service(httpx2.Response(200, json=shuffled))
    made = started(Together, service, call(DEV, count=3))
    assert body(service)["n"] == 3
    assert [(each.file, each.seed) for each in made.pictures] == [(files[0], 41), (files[1], None), (files[2], None)]


def test_references_go_as_data_urls():
    files = (picture("PNG"), picture("JPEG"))
    urls = [f"data:image/{name};base64,{in_base64(file)}" for name, file in zip(("png", "jpeg"), files, strict=True)]
    service = Service(httpx2.Response(200, json=answer(picture())))
    started(Together, service, call(PRO, references=files))
    assert body(service)["reference_images"] == urls
    service = Service(httpx2.Response(200, json=answer(picture())))
    started(Together, service, call(KONTEXT, references=files[:1]))
    assert body(service)["image_url"] == urls[0]


def test_a_url_in_the_answer_is_followed():
    file = picture()

    def handle(request):
        if request.method == "GET":
            assert request.headers["user-agent"]  # without one the service says 403
            return httpx2.Response(200, content=file)
        url = "https://api.together.ai/shrt/abc"
        return httpx2.Response(200, json={**answer(), "data": [{"index": 0, "type": "url", "url": url}]})

    assert started(Together, Service(handle), call(DEV)).pictures[0].file == file


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (error(400, "invalid_request"), ("invalid", "refused", False)),
        (error(401, "invalid_api_key"), ("credentials", "refused", False)),
        (error(402, "credit_limit_exceeded", "credit_limit"), ("credit", "refused", False)),
        (error(403, "credit_limit_exceeded", "credit_limit"), ("credit", "refused", False)),
        (error(404, "model_not_available"), ("not_found", "refused", False)),
        (error(400, "model_not_available"), ("not_found", "refused", False)),
        (error(429, "rate_limit_exceeded", "rate_limit"), ("rate_limited", "refused", False)),
        (error(500, None, "server_error"), ("overloaded", "unknown", None)),
        (error(503, "overloaded", "server_error"), ("overloaded", "refused", False)),
        (error(400, None, message="NSFW content was detected in the picture"), ("moderated", "refused", False)),
        (error(422, "content_policy_violation"), ("moderated", "refused", False)),
        (error(403, None, message="Your request was flagged by moderation"), ("moderated", "refused", False)),
        (error(500, None, message="the moderation failed"), ("overloaded", "unknown", None)),
    ],
)
def test_an_error_says_why_and_whether_anything_was_taken_on(response, expected):
    assert outcome(failed(Together, Service(response), call(DEV))) == expected


def test_a_probe_buys_nothing():
    service = Service(httpx2.Response(200, json=[]))
    used(Together, service, lambda provider: provider.probe())
    assert (service.request.method, service.request.url.path) == ("GET", "/v1/models")


@pytest.mark.parametrize(
    ("model", "parameters", "references"),
    [
        (DEV, {"size", "seed", "steps", "guidance"}, 8),
        (PRO, {"size", "seed"}, 8),
        (KONTEXT, {"size", "seed"}, 1),
        ("black-forest-labs/FLUX.1-schnell", {"size", "seed", "steps"}, 0),
        ("black-forest-labs/FLUX.1.1-pro", {"size", "seed"}, 0),
        ("somebody/something", {"size", "seed", "steps", "guidance"}, 0),
    ],
)
def test_what_a_model_takes_follows_from_its_family(model, parameters, references):
    can = capabilities(model)
    assert (can.parameters, can.max_references, can.max_images) == (parameters, references, 1)
    assert ("image.edit" in can.tasks) == bool(references)
    assert used(Together, Service(httpx2.Response(200)), lambda provider: _can(provider, model)) == can


async def _can(provider, model):
    return provider.can(model)
