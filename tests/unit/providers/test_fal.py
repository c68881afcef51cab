import base64
import json

import httpx2
import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.fal import Fal, capabilities
from kleinbild.providers.hosted import Accepted
from tests.unit.providers.pictures import picture
from tests.unit.providers.taking_on import KEY, Hooked, Server, Time, call, failing, fetcher_to, run, through_json, told

MODEL = "fal-ai/flux-2/klein/4b"
QUEUE = "https://queue.fal.run/fal-ai/flux-2/requests/r1"
PATH = "/fal-ai/flux-2/requests/r1"
SUBMIT, EDIT, STATUS, RESULT, CANCEL = (
    f"POST /{MODEL}",
    f"POST /{MODEL}/edit",
    f"GET {PATH}/status",
    f"GET {PATH}",
    f"PUT {PATH}/cancel",
)
FILES = [f"GET /files/{number}.png" for number in range(4)]
PICTURES = [picture(colour=colour) for colour in ("red", "green", "blue", "white")]
URLS = {"status_url": f"{QUEUE}/status", "response_url": QUEUE, "cancel_url": f"{QUEUE}/cancel"}
HANDLE = {"id": "r1", "app": "fal-ai/flux-2", **URLS}


def state(status, **fields):
    return 202 if status != "COMPLETED" else 200, {"status": status, "request_id": "r1", **URLS, **fields}


QUEUED, RUNNING = state("IN_QUEUE", queue_position=2), state("IN_PROGRESS", logs=[])
COMPLETED = state("COMPLETED", metrics={"inference_time": 0.61})
FAILED = state("COMPLETED", error="it failed", error_type="runner_server_error")


def result(count=1, flags=None, **fields):
    images = [{"url": f"https://v3.fal.media/files/{number}.png", "width": 32, "height": 24} for number in range(count)]
    flags = [False] * count if flags is None else flags
    return 200, {"images": images, "timings": {}, "seed": 7, "has_nsfw_concepts": flags, "prompt": "a cat", **fields}


def server(*polls, made=None):
    routes = dict(zip(FILES, (httpx2.Response(200, content=file) for file in PICTURES), strict=True))
    submitted = (200, {"status": "IN_QUEUE", "request_id": "r1", "queue_position": 3, **URLS})
    return Server(
        **routes,
        **{
            SUBMIT: submitted,
            EDIT: submitted,
            STATUS: list(polls) or [QUEUED, RUNNING, COMPLETED],
            RESULT: made or result(),
        },
    )


def provider(server, **options):
    options = {"clock": Time().clock, "fetcher": fetcher_to(server), **options}
    return Fal(KEY, transport=server.transport, **options)


def collected(*polls, made=None, count=1):
    return provider(server(*polls, made=made)).collect(HANDLE, call(MODEL, count=count, n=count))


def sent(server, path=SUBMIT):
    return json.loads(server.asked(path)[0].content)


def test_a_webhook_is_asked_for_and_wakes_who_waits():
    hooked, service = Hooked(), server(COMPLETED)
    asked = provider(service, clock=hooked.clock, hook=hooked.hook)

    async def made():
        accepted = await asked.start(call(MODEL))
        return await hooked.until(asked.collect(accepted.handle, call(MODEL)), "r1")

    assert run(made()).pictures
    assert service.asked(SUBMIT)[0].url.params["fal_webhook"] == hooked.hook.url


def test_pictures_are_made():
    service = server(made=result(4))
    positions = []
    asked = call(MODEL, n=6, first=2, count=4, steps=5)

    async def made():
        accepted = await provider(service).start(asked, lambda position, _: positions.append(position))
        assert accepted == Accepted(HANDLE, request_id="r1")
        handle = through_json(accepted.handle)
        return await provider(service).collect(handle, asked, lambda position, _: positions.append(position))

    answer = run(made())
    assert [each.file for each in answer.pictures] == PICTURES
    assert [each.seed for each in answer.pictures] == [7, None, None, None]
    assert (answer.charged, answer.seconds, answer.request_id, answer.notes) == (None, 0.61, "r1", ())
    assert positions == [3, 2]
    assert sent(service) == {
        "prompt": "a cat",
        "seed": 9,
        "image_size": {"width": 32, "height": 24},
        "num_images": 4,
        "output_format": "png",
        "num_inference_steps": 5,
    }


def test_there_is_one_owner_of_retries_and_work_that_is_not_wanted_is_not_begun():
    service = server()
    run(provider(service).start(call(MODEL, seconds=29.5)))
    headers = service.asked(SUBMIT)[0].headers
    assert (headers["x-fal-no-retry"], headers["x-fal-request-start-timeout"]) == ("1", "30")
    assert headers["authorization"] == f"Key {KEY}"


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}/edit"])
def test_an_edit_goes_to_the_endpoint_for_edits(model):
    service = server()
    run(provider(service).start(call(model, references=2, file=PICTURES[0], size=None)))
    assert sent(service, EDIT)["image_urls"] == [f"data:image/png;base64,{base64.b64encode(PICTURES[0]).decode()}"] * 2
    assert "image_size" not in sent(service, EDIT)


