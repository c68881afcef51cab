import base64
import json
from decimal import Decimal

import httpx2
import pytest

from kleinbild.core.sizes import Size
from kleinbild.providers.bfl import MAX_ACTIVE, BlackForestLabs, capabilities
from kleinbild.providers.hosted import Accepted, Expected
from tests.unit.providers.pictures import picture
from tests.unit.providers.taking_on import KEY, Hooked, Server, Time, call, failing, fetcher_to, run, through_json, told

MODEL = "flux-2-klein-4b"
SUBMIT, RESULT, SAMPLE = f"POST /v1/{MODEL}", "GET /v1/get_result", "GET /results/1/sample.png"
POLLING_URL = "https://api.eu2.bfl.ai/v1/get_result?id=task-1"
DELIVERED = "https://delivery-eu1.bfl.ai/results/1/sample.png?se=2026&sig=abc"
ELSEWHERE = "https://blobs.example.com/results/1/sample.png?sig=abc"
PICTURE = picture()
TASK = {"id": "task-1", "polling_url": POLLING_URL, "cost": 1.4, "input_mp": 0.0, "output_mp": 1.05}


def state(status, **fields):
    return 200, {"id": "task-1", "status": status, "result": None, "details": None, **fields}


def ready(sample=DELIVERED, **fields):
    return state("Ready", result={"sample": sample, "prompt": "a cat", "seed": 7, "duration": 0.7}, **fields)


def server(*polls, task=TASK, sample=None):
    return Server(
        **{
            SUBMIT: (200, task),
            RESULT: list(polls) or [state("Pending"), ready()],
            SAMPLE: sample or httpx2.Response(200, content=PICTURE),
            "GET /v1/credits": (200, {"credits": 12.5}),
        }
    )


def provider(server, **options):
    time = options.pop("time", Time())
    options = {"fetcher": fetcher_to(server), "clock": time.clock, **options}
    return BlackForestLabs(KEY, transport=server.transport, **options)


async def made(provider, asked, watcher=lambda *_: None):
    """By another instance from its handle, as after a crash."""
    accepted = await provider.start(asked, watcher)
    assert isinstance(accepted, Accepted)
    return await provider.collect(through_json(accepted.handle), asked, watcher)


def collected(*polls, **options):
    """What comes of a handle when polls are answered so."""
    service = server(*polls, **options)
    return provider(service).collect({"id": "task-1", "polling_url": POLLING_URL, "charged": "0.014"}, call(MODEL))


def body(server):
    return json.loads(server.asked(SUBMIT)[0].content)


def test_a_picture_is_made():
    service = server()
    answer = run(made(provider(service), call(MODEL)))
    assert [(each.file, each.seed) for each in answer.pictures] == [(PICTURE, 7)]
    assert (answer.charged, answer.seconds, answer.request_id, answer.notes) == (Decimal("0.014"), 0.7, "task-1", ())
    assert body(service) == {"prompt": "a cat", "seed": 7, "width": 32, "height": 24, "output_format": "png"}


def test_a_low_moderation_is_the_loosest_tolerance_that_there_is():
    service = server()
    run(made(provider(service), call(MODEL, moderation="low")))
    assert body(service)["safety_tolerance"] == 5


def test_what_is_taken_on_says_what_it_costs_and_how_to_find_it():
    accepted = run(provider(server()).start(call(MODEL)))
    assert accepted == Accepted(
        {"id": "task-1", "polling_url": POLLING_URL, "charged": "0.014"}, Decimal("0.014"), "task-1"
    )


def test_the_polling_address_of_the_answer_is_polled():
    service = server()
    run(made(provider(service), call(MODEL)))
    assert [str(request.url) for request in service.asked(RESULT)] == [POLLING_URL] * 2


def test_another_instance_collects_what_one_has_begun():
    service = server()
    handle = through_json(run(provider(service).start(call(MODEL))).handle)
    answer = run(provider(service).collect(handle, call(MODEL)))
    assert (answer.charged, len(answer.pictures)) == (Decimal("0.014"), 1)


def test_an_edit_sends_its_pictures_as_base64():
    service = server()
    run(made(provider(service), call(MODEL, references=4, file=PICTURE, size=None)))
    sent = body(service)
    names = ["input_image", "input_image_2", "input_image_3", "input_image_4"]
    assert [base64.b64decode(sent[name]) for name in names] == [PICTURE] * 4
    assert "width" not in sent


def test_the_seed_is_that_of_the_picture():
    service = server()
    run(made(provider(service), call(MODEL, n=3, first=2)))
    assert body(service)["seed"] == 9


