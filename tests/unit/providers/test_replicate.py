import base64
import json

import httpx2
import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.hosted import Accepted, Answer, Expected
from kleinbild.providers.replicate import Replicate, capabilities, nearest
from tests.unit.providers.pictures import noise, picture
from tests.unit.providers.taking_on import KEY, Hooked, Server, Time, call, failing, fetcher_to, run, through_json, told

MODEL = "black-forest-labs/flux-2-klein-4b"
SUBMIT, GET, CANCEL = f"POST /v1/models/{MODEL}/predictions", "GET /v1/predictions/p1", "POST /v1/predictions/p1/cancel"
OUTPUT, FILES = "GET /xezq/out-0.png", "POST /v1/files"
DELIVERED = "https://replicate.delivery/xezq/out-0.png"
API = "https://api.replicate.com/v1/predictions/p1"
PICTURE = picture()
HANDLE = {"id": "p1", "get": API, "cancel": f"{API}/cancel"}


def prediction(status, **fields):
    return {
        "id": "p1",
        "model": MODEL,
        "version": "hidden",
        "input": {"prompt": "a cat"},
        "logs": "",
        "output": None,
        "data_removed": False,
        "error": None,
        "status": status,
        "source": "api",
        "created_at": "2026-11-22T00:00:00.000Z",
        "started_at": None,
        "completed_at": None,
        "urls": {"web": "https://replicate.com/p/p1", "get": API, "cancel": f"{API}/cancel"},
        **fields,
    }


BEGUN = {"started_at": "2026-11-22T00:00:01.000Z"}
STARTING, PROCESSING = prediction("starting"), prediction("processing", **BEGUN)
SUCCEEDED = prediction("succeeded", output=[DELIVERED], metrics={"predict_time": 0.6}, **BEGUN)


def server(*polls, submitted=(201, STARTING)):
    return Server(
        **{
            SUBMIT: submitted,
            GET: [(200, each) if "status" in each else each for each in polls] or [(200, PROCESSING), (200, SUCCEEDED)],
            OUTPUT: httpx2.Response(200, content=PICTURE),
            "GET /v1/account": (200, {"type": "user", "username": "me"}),
        }
    )


def provider(server, **options):
    options = {"clock": Time().clock, "fetcher": fetcher_to(server), **options}
    return Replicate(KEY, transport=server.transport, **options)


def collected(*polls):
    return provider(server(*polls)).collect(HANDLE, call(MODEL, size=None))


def sent(server):
    return json.loads(server.asked(SUBMIT)[0].content)


def test_a_picture_that_is_made_within_the_request():
    service = server(submitted=(201, SUCCEEDED))
    answer = run(provider(service).start(call(MODEL)))
    assert isinstance(answer, Answer)
    assert [(each.file, each.seed) for each in answer.pictures] == [(PICTURE, None)]
    assert (answer.charged, answer.seconds, answer.request_id) == (None, 0.6, "p1")
    assert service.asked(GET) == []


@pytest.mark.parametrize("code", [200, 201, 202])
@pytest.mark.parametrize("body", [STARTING, PROCESSING, SUCCEEDED])
def test_the_status_tells_how_it_stands_and_not_the_code(code, body):
    made = run(provider(server(submitted=(code, body))).start(call(MODEL)))
    assert isinstance(made, Answer if body is SUCCEEDED else Accepted)


def test_another_instance_collects_what_one_has_begun():
    service = server()
    accepted = run(provider(service).start(call(MODEL)))
    assert accepted == Accepted(HANDLE, request_id="p1")
    answer = run(provider(service).collect(through_json(accepted.handle), call(MODEL)))
    assert [each.file for each in answer.pictures] == [PICTURE]


