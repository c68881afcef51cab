"""Fine-tuning jobs: what a request becomes for the trainer, who sees and may what, and who is told of the end."""

from __future__ import annotations

import asyncio
import io
import json
import tomllib
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError, ProgrammingError

from kleinbild.core.callers import Caller
from kleinbild.core.errors import RequestError
from kleinbild.core.training import Checkpointed, Failed, Progressed, Started, Warned, to_line
from kleinbild.gateway.app import create_app
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow import authenticate, tune
from kleinbild.gateway.flow.results import metrics_csv
from kleinbild.gateway.flow.tune import check_archive, write_recipe
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.gateway.tunings import WantedTuning, adapter_name, happening, job_object, number_in, recipe_of
from kleinbild.gateway.wanted import read
from kleinbild.providers.training import Heard, Trainer
from kleinbild.storage import tunings
from kleinbild.storage.tunings import Happening, Hyperparameters, Tuning, Wanted
from tests.receiver import Receiver, receiving

pytestmark = pytest.mark.anyio
GIVEN = {"model": "nano", "training_file": "file_1"}
ALL_AUTO = Hyperparameters()
ADA = Caller("ada", owner="ada", project="red")


def tuning(hyperparameters: Hyperparameters = ALL_AUTO, **recipe: Any) -> Tuning:
    wanted = Wanted("nano-base", "file_1", 7, "fox", hyperparameters, recipe)
    return Tuning("ftjob_1", "key", "red", "nano", "fox-1", wanted, 100.0)


def recipe_for(folder: Path, known: Tuning) -> dict[str, Any]:
    write_recipe(folder, known)
    return tomllib.loads((folder / "recipe.toml").read_text("utf-8"))


def test_the_trainer_is_told_what_was_asked_for(tmp_path: Path) -> None:
    plain = recipe_for(tmp_path, tuning(about='a "fox"', trigger_words=["ö"], rank=4))
    assert plain == {
        "model": "nano-base",
        "data": str(tmp_path / "data.zip"),
        "name": "fox-1",
        "seed": 7,
        "about": 'a "fox"',
        "trigger_words": ["ö"],
        "rank": 4,
    }
    chosen = Hyperparameters(n_epochs=3, batch_size=2, learning_rate_multiplier=0.5)
    told = recipe_for(tmp_path, tuning(chosen, samples_an_example=30, steps=9))
    assert (told["epochs"], told["batch_size"]) == (3.0, 2)
    assert "steps" not in told
    assert "samples_an_example" not in told
    usual = recipe_for(tmp_path, tuning(Hyperparameters(learning_rate_multiplier=1)))["learning_rate"]
    assert told["learning_rate"] == pytest.approx(usual / 2)
    named = recipe_for(tmp_path, tuning(Hyperparameters(learning_rate_multiplier=2.0), learning_rate=0.001))
    assert named["learning_rate"] == pytest.approx(0.002)


def test_a_validation_file_is_data_to_measure_on(tmp_path: Path) -> None:
    plain = tuning()
    given = replace(plain, wanted=replace(plain.wanted, validation_file="file_2"))
    assert recipe_for(tmp_path, given)["validation_data"] == str(tmp_path / "validation.zip")
    assert job_object(given)["validation_file"] == "file_2"


def test_a_recipe_is_a_name_or_values_or_both() -> None:
    named = recipe_of(read(WantedTuning, {**GIVEN, "recipe": "style"}))
    both = recipe_of(read(WantedTuning, {**GIVEN, "recipe": {"name": "style", "rank": 3}}))
    assert both == {**named, "rank": 3}
    assert recipe_of(read(WantedTuning, GIVEN)) == {}
    for wrong in ("/etc/passwd", {"name": ["style"]}, {"name": "../style"}):
        with pytest.raises(ApiError, match="there is no recipe"):
            recipe_of(read(WantedTuning, {**GIVEN, "recipe": wrong}))


def test_hyperparameters_stand_in_either_place() -> None:
    old = read(WantedTuning, {**GIVEN, "hyperparameters": {"n_epochs": 2}})
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}
    assert old.chosen == read(WantedTuning, {**GIVEN, "method": method}).chosen == Hyperparameters(n_epochs=2)
    with pytest.raises(ApiError, match="differ"):
        read(WantedTuning, {**GIVEN, "hyperparameters": {"n_epochs": 3}, "method": method})


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("My Fox!", "my-fox-12345678"),
        (None, "nano-12345678"),
        ("***", "adapter-12345678"),
        ("ü" * 64, "adapter-12345678"),
    ],
)
def test_an_adapter_is_called_by_the_suffix(suffix: str | None, name: str) -> None:
    assert adapter_name(read(WantedTuning, {**GIVEN, "suffix": suffix}), "ftjob_x12345678") == name