def test_flex_takes_steps_and_guidance_and_klein_does_not():
    sent = []
    for model in ("flux-2-flex", MODEL):
        service = server()
        service.routes["POST /v1/flux-2-flex"] = service.routes[SUBMIT]
        run(provider(service).start(call(model, steps=30, guidance=4.0)))
        sent.append(json.loads(service.requests[0].content))
    assert (sent[0]["steps"], sent[0]["guidance"]) == (30, 4.0)
    assert {"steps", "guidance"}.isdisjoint(sent[1])


def test_another_size_than_asked_for_is_a_note():
    answer = run(made(provider(server()), call(MODEL, size=Size(64, 48))))
    assert answer.notes == ("the service made 32x24, not 64x48",)


@pytest.mark.parametrize("status", ["Pending", "Reasoning", "Generating", "Something New", None])
def test_a_status_that_ends_nothing_is_waited_for(status):
    answer = run(collected(state(status), state(status), ready()))
    assert len(answer.pictures) == 1


def test_an_answer_without_json_is_waited_for():
    assert run(
        collected(
            (200, [1]), httpx2.Response(200, content=b"<html>"), httpx2.Response(200, content=b"[" * 99_999), ready()
        )
    ).pictures


def test_a_poll_that_fails_once_does_not_matter():
    assert run(collected(httpx2.ReadError("cut"), httpx2.ConnectError("no"), (503, {}), ready())).pictures


def test_the_cost_that_is_settled_counts():
    assert run(collected(ready(cost=1.5))).charged == Decimal("0.015")


@pytest.mark.parametrize("cost", [None, "much", -1, True, float("inf"), 1e9])
def test_a_cost_that_is_none_is_not_known(cost):
    task = json.dumps({**TASK, "cost": cost}).replace("Infinity", "1e999").encode()
    service = server()
    service.routes[SUBMIT] = httpx2.Response(200, content=task)
    accepted = run(provider(service).start(call(MODEL)))
    assert accepted.charged is None
    assert "charged" not in accepted.handle


@pytest.mark.parametrize(("seed", "duration"), [(-1, -1), (True, True), (2**64, 1e300), ("7", "1"), (1.5, None)])
def test_a_seed_and_a_time_that_cannot_be_are_not_known(seed, duration):
    answer = run(collected(state("Ready", result={"sample": DELIVERED, "seed": seed, "duration": duration})))
    assert (answer.pictures[0].seed, answer.seconds) == (None, None)


@pytest.mark.parametrize("status", ["Request Moderated", "Content Moderated"])
def test_what_is_moderated_is_refused_and_costs_nothing(status):
    error = failing(collected(state(status, details={"Moderation Reasons": ["Safety Filter"]})))
    assert told(error) == ("moderated", "refused", False)
    assert error.detail == "{'Moderation Reasons': ['Safety Filter']}"
    assert error.handle is not None


def test_what_is_moderated_and_charged_all_the_same_is_billed():
    error = failing(collected(state("Content Moderated", cost=1.4)))
    assert (*told(error), error.charged) == ("moderated", "accepted", True, Decimal("0.014"))


@pytest.mark.parametrize(
    ("cost", "expected"),
    [({}, ("accepted", None)), ({"cost": 0}, ("refused", False)), ({"cost": 1.4}, ("accepted", True))],
)
def test_an_error_is_a_failure_whose_cost_is_known_only_if_it_is_told(cost, expected):
    error = failing(collected(state("Error", details={"error": "internal"}, **cost)))
    assert told(error) == ("failed", *expected)


@pytest.mark.parametrize("lost", [state("Task not found"), (404, {"status": "Task not found"})])
def test_a_task_that_is_not_found_is_lost(lost):
    assert told(failing(collected(lost))) == ("not_found", "unknown", None)
    assert run(collected(lost, state("Pending"), ready())).pictures


def test_a_result_that_has_expired_was_paid_for():
    service_says = httpx2.Response(404)
    error = failing(collected(ready(), sample=service_says))
    assert (*told(error), error.charged) == ("bad_answer", "accepted", True, Decimal("0.014"))
    assert error.handle is not None


def test_a_result_that_cannot_be_fetched_once_is_fetched_again():
    answer = run(collected(ready(), sample=[httpx2.ReadError("cut"), httpx2.Response(200, content=PICTURE)]))
    assert answer.pictures


@pytest.mark.parametrize("file", [b"<html>", PICTURE[:-40], b""])
def test_a_result_that_is_no_picture_was_paid_for(file):
    error = failing(collected(ready(), sample=httpx2.Response(200, content=file)))
    assert (*told(error), error.charged) == ("bad_answer", "accepted", True, Decimal("0.014"))


@pytest.mark.parametrize("result", [None, {}, {"sample": None}, {"sample": 7}, "picture"])
def test_ready_without_a_picture_is_a_bad_answer(result):
    assert told(failing(collected(state("Ready", result=result)))) == ("bad_answer", "accepted", True)