@pytest.mark.parametrize(
    ("options", "seconds", "prefer", "cancel_after"),
    [
        ({}, 600.0, "wait=60", "600s"),
        ({}, 30.5, "wait=15", "31s"),
        ({"wait_seconds": 5}, 600.0, "wait=5", "600s"),
        ({"wait_seconds": 0}, 600.0, None, "600s"),
        ({}, 1.0, None, "5s"),
        ({"hook": Hooked().hook}, 600.0, None, "600s"),
    ],
)
def test_it_is_held_and_cancelled_within_the_time_that_is_left(options, seconds, prefer, cancel_after):
    service = server()
    run(provider(service, **options).start(call(MODEL, seconds=seconds)))
    headers = service.asked(SUBMIT)[0].headers
    assert (headers.get("prefer"), headers["cancel-after"]) == (prefer, cancel_after)


@pytest.mark.parametrize(("usual", "prefer"), [(50.0, "wait=60"), (61.0, None)])
def test_it_is_not_held_for_what_takes_longer_than_that(usual, prefer):
    service = server()
    run(provider(service).start(call(MODEL, seconds=600.0, expected=Expected(1.0, usual))))
    assert service.asked(SUBMIT)[0].headers.get("prefer") == prefer


def test_a_webhook_is_asked_for_and_wakes_who_waits():
    hooked, service = Hooked(), server(SUCCEEDED)
    asked = provider(service, clock=hooked.clock, hook=hooked.hook)

    async def made():
        accepted = await asked.start(call(MODEL))
        return await hooked.until(asked.collect(accepted.handle, call(MODEL)), "p1")

    assert run(made()).pictures
    sent = json.loads(service.asked(SUBMIT)[0].content)
    assert (sent["webhook"], sent["webhook_events_filter"]) == (hooked.hook.url, ["completed"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), ("1:1", "1")),
        ((1920, 1080), ("16:9", "2")),
        ((1080, 1920), ("9:16", "2")),
        ((512, 512), ("1:1", "0.25")),
        ((2048, 2048), ("1:1", "4")),
        ((1000, 700), ("3:2", "0.5")),
        ((4000, 500), ("21:9", "2")),
    ],
)
def test_a_size_is_asked_for_as_the_nearest_shape_and_area(size, expected):
    assert nearest(Size(*size)) == expected


def test_another_size_than_asked_for_is_a_note():
    service = server()
    answer = run(provider(service).collect(HANDLE, call(MODEL, size=Size(1024, 576))))
    assert answer.notes == (
        "the service takes shapes, not sizes: 16:9 with 0.5 megapixels is nearest to 1024x576",
        "the service made 32x24, not 1024x576",
    )


def test_a_request_says_what_it_is_for():
    service = server()
    run(provider(service).start(call(MODEL, size=Size(1024, 1024), output_format="jpeg", compression=80, first=1)))
    assert sent(service) == {
        "input": {
            "prompt": "a cat",
            "seed": 8,
            "output_format": "jpg",
            "output_quality": 80,
            "aspect_ratio": "1:1",
            "output_megapixels": "1",
        }
    }


