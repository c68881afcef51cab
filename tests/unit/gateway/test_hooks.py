"""`POST /hooks/{provider}`: what services send wakes who waits, and nothing else; what they did not send is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from kleinbild.gateway import errors
from kleinbild.gateway.api import hooks
from kleinbild.gateway.fleet import Fleet
from kleinbild.gateway.opened import open_fleet
from kleinbild.gateway.settings import ConfigurationError, Settings, read_configuration
from kleinbild.providers.bfl import BlackForestLabs
from kleinbild.safety.fetch import Fetcher
from tests.unit.providers import test_bfl as bfl
from tests.unit.providers.taking_on import KEY, Server, call, fetcher_to
from tests.unit.providers.test_hooks import SECRET, jwks, of_bfl, of_fal, of_replicate

pytestmark = pytest.mark.anyio

PUBLIC = "https://gateway.example.com/made/"
WEBHOOKS: dict[str, dict[str, Any]] = {
    "bfl": {"webhook_secret_env": "BFL_HOOKS"},
    "replicate": {"webhook_secret_env": "REPLICATE_HOOKS"},
    "fal": {},
    "together": {"webhooks": False},
}
MODELS = {"bfl": "flux-2-klein-4b", "replicate": "black-forest-labs/flux-2-klein-4b", "fal": "fal-ai/flux-2/klein/4b"}
TOLD = {"bfl": "id", "replicate": "id", "fal": "request_id"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BFL_API_KEY", "REPLICATE_API_TOKEN", "FAL_KEY", "TOGETHER_API_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("BFL_HOOKS", "a secret of ours")
    monkeypatch.setenv("REPLICATE_HOOKS", SECRET)


def settings(**server: Any) -> Settings:
    return Settings.model_validate(
        {
            "server": {"public_url": PUBLIC} | server,
            "engine": {"models": []},
            "providers": [
                {"name": f"my-{kind}", "kind": kind, "webhooks": True} | more for kind, more in WEBHOOKS.items()
            ],
            "deployments": [
                {"name": kind, "model": "klein", "provider": f"my-{kind}", "provider_model": MODELS.get(kind, "m")}
                for kind in WEBHOOKS
            ],
        }
    )


def opened(fetcher: Fetcher) -> Fleet:
    return open_fleet(settings(), None, fetcher, waiting=lambda: 0.0)  # type: ignore[arg-type]


@asynccontextmanager
async def told(fleet: Fleet) -> AsyncIterator[httpx2.AsyncClient]:
    app = FastAPI()
    errors.install(app)
    app.include_router(hooks.router)
    app.state.services = SimpleNamespace(fleet=fleet)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        yield client


def body(kind: str, work: str) -> bytes:
    return json.dumps({TOLD[kind]: work, "status": "whatever"}).encode()


def signed(kind: str, content: bytes, key: Ed25519PrivateKey) -> dict[str, str]:
    if kind == "fal":
        return of_fal(content, key, time.time())
    return of_bfl(content, "a secret of ours") if kind == "bfl" else of_replicate(content)


@pytest.mark.parametrize("kind", ["bfl", "replicate", "fal"])
async def test_what_a_service_signed_wakes_who_waits_and_what_it_did_not_is_refused(kind: str) -> None:
    key, forger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    published = Server(**{"GET /.well-known/jwks.json": (200, jwks(key))})
    fleet = opened(fetcher_to(published))
    assert fleet.hooks[f"my-{kind}"].url == f"https://gateway.example.com/made/hooks/my-{kind}"
    content, other = body(kind, "w1"), body(kind, "w2")
    async with told(fleet) as client:
        with fleet.bells.waiting(f"my-{kind}", "w1") as woken:
            for forged in ({}, signed(kind, other, key), signed(kind, content, forger) if kind == "fal" else {}):
                answer = await client.post(f"/hooks/my-{kind}", content=content, headers=forged)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_signature")
            answer = await client.post(f"/hooks/my-{kind}", content=other, headers=signed(kind, other, key))
            assert (answer.status_code, woken.is_set()) == (204, False)
            answer = await client.post(f"/hooks/my-{kind}", content=content, headers=signed(kind, content, key))
            assert (answer.status_code, woken.is_set()) == (204, True)
    assert len(published.requests) == (kind == "fal")


@pytest.mark.parametrize("name", ["nobody", "bfl", "my-together"])
async def test_nobody_else_calls_back(name: str) -> None:
    async with told(opened(fetcher_to(Server()))) as client:
        assert (await client.post(f"/hooks/{name}", content=b"{}")).status_code == 404


async def test_a_body_is_read_up_to_a_bound() -> None:
    async with told(opened(fetcher_to(Server()))) as client:
        assert (await client.post("/hooks/my-bfl", content=b"a" * (hooks.MAX_BYTES + 1))).status_code == 413


async def test_keys_that_cannot_be_fetched_are_to_be_tried_again() -> None:
    content = body("fal", "w1")
    async with told(opened(fetcher_to(Server()))) as client:
        headers = of_fal(content, Ed25519PrivateKey.generate(), time.time())
        assert (await client.post("/hooks/my-fal", content=content, headers=headers)).status_code == 503


async def test_a_hook_shortens_the_wait_and_one_that_is_repeated_or_late_changes_nothing() -> None:
    service = bfl.server(bfl.state("Pending"), bfl.ready())
    fleet = opened(fetcher_to(service))
    place = BlackForestLabs(KEY, fetcher=fetcher_to(service), transport=service.transport, hook=fleet.hooks["my-bfl"])
    content, began = body("bfl", "task-1"), time.perf_counter()
    headers = of_bfl(content, "a secret of ours")
    async with told(fleet) as client:
        making = asyncio.create_task(bfl.made(place, call(bfl.MODEL)))
        for _ in range(2):  # the first comes too early: the service itself does not know yet
            await asyncio.sleep(0.05)
            assert (await client.post("/hooks/my-bfl", content=content, headers=headers)).status_code == 204
        assert (await making).pictures
        assert time.perf_counter() - began < 1.5  # it would have been asked after 2 seconds, and again after 2 more
        assert len(service.asked(bfl.RESULT)) == 2
        assert (await client.post("/hooks/my-bfl", content=content, headers=headers)).status_code == 204
        assert len(service.asked(bfl.RESULT)) == 2


async def test_new_settings_still_wake_what_was_begun_before() -> None:
    fetcher = fetcher_to(Server())
    fleet, content = opened(fetcher), body("bfl", "task-1")
    with fleet.hooks["my-bfl"].bells.waiting("my-bfl", "task-1") as woken:
        fleet.become(opened(fetcher))
        async with told(fleet) as client:
            await client.post("/hooks/my-bfl", content=content, headers=of_bfl(content, "a secret of ours"))
        assert woken.is_set()
    with fleet.hooks["my-bfl"].bells.waiting("my-bfl", "task-2") as woken:
        fleet.bells.ring("my-bfl", "task-2")
        assert woken.is_set()


@pytest.mark.parametrize(
    ("server", "provider", "said"),
    [
        ("", 'kind = "fal"', "no such address"),
        ('public_url = "http://gateway.example.com"', 'kind = "fal"', "no such address"),
        (f'public_url = "{PUBLIC}"', 'kind = "openai"', "does not call back"),
        (f'public_url = "{PUBLIC}"', 'kind = "bfl"', "go together"),
        (f'public_url = "{PUBLIC}"', 'kind = "fal"\nwebhook_secret_env = "X"', "go together"),
    ],
)
def test_settings_that_no_service_could_call_back_with_are_refused(
    tmp_path: Any, server: str, provider: str, said: str
) -> None:
    file = tmp_path / "kleinbild.toml"
    file.write_text(f'[server]\n{server}\n[[providers]]\nname = "p"\n{provider}\nwebhooks = true\n')
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert said in caught.value.message


def test_a_secret_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BFL_HOOKS")
    with pytest.raises(ConfigurationError, match="BFL_HOOKS"):
        opened(fetcher_to(Server()))