def test_what_is_not_done_in_time_goes_on():
    error = failing(collected(state("Pending")))
    assert told(error) == ("timeout", "accepted", None)
    assert error.handle["id"] == "task-1"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ("invalid", "refused", False)),
        (401, ("credentials", "refused", False)),
        (402, ("credit", "refused", False)),
        (403, ("credentials", "refused", False)),
        (404, ("not_found", "refused", False)),
        (422, ("invalid", "refused", False)),
        (429, ("rate_limited", "refused", False)),
        (500, ("overloaded", "unknown", None)),
        (503, ("overloaded", "refused", False)),
    ],
)
def test_each_error_of_the_submission_says_whether_it_was_taken_on(status, expected):
    service = server()
    service.routes[SUBMIT] = httpx2.Response(status, json={"detail": "No."}, headers={"retry-after": "3"})
    error = failing(provider(service).start(call(MODEL)))
    assert told(error) == expected
    assert (error.status, error.retry_after, error.detail) == (status, 3.0, "No.")


def test_the_service_says_what_is_wrong_with_the_request():
    service = server()
    detail = [{"loc": ["body", "width"], "msg": "Input should be greater than 63", "type": "greater_than_equal"}]
    service.routes[SUBMIT] = (422, {"detail": detail})
    assert "Input should be greater than 63" in failing(provider(service).start(call(MODEL))).message


def test_a_lost_answer_leaves_nobody_knowing():
    service = server()
    service.routes[SUBMIT] = httpx2.ReadError("cut")
    assert told(failing(provider(service).start(call(MODEL)))) == ("connection", "unknown", None)


def test_a_connection_that_was_never_made_was_refused():
    service = server()
    service.routes[SUBMIT] = httpx2.ConnectError("no")
    assert told(failing(provider(service).start(call(MODEL)))) == ("connection", "refused", False)


@pytest.mark.parametrize("task", [{}, {"id": None}, {"id": ""}])
def test_a_task_without_a_name_is_taken_on_and_cannot_be_found(task):
    assert told(failing(provider(server(task=task)).start(call(MODEL)))) == ("bad_answer", "accepted", None)


def test_the_key_goes_to_the_service_alone():
    service = server(ready(ELSEWHERE))
    run(made(provider(service), call(MODEL)))
    hosts = {request.headers["host"]: request.headers.get("x-key") for request in service.requests}
    assert hosts == {"api.bfl.ai": KEY, "api.eu2.bfl.ai": KEY, "blobs.example.com": None}


@pytest.mark.parametrize(
    "url",
    ["https://evil.example.com/v1/get_result?id=task-1", "http://api.eu2.bfl.ai/v1/get_result", "https://xbfl.ai/", ""],
)
def test_a_polling_address_that_is_not_the_services_is_not_asked(url):
    service = server(task={**TASK, "polling_url": url})
    answer = run(made(provider(service), call(MODEL)))
    assert answer.pictures
    assert {str(request.url) for request in service.asked(RESULT)} == {"https://api.bfl.ai/v1/get_result?id=task-1"}


def test_the_first_poll_is_when_it_may_be_done():
    time = Time()
    run(made(provider(server(ready()), time=time), call(MODEL, expected=Expected(1.25, 2.0))))
    assert time.waits == [1.25]


def test_a_webhook_is_asked_for_and_wakes_who_waits():
    hooked, service = Hooked("a secret"), server(ready(), task={"id": "task-1", "status": "Pending", "cost": None})
    asked = provider(service, time=hooked, hook=hooked.hook)
    answer = run(hooked.until(made(asked, call(MODEL)), "task-1"))
    assert answer.pictures
    sent = json.loads(service.asked(SUBMIT)[0].content)
    assert (sent["webhook_url"], sent["webhook_secret"]) == (hooked.hook.url, "a secret")


def test_a_task_cannot_be_cancelled():
    assert run(provider(server()).cancel({"id": "task-1"})) == "impossible"
    assert not capabilities(MODEL).cancel


def test_credits_are_asked_for_to_see_that_the_key_fits():
    service = server()
    run(provider(service).probe())
    assert service.requests[0].headers["x-key"] == KEY
    service.routes["GET /v1/credits"] = (403, {"detail": "Not authenticated"})
    assert failing(provider(service).probe()).cause == "credentials"


def test_what_each_model_can():
    klein, flex, older = (capabilities(model) for model in (MODEL, "flux-2-flex", "flux-pro-1.1"))
    assert (klein.max_references, klein.max_images, klein.default_steps) == (4, 1, 4)
    assert klein.parameters == {"size", "seed", "moderation"}
    assert {"steps", "guidance"} <= flex.parameters
    assert flex.max_references == 8
    assert (older.tasks, older.sizes) == ({"image.generate"}, None)
    assert MAX_ACTIVE == 24