def test_a_small_picture_goes_along_and_an_edit_keeps_its_shape():
    service = server()
    run(provider(service).start(call(MODEL, references=2, file=PICTURE, size=None)))
    given = sent(service)["input"]
    assert given["images"] == [f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"] * 2
    assert given["aspect_ratio"] == "match_input_image"


LARGE = noise("PNG", (420, 420))


def test_a_large_picture_is_uploaded_before():
    service = server()
    url = "https://api.replicate.com/v1/files/f1"
    service.routes[FILES] = (201, {"id": "f1", "urls": {"get": url}})
    run(provider(service).start(call(MODEL, references=1, file=LARGE)))
    assert len(LARGE) > 256_000
    assert LARGE in service.asked(FILES)[0].content
    assert sent(service)["input"]["images"] == [url]


@pytest.mark.parametrize(
    "answer", [httpx2.ReadError("cut"), httpx2.ConnectError("no"), (413, {}), (500, {}), (201, {}), (201, {"urls": 7})]
)
def test_an_upload_that_fails_has_bought_nothing(answer):
    service = server()
    service.routes[FILES] = answer
    error = failing(provider(service).start(call(MODEL, references=1, file=LARGE)))
    assert (error.acceptance, error.billed) == ("refused", False)
    assert service.asked(SUBMIT) == []


def test_a_model_with_a_version_and_unknown_fields_gets_what_all_take():
    service = server()
    service.routes["POST /v1/predictions"] = (201, STARTING)
    run(provider(service).start(call("someone/model:abc")))
    body = json.loads(service.asked("POST /v1/predictions")[0].content)
    assert body == {"version": "someone/model:abc", "input": {"prompt": "a cat", "seed": 7}}


def test_a_poll_that_fails_once_does_not_matter():
    service = server(STARTING)
    service.routes[GET] = [httpx2.ReadError("cut"), (503, {}), (200, PROCESSING), (200, SUCCEEDED)]
    assert run(provider(service).collect(HANDLE, call(MODEL))).pictures


@pytest.mark.parametrize("status", ["queued", None])
def test_a_status_that_nobody_knows_is_waited_for(status):
    assert run(collected(prediction(status), SUCCEEDED)).pictures


@pytest.mark.parametrize(
    "error",
    [
        "NSFW content detected. Try running it again, or try a different prompt.",
        "The input or output was flagged as sensitive. Please try again with different inputs. (E005)",
        "Content moderated",
    ],
)
def test_a_failure_by_the_safety_system_is_moderation(error):
    failed = failing(collected(prediction("failed", error=error, **BEGUN)))
    assert told(failed) == ("moderated", "accepted", None)
    assert (failed.detail, failed.handle) == (error, HANDLE)


@pytest.mark.parametrize("error", ["CUDA out of memory", "", None])
def test_a_failure_is_of_work_that_was_taken_on(error):
    assert told(failing(collected(prediction("failed", error=error)))) == ("failed", "accepted", None)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (prediction("aborted"), ("cancelled", "refused", False)),
        (prediction("canceled"), ("cancelled", "refused", False)),
        (prediction("canceled", **BEGUN), ("cancelled", "accepted", None)),
        (prediction("canceled", metrics={"predict_time": 0.2}), ("cancelled", "accepted", None)),
    ],
)
def test_what_was_ended_before_it_began_costs_nothing(ended, expected):
    assert told(failing(collected(ended))) == expected


def test_a_failure_within_the_request_has_its_handle():
    service = server(submitted=(201, prediction("failed", error="NSFW")))
    error = failing(provider(service).start(call(MODEL)))
    assert (*told(error), error.handle) == ("moderated", "accepted", None, HANDLE)


def test_output_that_is_deleted_was_paid_for():
    error = failing(collected(prediction("succeeded", data_removed=True, **BEGUN)))
    assert (*told(error), error.handle) == ("bad_answer", "accepted", True, HANDLE)


@pytest.mark.parametrize("output", [None, [], [DELIVERED] * 2, {"url": DELIVERED}, [7]])
def test_output_of_another_kind_or_number_is_a_bad_answer(output):
    assert told(failing(collected({**SUCCEEDED, "output": output}))) == ("bad_answer", "accepted", True)


def test_output_may_be_one_picture_or_a_data_url():
    assert run(collected({**SUCCEEDED, "output": DELIVERED})).pictures
    url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    assert run(collected({**SUCCEEDED, "output": [url]})).pictures[0].file == PICTURE


def test_a_result_that_has_expired_was_paid_for():
    service = server(SUCCEEDED)
    service.routes[OUTPUT] = httpx2.Response(404)
    assert told(failing(provider(service).collect(HANDLE, call(MODEL)))) == ("bad_answer", "accepted", True)


def test_a_prediction_that_nobody_knows_is_lost():
    service = server(SUCCEEDED)
    service.routes[GET] = (404, {"detail": "Not found"})
    assert told(failing(provider(service).collect(HANDLE, call(MODEL)))) == ("not_found", "unknown", None)