def test_guidance_is_for_the_base_model():
    service = server()
    service.routes[f"POST /{MODEL}/base"] = service.routes[SUBMIT]
    run(provider(service).start(call(f"{MODEL}/base", guidance=4.0)))
    run(provider(service).start(call(MODEL, guidance=4.0)))
    assert sent(service, f"POST /{MODEL}/base")["guidance_scale"] == 4.0
    assert "guidance_scale" not in sent(service)


def test_another_size_than_asked_for_is_a_note():
    answer = run(provider(server()).collect(HANDLE, call(MODEL, size=Size(64, 48))))
    assert answer.notes == ("the service made 32x24, not 64x48",)


def test_a_status_that_nobody_knows_is_waited_for():
    assert run(collected(state("THINKING"), (200, {}), COMPLETED)).pictures


def test_a_poll_that_fails_once_does_not_matter():
    cut, broken = httpx2.ReadError("cut"), (503, {"detail": "busy"})
    assert run(collected(cut, broken, COMPLETED, made=[cut, broken, broken, result()])).pictures


@pytest.mark.parametrize(("count", "flags"), [(1, [True]), (1, True), (4, [False, False, True, False])])
def test_a_black_picture_is_moderation_and_was_made(count, flags):
    error = failing(collected(COMPLETED, made=result(count, flags), count=count))
    assert (*told(error), error.handle) == ("moderated", "accepted", True, HANDLE)


FLAGGED = [{"loc": ["body", "prompt"], "msg": "flagged by a content checker", "type": "content_policy_violation"}]
WRONG = [{"loc": ["body", "prompt"], "msg": "field required", "type": "missing"}]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ((422, {"detail": FLAGGED}), ("moderated", "accepted", None)),
        ((422, {"detail": WRONG}), ("invalid", "accepted", None)),
        ((400, {"detail": "no"}), ("invalid", "accepted", None)),
        ((404, {"detail": "no"}), ("not_found", "unknown", None)),
        ((401, {"detail": "no"}), ("credentials", "accepted", None)),
        ((499, {"detail": "no", "error_type": "client_cancelled"}), ("cancelled", "accepted", None)),
        ((500, {"detail": "Internal error"}), ("overloaded", "refused", False)),
        ((500, {"error_type": "runner_server_error"}), ("overloaded", "refused", False)),
        ((503, {"detail": "No runner"}), ("overloaded", "refused", False)),
        ((504, {"detail": "Timed out"}), ("timeout", "refused", False)),
        (httpx2.Response(200, content=b"<html>"), ("bad_answer", "accepted", None)),
        ((429, {}), ("timeout", "accepted", None)),
    ],
)
def test_completed_is_not_success(made, expected):
    error = failing(collected(COMPLETED, made=made))
    assert (*told(error), error.handle) == (*expected, HANDLE)


def test_what_is_wrong_with_the_request_is_told():
    assert "field required" in failing(collected(COMPLETED, made=(422, {"detail": WRONG}))).message


def test_the_kind_of_an_error_may_stand_in_a_header():
    made = httpx2.Response(500, headers={"x-fal-error-type": "runner_disconnected"})
    service = server(COMPLETED, made=made)
    assert told(failing(provider(service).collect(HANDLE, call(MODEL)))) == ("overloaded", "refused", False)
    assert len(service.asked(RESULT)) == 1


@pytest.mark.parametrize(
    ("status", "made", "expected"),
    [
        (FAILED, (500, {"detail": "no"}), ("overloaded", "refused", False)),
        (FAILED, result(), ("failed", "accepted", None)),
        (
            state("COMPLETED", error="flagged", error_type="content_policy_violation"),
            (422, {"detail": "no"}),
            ("moderated", "accepted", None),
        ),
        (
            state("COMPLETED", error="cancelled", error_type="client_cancelled"),
            (499, {"detail": "no"}),
            ("cancelled", "refused", False),
        ),
    ],
)
def test_the_status_may_tell_that_it_failed(status, made, expected):
    service = server(status, made=made)
    assert told(failing(provider(service).collect(HANDLE, call(MODEL)))) == expected
    assert len(service.asked(RESULT)) == 1


@pytest.mark.parametrize("images", [None, [], [{"url": None}], [7], "x"])
def test_a_result_without_the_pictures_is_a_bad_answer(images):
    made = result(images=images)
    assert told(failing(collected(COMPLETED, made=made))) == ("bad_answer", "accepted", True)


def test_fewer_pictures_than_asked_for_are_a_bad_answer():
    assert told(failing(collected(COMPLETED, made=result(3), count=4))) == ("bad_answer", "accepted", True)


def test_a_picture_may_be_in_the_result_itself():
    url = f"data:image/png;base64,{base64.b64encode(PICTURES[1]).decode()}"
    assert run(collected(COMPLETED, made=result(images=[{"url": url}]))).pictures[0].file == PICTURES[1]


def test_a_picture_that_has_expired_was_paid_for():
    service = server(COMPLETED)
    service.routes[FILES[0]] = httpx2.Response(404)
    assert told(failing(provider(service).collect(HANDLE, call(MODEL)))) == ("bad_answer", "accepted", True)
    assert len(service.asked(FILES[0])) == 3