def test_an_archive_is_looked_at_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fox/1.PNG", b"\0" * 5_000_000)
    check_archive(path, 5_000_000)
    with pytest.raises(RequestError, match="5 MB unpacked, more than 4"):
        check_archive(path, 4_000_000)


def test_what_the_trainer_says_in_openais_words() -> None:
    known = tuning()
    assert happening(known, Started(0, 10, "nano-base", 3, 7), 1.0).message == "Fine-tuning job started"
    assert happening(known, Started(4, 10, "nano-base", 3, 7), 1.0).message == "Fine-tuning job goes on at step 4"
    step = happening(known, Progressed(5, 10, 0.25, 1e-4, 9.0), 1.0)
    assert (step.message, step.type) == ("Step 5/10: training loss=0.2500", "metrics")
    assert step.data == {"step": 5, "total_steps": 10, "train_loss": 0.25, "learning_rate": 1e-4}
    snapshot = happening(known, Checkpointed(5, "c"), 1.0).message
    assert snapshot == "Checkpoint created at step 5 with Snapshot ID: ft:nano:fox-1:ckpt-step-5"
    assert happening(known, Warned("few"), 1.0).level == "warn"
    failed = happening(known, Failed("RequestError", "bad", "mend it"), 1.0)
    assert (failed.level, failed.message) == ("error", "bad; mend it")


def test_metrics_are_a_line_a_step() -> None:
    events = [
        Happening("a", 1.0, data={"step": 2, "train_loss": 0.5, "learning_rate": 0.1, "total_steps": 9}),
        Happening("b", 1.0),
        Happening("c", 1.0, data={"step": 2, "valid_loss": 0.7, "by_time": {}}),
        Happening("d", 1.0, data={"step": 1, "train_loss": 0.9, "learning_rate": 0.1}),
    ]
    assert metrics_csv(events) == "step,train_loss,valid_loss,learning_rate\n1,0.9,,0.1\n2,0.5,0.7,0.1\n"


def test_pages_go_on_after_ids_of_the_same_job_alone() -> None:
    assert number_in("ftevent", "ftjob_1", None) is None
    assert number_in("ftevent", "ftjob_1", "ftevent_1_000012") == 12
    for wrong in ("ftevent_2_000012", "ftckpt_1_000012", "12" * 9, "ftevent_1_x"):
        with pytest.raises(ApiError, match="none of the job's ids"):
            number_in("ftevent", "ftjob_1", wrong)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@pytest.fixture(scope="module")
async def services(
    anyio_backend: str, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Services]:
    settings = Settings.model_validate(
        {
            "server": {"data": tmp_path_factory.mktemp("data")},
            "limits": {"allowed_networks": ["127.0.0.0/8"], "allowed_ports": [receiver.port]},
            "fine_tuning": {"max_jobs": 2, "max_file_mb": 0.01},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEINBILD_HOME", str(settings.data))
        async with open_services(settings, Trainer("tests.trainer")) as opened:
            yield opened


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(services.settings)
    app.state.services = services
    app.dependency_overrides[authenticate.caller] = lambda: ADA
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as opened:
        opened.app = app  # type: ignore[attr-defined]
        yield opened


def become(client: httpx2.AsyncClient, caller: Caller) -> None:
    app: FastAPI = client.app  # type: ignore[attr-defined]
    app.dependency_overrides[authenticate.caller] = lambda: caller


async def uploaded(client: httpx2.AsyncClient, data: bytes | None = None) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.png", b"a picture, for all that is looked at here")
    file = {"file": ("a.zip", packed.getvalue() if data is None else data)}
    return str((await client.post("/v1/files", files=file, data={"purpose": "fine-tune"})).json()["id"])


async def created(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    body = {"model": "nano", "training_file": await uploaded(client), **fields}
    return await client.post("/v1/fine_tuning/jobs", json=body)


async def test_a_job_is_its_projects_and_viewers_look_on(client: httpx2.AsyncClient) -> None:
    job = (await created(client, recipe={"steps": 50})).json()
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    become(client, Caller("bob", owner="bob", project="blue"))
    for method, end in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("GET", "/events"),
        ("GET", "/checkpoints"),
    ):
        answer = await client.request(method, path + end)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "fine_tune_not_found"), end
    assert (await client.get("/v1/fine_tuning/jobs")).json()["data"] == []
    taken = await client.post("/v1/fine_tuning/jobs", json={"model": "nano", "training_file": job["training_file"]})
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "training_file")
    become(client, Caller("eve", owner="eve", project="red", role="viewer"))
    assert (await client.get(path)).json()["id"] == job["id"]
    for end in ("/cancel", "/pause", "/resume"):
        assert (await client.post(path + end)).status_code == 403
    assert (await client.post("/v1/fine_tuning/jobs", json=GIVEN)).status_code == 403
    become(client, Caller("key", owner="ada", project="red", models=("other",)))
    assert (await created(client)).json()["error"]["code"] == "model_not_allowed"
    become(client, ADA)
    assert (await client.post(path + "/cancel")).json()["status"] == "cancelled"


