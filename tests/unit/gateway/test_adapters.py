"""Adapters at the server: which there are, whose, and what a request that names some gets; with the engine's real process."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from kleinbild.core.adapters import AdapterUse, Card
from kleinbild.core.callers import LOCAL, Caller
from kleinbild.gateway.app import create_app
from kleinbild.gateway.flow import authenticate
from kleinbild.gateway.flow.adapt import TunedModel
from kleinbild.gateway.lifespan import open_services
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Settings
from kleinbild.model.adapters import registry
from kleinbild.storage import audit, jobs, tunings
from kleinbild.storage.tunings import Tuning, Wanted
from tests.trainer import write_lora

pytestmark = pytest.mark.anyio
ADA = Caller("ada", owner="ada", project="red")
BOB = Caller("bob", owner="bob", project="blue")
SETTINGS = {
    "providers": [{"name": "far", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}],
    "deployments": [
        {"name": "far-sketch", "model": "sketch", "provider": "far", "price": {"per_image": "0.01"}},
        {"name": "far-nano", "model": "both", "provider": "far", "price": {"per_image": "0"}},
        {
            "name": "near-nano",
            "model": "both",
            "provider": "local",
            "provider_model": "nano-base",
            "price": {"per_image": 0},
        },
    ],
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("home")
        patch.setenv("KLEINBILD_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
async def services(anyio_backend: str, home: Path) -> AsyncIterator[Services]:
    settings = Settings.model_validate(
        {"server": {"data": home / "server"}, "engine": {"models": ["nano", "nano-base"]}, **SETTINGS}
    )
    async with open_services(settings) as opened:
        for name, project in (("hers", "red"), ("his", "blue")):
            known = Tuning(f"ftjob_{name}", "key", project, "nano", name, Wanted("nano-base", "file_1", 1), time.time())
            async with opened.database.write() as connection:
                await tunings.add(connection, known)
                await tunings.change(connection, known.id, ["validating_files"], "succeeded")
        for name, family in (("crayon", "nano"), ("large", "klein-4b"), ("hers", "nano"), ("his", "nano")):
            register(home, name, family)
        yield opened


@pytest.fixture(scope="module")
def app(services: Services) -> FastAPI:
    made = create_app(services.settings)
    made.state.services = services
    return made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as opened:
        with asking(app, ADA):
            yield opened


@contextmanager
def asking(app: FastAPI, caller: Caller) -> Iterator[None]:
    before = dict(app.dependency_overrides)
    app.dependency_overrides[authenticate.caller] = lambda: caller
    yield
    app.dependency_overrides = before


def register(home: Path, name: str, family: str) -> None:
    file = write_lora(home / f"{name}.safetensors")
    registry.register(file, Card(name, family, registry.digest(file), file.stat().st_size, 1.0, trigger_words=("toy",)))


async def made(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    body = {"prompt": "a fox on a mint background", "size": "64x64", "seed": 1, **fields}
    return await client.post("/v1/images/generations", json=body)


async def work_of(services: Services, answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    async with services.database.read() as connection:
        job = await jobs.find(connection, answer.json()["id"])
    assert job is not None
    return job.work


async def test_a_request_names_adapters_with_strengths(client: httpx2.AsyncClient, services: Services) -> None:
    plain = await made(client)
    answer = await made(client, adapters=[{"name": "crayon", "scale": 2.5}, "hers"])
    assert (await work_of(services, answer)).adapters == (AdapterUse("crayon", 2.5), AdapterUse("hers"))
    assert answer.json()["data"][0]["b64_json"] != plain.json()["data"][0]["b64_json"]
    nothing = await made(client, adapters=[{"name": "crayon", "scale": 0}])
    assert nothing.json()["data"][0]["b64_json"] != answer.json()["data"][0]["b64_json"]
    job = (await client.get(f"/v1/jobs/{answer.json()['id']}")).json()
    assert job["input"]["adapters"] == [{"name": "crayon", "scale": 2.5}, {"name": "hers", "scale": None}]
    usage = (await client.get("/v1/usage", params={"group_by": "adapters"})).json()["data"]
    assert {row["adapters"]: row["images"] for row in usage} == {"": 1, "crayon": 1, "crayon, hers": 1}
    decision = (await client.get(f"/v1/decisions/{answer.headers['x-kleinbild-decision']}")).json()
    assert (decision["candidates"][0]["deployment"], decision["adapters"]) == ("nano", "crayon 2.5, hers")
    attempt = (await client.get(f"/v1/jobs/{answer.json()['id']}/attempts")).json()["data"][0]
    assert attempt["adapters"] == "crayon, hers"


@pytest.mark.parametrize("model", ["ft:nano:crayon", "crayon", "ft:nano:hers"])
async def test_a_fine_tuned_model_is_a_model_with_an_adapter(
    client: httpx2.AsyncClient, services: Services, model: str
) -> None:
    work = await work_of(services, await made(client, model=model))
    assert (work.model, work.adapters) == ("nano", (AdapterUse(model.rpartition(":")[2]),))
    both = await work_of(services, await made(client, model=model, adapters=[{"name": "crayon", "scale": 0.5}]))
    assert both.adapters[0] == AdapterUse("crayon", 0.5)
    assert len(both.adapters) == (1 if model.endswith("crayon") else 2)


async def test_a_form_has_them_as_json_text(client: httpx2.AsyncClient, services: Services) -> None:
    picture = base64.b64decode((await made(client)).json()["data"][0]["b64_json"])

    async def edited(adapters: str | list[str]) -> httpx2.Response:
        form = {"prompt": "make the background red", "adapters": adapters}
        return await client.post("/v1/images/edits", data=form, files={"image": ("fox.png", picture)})

    for given in ('[{"name": "crayon", "scale": 0.5}, "hers"]', ['{"name": "crayon", "scale": 0.5}', "hers"]):
        assert (await work_of(services, await edited(given))).adapters == (
            AdapterUse("crayon", 0.5),
            AdapterUse("hers"),
        )
    wrong = await edited("[{")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "adapters")


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"adapters": ["none"]}, 400, "adapters.0.name", "there are crayon, hers, large"),
        ({"adapters": ["crayon", "his"]}, 400, "adapters.1.name", "there is no adapter 'his'"),
        ({"adapters": ["/etc/crayon.safetensors"]}, 400, "adapters.0.name", "there is no adapter"),
        ({"adapters": [{"name": "crayon", "scale": 4.5}]}, 400, "adapters.0.scale", "less than or equal to 4"),
        ({"adapters": [{"name": "crayon", "scale": "1"}]}, 400, "adapters.0.scale", "number"),
        ({"adapters": [{"name": "crayon", "weight": 1}]}, 400, "adapters.0.weight", "Unknown"),
        ({"adapters": ["crayon"] * 9}, 400, "adapters", "at most 8"),
        ({"adapters": ["crayon", "crayon"]}, 400, "adapters.1.name", "twice"),
        ({"adapters": ["large"]}, 400, "adapters", "is for models of the family klein-4b"),
        ({"model": "ft:nano:his"}, 404, "model", "does not exist"),
        ({"model": "his"}, 404, "model", "does not exist"),
        ({"model": "ft:nano:none"}, 404, "model", "does not exist"),
        ({"model": "ft:other:crayon"}, 404, "model", "does not exist"),
        ({"model": "ft:crayon"}, 404, "model", "ft:nano:NAME"),
        ({"model": "ft:nano:hers:ckpt-step-2"}, 404, "model", "does not exist"),
        ({"model": "sketch", "adapters": ["crayon"]}, 400, "adapters", "far-sketch: loses adapters"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(
    client: httpx2.AsyncClient, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    answer = await made(client, **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]


async def test_only_places_that_have_adapters_are_asked(client: httpx2.AsyncClient) -> None:
    body = {"prompt": "a fox", "model": "both", "size": "64x64"}
    usual = (await client.post("/v1/quote", json=body)).json()
    adapted = (await client.post("/v1/quote", json={**body, "adapters": [{"name": "crayon", "scale": 0.5}]})).json()
    assert {each["deployment"] for each in usual["candidates"]} == {"far-nano", "near-nano"}
    assert [each["deployment"] for each in adapted["candidates"]] == ["near-nano"]
    (lost,) = (each for each in adapted["excluded"] if each["deployment"] == "far-nano")
    assert (lost["rule"], lost["reason"]) == ("loses adapters", "adapters crayon 0.5 is not honoured")


async def test_an_idempotency_key_stands_for_the_adapters_too(client: httpx2.AsyncClient) -> None:
    body = {"prompt": "a fox", "size": "64x64", "adapters": ["crayon"]}
    headers = {"Idempotency-Key": "adapters-1"}
    first = await client.post("/v1/images/generations", json=body, headers=headers)
    again = await client.post("/v1/images/generations", json=body, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = {**body, "adapters": [{"name": "crayon", "scale": 0.5}]}
    refused = await client.post("/v1/images/generations", json=other, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_each_sees_what_is_everybodys_and_his_own(client: httpx2.AsyncClient, app: FastAPI) -> None:
    async def seen(caller: Caller) -> tuple[list[str], list[str]]:
        with asking(app, caller):
            adapters = (await client.get("/v1/adapters")).json()["data"]
            models = (await client.get("/v1/models")).json()["data"]
        return [each["id"] for each in adapters], [each["id"] for each in models if each["id"].startswith("ft:nano:")]

    assert await seen(ADA) == (["crayon", "hers", "large"], ["ft:nano:crayon", "ft:nano:hers"])
    assert await seen(BOB) == (["crayon", "his", "large"], ["ft:nano:crayon", "ft:nano:his"])
    assert (await seen(LOCAL))[0] == ["crayon", "hers", "his", "large"]
    only_his = Caller("key", owner="bob", project="blue", models=("ft:nano:his",))
    assert (await seen(only_his))[1] == ["ft:nano:his"]
    with asking(app, only_his):
        assert (await made(client, model="ft:nano:his")).status_code == 200
        assert (await made(client, model="ft:nano:crayon")).status_code == 403
        assert (await made(client, model="nano")).status_code == 403
    with asking(app, LOCAL):
        assert (await made(client, model="ft:nano:his")).status_code == 200
    one = (await client.get("/v1/adapters/hers")).json()
    assert (one["project"], one["family"], one["models"]) == ("red", "nano", ["ft:nano:hers", "ft:both:hers"])
    assert one["trigger_words"] == ["toy"]
    assert (await client.get("/v1/adapters/his")).status_code == 404


async def test_an_admin_adds_and_removes_and_the_audit_knows(
    client: httpx2.AsyncClient, app: FastAPI, services: Services, tmp_path: Path
) -> None:
    async def uploaded(data: bytes) -> str:
        answer = await client.post("/v1/files", files={"file": ("a.safetensors", data)}, data={"purpose": "user_data"})
        return str(answer.json()["id"])

    good = write_lora(tmp_path / "good.safetensors").read_bytes()
    with asking(app, ADA):
        assert (await client.post("/v1/adapters", json={"name": "new", "file": "file_1"})).status_code == 403
        assert (await client.delete("/v1/adapters/crayon")).status_code == 403
    with asking(app, LOCAL):
        body = {"name": "new", "file": await uploaded(good), "strengths": {"distilled": 0.8}, "trigger_words": ["toy"]}
        added = await client.post("/v1/adapters", json=body)
        assert added.status_code == 201, added.text
        told = added.json()
        assert (told["id"], told["family"], told["strengths"]) == ("new", "nano", {"base": 1.0, "distilled": 0.8})
        assert told["sha256"] == registry.digest(registry.find("new").path)
        assert (await client.post("/v1/adapters", json=body)).status_code == 409
        assert (await made(client, model="ft:nano:new")).status_code == 200
        assert (await client.delete("/v1/adapters/new")).json() == {"id": "new", "object": "adapter", "deleted": True}
        assert (await client.get("/v1/adapters/new")).status_code == 404
        assert (await client.delete("/v1/adapters/new")).status_code == 404
        assert (await client.post("/v1/adapters", json={**body, "file": "file_1"})).status_code == 404
        for data, words in (
            (b"\x80\x02 a pickle", "pickle"),
            (good[:-40], "cut short"),
            (good.replace(b"lora_A", b"lora_X").replace(b"lora_B", b"lora_Y"), "no adapter"),
        ):
            refused = await client.post("/v1/adapters", json={"name": "bad", "file": await uploaded(data)})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"], words in error["message"]) == (400, "file", True), error
            assert str(services.settings.data) not in error["message"]
    async with services.database.read() as connection:
        entries = await audit.newest(connection, limit=2)
    assert [(each.action, each.target, each.actor) for each in entries] == [
        ("adapter.delete", "new", "local"),
        ("adapter.add", "new", "local"),
    ]


async def test_a_project_deletes_its_own_model_alone(client: httpx2.AsyncClient, app: FastAPI, home: Path) -> None:
    register(home, "hers", "nano")
    with asking(app, BOB):
        assert (await client.delete("/v1/models/ft:nano:hers")).status_code == 404
        assert (await client.delete("/v1/models/ft:nano:crayon")).status_code == 403
    gone = (await client.delete("/v1/models/ft:nano:hers")).json()
    assert gone == {"id": "ft:nano:hers", "object": "model", "deleted": True}
    assert (await client.get("/v1/models/ft:nano:hers")).status_code == 404
    register(home, "hers", "nano")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("ft:nano:fox-1", TunedModel("nano", "fox-1")),
        ("ft:nano:fox-1:ckpt-step-20", TunedModel("nano", "fox-1", 20)),
        ("ft:/models/mine:fox", TunedModel("/models/mine", "fox")),
        ("ft:nano:Fox", None),
        ("ft:nano", None),
        ("ft::fox", None),
        ("ft:nano:fox:ckpt-step-x", None),
        ("nano", None),
    ],
)
def test_the_name_of_a_fine_tuned_model(name: str, read: TunedModel | None) -> None:
    assert TunedModel.read(name) == read
    assert read is None or str(read) == name
