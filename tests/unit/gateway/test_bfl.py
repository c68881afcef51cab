"""What BFL's clients are told of a job, for every way that it can stand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from kleinbild.core.errors import CapacityError, PromptError
from kleinbild.core.jobs import ImageWork, Job, JobError, MadePicture, Outcome
from kleinbild.core.sizes import Size
from kleinbild.gateway import bfl
from kleinbild.gateway.api import bfl as api
from kleinbild.gateway.api.media import Media
from kleinbild.gateway.errors import ApiError, too_many
from kleinbild.gateway.flow.route import model_of
from kleinbild.gateway.wanted import Wanted, read
from tests.unit.gateway import fleets

BASE = "https://pictures.example"
WORK = ImageWork("image.generate", "a fox", "nano", seed=7)
MADE = Outcome("completed", (MadePicture("ab" * 32, 7, Size(64, 64), 100),))
MODERATED = Outcome(
    "failed", error=JobError("not this", "image_generation_user_error", "moderation_blocked", status=400)
)
FAILED = Outcome("failed", error=JobError("out of memory", code="engine_error"))


def job_of(outcome: Outcome | None, status: Any = "running", **more: Any) -> Job:
    status = outcome.status if outcome else status
    return Job("job_1", "c", "p", WORK, 100.0, status, 101.0, outcome and 103.5, outcome, **more)


def services(**progress: Any) -> Any:
    known = {"step": 0, "num_steps": 0, **progress}
    return SimpleNamespace(media=Media(b"s" * 32, 600), hub=SimpleNamespace(progress=lambda _: known))


@pytest.mark.parametrize(
    ("job", "status", "details"),
    [
        (job_of(None, "queued"), "Pending", None),
        (job_of(None, "running"), "Pending", None),
        (job_of(MADE), "Ready", None),
        (job_of(MADE, warnings=("guidance: none",)), "Ready", {"warnings": ["guidance: none"]}),
        (job_of(MODERATED), "Request Moderated", {"Moderation Reasons": ["not this"]}),
        (job_of(FAILED), "Error", {"error": "out of memory", "code": "engine_error"}),
        (job_of(Outcome("cancelled")), "Error", {"error": "the task was cancelled", "code": "cancelled"}),
    ],
)
def test_how_a_task_stands(job: Job, status: str, details: Any) -> None:
    told = bfl.task_object(services(step=1, num_steps=4), job, BASE)
    assert (told["id"], told["status"], told["details"], told["preview"]) == ("job_1", status, details, None)
    assert told["progress"] == (0.25 if status == "Pending" else None)
    assert (told["result"] is not None) == (status == "Ready")


def test_a_result_has_times_and_a_signed_url() -> None:
    result = bfl.task_object(services(), job_of(MADE), BASE)["result"]
    assert result.pop("sample").startswith(f"{BASE}/v1/media/{'ab' * 32}.png?exp=")
    assert result == {"prompt": "a fox", "seed": 7, "start_time": 101.0, "end_time": 103.5, "duration": 2.5}


def test_what_a_webhook_is_told() -> None:
    at = "1970-01-01T00:01:43.500Z"
    ready = bfl.webhook_object(services(), job_of(MADE), None)
    assert ready == {"id": "job_1", "status": "Ready", "result": {"prompt": "a fox", "seed": 7}, "timestamp": at}
    assert bfl.webhook_object(services(), job_of(MADE), BASE)["result"]["sample"].startswith(BASE)
    failed = bfl.webhook_object(services(), job_of(FAILED), BASE)
    error = {"error": "engine_error", "message": "out of memory"}
    assert failed == {"id": "job_1", "status": "Error", **error, "timestamp": at}
    assert bfl.webhook_object(services(), job_of(MODERATED), BASE)["status"] == "Request Moderated"


@pytest.mark.parametrize(
    ("error", "status", "loc"),
    [
        (ApiError(401, "no key"), 403, None),
        (ApiError(403, "not this model", param="model"), 403, None),
        (ApiError(400, "no object"), 400, None),
        (ApiError(400, "too large", param="size"), 422, ["body", "width"]),
        (ApiError.of(PromptError("no such word")), 422, ["body", "prompt"]),
        (ApiError.of(CapacityError("too large")), 400, None),
        (too_many("the queue is full", 3), 429, None),
        (ApiError(503, "the server is stopping"), 503, None),
    ],
)
def test_a_refusal_is_bfls(error: ApiError, status: int, loc: list[str] | None) -> None:
    answer = api.refusal(error)
    detail = json.loads(bytes(answer.body))["detail"]
    assert answer.status_code == status
    if loc is None:
        assert detail == error.message
    else:
        assert [(each["loc"], each["msg"]) for each in detail] == [(loc, error.message)]
    assert answer.headers.get("retry-after") == error.headers.get("Retry-After")


@pytest.mark.parametrize("name", api.MODELS)
def test_each_name_is_the_model_that_is_served_or_the_first_stands_in(name: str) -> None:
    ours = api.MODELS[name]
    request = Request({"type": "http", "path": f"/v1/{name}", "headers": []})
    wanted = api.Inputs(prompt="a fox")  # type: ignore[call-arg]
    for models in (("nano",), ("nano", ours) if ours else ("nano", "klein-4b")):
        served = fleets.models(*models)
        asked = api._ours(request, SimpleNamespace(fleet=served), wanted)  # type: ignore[arg-type]
        assert model_of(served, asked)[0] == (ours if ours in models else "nano")


def test_a_served_model_of_a_hosted_name_is_not_stood_in_for() -> None:
    named = read(Wanted, {"prompt": "a fox", "model": "flux-2-mine"})
    assert model_of(fleets.models("nano", "flux-2-mine"), named) == ("flux-2-mine", ())
    model, told = model_of(fleets.models("nano"), named)
    assert (model, told) == ("nano", ("model: flux-2-mine is not served here, nano made it",))
    with pytest.raises(ApiError, match="does not exist"):
        model_of(fleets.models("nano"), read(Wanted, {"prompt": "a", "model": "flux-2-mine", "strict": True}))


def test_unknown_fields_are_told_of_but_not_at_any_length() -> None:
    unknown = {f"{'x' * 1000}{number}": 1 for number in range(1000)}
    (told,) = api.Inputs(prompt="a fox", **unknown).warnings()  # type: ignore[call-arg]
    assert len(told) < 1000
    assert told.endswith("and others: unknown, ignored")