async def test_a_project_has_so_many_and_files_are_so_large(client: httpx2.AsyncClient) -> None:
    become(client, Caller("cid", owner="cid", project="green"))
    jobs = [(await created(client, recipe={"steps": 50})).json()["id"] for _ in range(2)]
    full = await created(client)
    assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
    for job in jobs:
        await client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    large = await created(client, training_file=await uploaded(client, b"0" * 20_000))
    assert (large.status_code, large.json()["error"]["param"]) == (400, "training_file")
    assert "takes files of 0.01 MB for training" in large.json()["error"]["message"]


async def test_a_validation_file_is_the_projects_too_and_looked_at(client: httpx2.AsyncClient) -> None:
    become(client, ADA)
    job = (await created(client, validation_file=await uploaded(client), recipe={"steps": 50})).json()
    said = [each["message"] for each in (await client.get(f"/v1/fine_tuning/jobs/{job['id']}/events")).json()["data"]]
    assert any(each.endswith(f"and validation file: {job['validation_file']}") for each in said)
    await client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    broken = (await created(client, validation_file=await uploaded(client, b"no zip"))).json()
    while (failed := (await client.get(f"/v1/fine_tuning/jobs/{broken['id']}")).json())["status"] != "failed":
        assert failed["status"] == "validating_files"
        await asyncio.sleep(0.02)
    assert (failed["error"]["code"], failed["error"]["param"]) == ("invalid_validation_file", "validation_file")
    become(client, Caller("bob", owner="bob", project="blue"))
    taken = await created(client, validation_file=job["validation_file"])
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "validation_file")


async def test_the_end_is_told_to_webhooks_that_want_it(client: httpx2.AsyncClient, receiver: Receiver) -> None:
    for path, events in (("/wants", ["fine_tuning.job.cancelled"]), ("/other", ["job.completed"])):
        hook = await client.post("/v1/webhooks", json={"url": receiver.url(path), "events": events})
        assert hook.status_code == 201, hook.text
    job = (await created(client, recipe={"steps": 50})).json()["id"]
    await client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    (told,) = await asyncio.to_thread(receiver.wait, "/wants", 1)
    body = json.loads(told.body)
    assert (body["object"], body["type"], body["data"]) == ("event", "fine_tuning.job.cancelled", {"id": job})
    assert receiver.wait("/other", 0) == []


async def test_a_database_that_is_gone_for_a_while_is_waited_for(
    client: httpx2.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tune, "AGAIN_SECONDS", 0.01)
    waiting = tunings.waiting
    failures = [
        OperationalError("", None, Exception()),
        ProgrammingError("a bug", None, Exception()),
        OperationalError("", None, Exception()),
    ]

    async def failing(*arguments: Any) -> Tuning | None:
        if failures:
            raise failures.pop()
        return await waiting(*arguments)

    monkeypatch.setattr(tunings, "waiting", failing)
    job = (await created(client, recipe={"steps": 50})).json()
    async with asyncio.timeout(10):
        while job["status"] == "validating_files":
            await asyncio.sleep(0.02)
            job = (await client.get(f"/v1/fine_tuning/jobs/{job['id']}")).json()
    assert not failures
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ProgrammingError]
    await client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")


async def test_a_server_that_stops_while_it_keeps_what_it_heard_locks_nothing(
    services: Services, tmp_path: Path
) -> None:
    job = replace(tuning(), id="ftjob_stopped", adapter="stopped", status="running")
    async with services.database.write() as connection:
        await tunings.add(connection, job)
    heard, told = Heard(tmp_path, 0.0), 40
    for number in range(told):
        with (tmp_path / "events.jsonl").open("a") as file:
            file.write(to_line(Progressed(number + 1, told, 0.5, 1e-4, 9.0), float(number + 1)) + "\n")
        taking = asyncio.create_task(services.tunings._take(job, heard))
        await asyncio.sleep(number / 10_000)  # into the transaction, or before or after it
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
    async with asyncio.timeout(2), services.database.write() as connection:
        kept = await tunings.events(connection, job.id, limit=100)
    assert [each.data["step"] for each in kept if each.data] == list(range(told, 0, -1))