def test_what_is_not_done_in_time_goes_on():
    assert told(failing(collected(PROCESSING))) == ("timeout", "accepted", None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ("invalid", "refused", False)),
        (401, ("credentials", "refused", False)),
        (402, ("credit", "refused", False)),
        (404, ("not_found", "refused", False)),
        (422, ("invalid", "refused", False)),
        (429, ("rate_limited", "refused", False)),
        (500, ("overloaded", "unknown", None)),
        (503, ("overloaded", "refused", False)),
    ],
)
def test_each_error_of_the_submission_says_whether_it_was_taken_on(status, expected):
    service = server(submitted=(status, {"title": "No", "detail": "prompt is required", "status": status}))
    error = failing(provider(service).start(call(MODEL)))
    assert told(error) == expected
    assert "prompt is required" in error.detail


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx2.ReadError("cut"), ("connection", "unknown", None)),
        (httpx2.ReadTimeout("late"), ("timeout", "unknown", None)),
        (httpx2.ConnectError("no"), ("connection", "refused", False)),
        ((201, {"status": "starting"}), ("bad_answer", "accepted", None)),
    ],
)
def test_a_submission_without_an_answer(failure, expected):
    assert told(failing(provider(server(submitted=failure)).start(call(MODEL)))) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (prediction("canceled"), "cancelled"),
        (prediction("aborted"), "cancelled"),
        (prediction("canceled", **BEGUN), "impossible"),
        (PROCESSING, "impossible"),
        (SUCCEEDED, "too_late"),
        (prediction("failed", error="x"), "too_late"),
    ],
)
def test_what_comes_of_cancelling(answer, expected):
    service = server()
    service.routes[CANCEL] = (200, answer)
    assert run(provider(service).cancel(HANDLE)) == expected
    assert service.asked(CANCEL)[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("answer", [httpx2.ConnectError("no"), (404, {}), (429, {}), (500, {})])
def test_cancelling_that_fails_says_nothing_of_the_work(answer):
    service = server()
    service.routes[CANCEL] = answer
    error = failing(provider(service).cancel(HANDLE))
    assert (error.acceptance, error.billed, error.handle) == ("accepted", None, HANDLE)


def test_the_key_goes_to_the_service_alone():
    service = server({**SUCCEEDED, "output": ["https://blobs.example.com/xezq/out-0.png"]})
    run(provider(service).collect(HANDLE, call(MODEL)))
    keys = {request.headers["host"]: request.headers.get("authorization") for request in service.requests}
    assert keys == {"api.replicate.com": f"Bearer {KEY}", "blobs.example.com": None}


@pytest.mark.parametrize("url", ["https://evil.example.com/v1/predictions/p1", "http://api.replicate.com/x", "x"])
def test_an_address_that_is_not_the_services_is_not_asked(url):
    service = server()
    service.routes[CANCEL] = (200, prediction("canceled"))
    handle = {"id": "p1", "get": url, "cancel": url}
    assert run(provider(service).collect(handle, call(MODEL))).pictures
    assert run(provider(service).cancel(handle)) == "cancelled"
    hosts = {request.headers["host"] for request in service.requests}
    assert hosts == {"api.replicate.com", "replicate.delivery"}


def test_the_account_is_asked_for_to_see_that_the_key_fits():
    service = server()
    run(provider(service).probe())
    service.routes["GET /v1/account"] = (401, {"detail": "no"})
    assert failing(provider(service).probe()).cause == "credentials"


def test_what_each_model_can():
    klein, other = capabilities(MODEL), capabilities("someone/model")
    assert (klein.max_references, klein.max_images, klein.sizes, klein.cancel) == (5, 1, None, True)
    assert "16:9" in klein.ratios
    assert (other.tasks, other.parameters) == ({"image.generate"}, {"seed"})


@pytest.mark.parametrize(
    "body",
    [STARTING, PROCESSING, SUCCEEDED, prediction("failed", error="NSFW", **BEGUN), prediction("canceled")],
    ids=lambda body: body["status"],
)
def test_the_answers_here_are_those_that_replicates_own_package_reads(body):
    package = pytest.importorskip("replicate.prediction")
    assert package.Prediction(**body).status == body["status"]