def test_what_is_not_done_in_time_goes_on():
    error = failing(collected(RUNNING))
    assert (*told(error), error.handle) == ("timeout", "accepted", None, HANDLE)


def test_a_request_that_nobody_knows_is_lost():
    assert told(failing(collected((404, {})))) == ("not_found", "unknown", None)


@pytest.mark.parametrize(
    ("status", "detail", "expected"),
    [
        (400, "no", ("invalid", "refused", False)),
        (401, "no", ("credentials", "refused", False)),
        (403, "Key not allowed", ("credentials", "refused", False)),
        (403, "User is locked. Reason: Exhausted balance.", ("credit", "refused", False)),
        (404, "no", ("not_found", "refused", False)),
        (422, WRONG, ("invalid", "refused", False)),
        (422, FLAGGED, ("moderated", "refused", False)),
        (429, "no", ("rate_limited", "refused", False)),
        (500, "no", ("overloaded", "unknown", None)),
        (503, "no", ("overloaded", "refused", False)),
        (504, "no", ("timeout", "unknown", None)),
    ],
)
def test_each_error_of_the_submission_says_whether_it_was_taken_on(status, detail, expected):
    service = server()
    service.routes[SUBMIT] = (status, {"detail": detail})
    assert told(failing(provider(service).start(call(MODEL)))) == expected


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx2.ReadError("cut"), ("connection", "unknown", None)),
        (httpx2.ConnectTimeout("no"), ("timeout", "refused", False)),
        ((200, {"status": "IN_QUEUE"}), ("bad_answer", "accepted", None)),
    ],
)
def test_a_submission_without_an_answer(failure, expected):
    service = server()
    service.routes[SUBMIT] = failure
    assert told(failing(provider(service).start(call(MODEL)))) == expected


REQUESTED = (202, {"status": "CANCELLATION_REQUESTED"})


@pytest.mark.parametrize(
    ("answer", "after", "expected"),
    [
        ((200, {"status": "OK"}), RUNNING, "cancelled"),
        (REQUESTED, state("COMPLETED", error="cancelled", error_type="client_cancelled"), "cancelled"),
        (REQUESTED, (404, {}), "cancelled"),
        (REQUESTED, state("COMPLETED", error="x", metrics={"inference_time": 0.3}), "too_late"),
        (REQUESTED, COMPLETED, "too_late"),
        (REQUESTED, RUNNING, "impossible"),
        ((400, {"status": "ALREADY_COMPLETED"}), COMPLETED, "too_late"),
    ],
)
def test_what_comes_of_cancelling(answer, after, expected):
    service = server(after)
    service.routes[CANCEL] = answer
    assert run(provider(service).cancel(HANDLE)) == expected


@pytest.mark.parametrize("answer", [httpx2.ConnectError("no"), (401, {}), (404, {"status": "NOT_FOUND"}), (500, {})])
def test_cancelling_that_fails_says_nothing_of_the_work(answer):
    service = server()
    service.routes[CANCEL] = answer
    error = failing(provider(service).cancel(HANDLE))
    assert (error.acceptance, error.billed, error.handle) == ("accepted", None, HANDLE)


def test_the_key_goes_to_the_service_alone():
    service = server()
    run(provider(service).collect(HANDLE, call(MODEL)))
    keys = {request.headers["host"]: request.headers.get("authorization") for request in service.requests}
    assert keys == {"queue.fal.run": f"Key {KEY}", "v3.fal.media": None}


@pytest.mark.parametrize("url", ["https://evil.example.com/status", "http://queue.fal.run/status", "x", "", 7])
def test_an_address_that_is_not_the_services_is_not_asked(url):
    service = server()
    service.routes[SUBMIT] = (200, {"request_id": "r1", "status_url": url, "response_url": url, "cancel_url": url})
    service.routes[CANCEL] = (200, {"status": "OK"})
    handle = run(provider(service).start(call(MODEL))).handle
    assert run(provider(service).collect(handle, call(MODEL))).pictures
    assert run(provider(service).cancel(handle)) == "cancelled"
    assert {request.headers["host"] for request in service.requests} == {"queue.fal.run", "v3.fal.media"}


@pytest.mark.parametrize(("status", "cause"), [(401, "credentials"), (403, "credentials"), (500, "overloaded")])
def test_a_request_that_there_is_not_shows_whether_the_key_fits(status, cause):
    service = server()
    run(provider(service).probe())
    path = f"GET {service.requests[0].url.path}"
    service.routes[path] = (status, {"detail": "no"})
    assert failing(provider(service).probe()).cause == cause


def test_what_each_model_can():
    klein, edit, base, other = (
        capabilities(model) for model in (MODEL, f"{MODEL}/edit", f"{MODEL}/base", "fal-ai/flux/dev")
    )
    assert (klein.max_images, klein.max_references, klein.default_steps, klein.cancel) == (4, 4, 4, True)
    assert edit.tasks == {"image.edit"}
    assert ("guidance" in klein.parameters, "guidance" in base.parameters) == (False, True)
    assert (other.tasks, other.max_images) == ({"image.generate"}, 1)
