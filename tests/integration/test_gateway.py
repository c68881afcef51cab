"""The gateway as its callers see it: a server of its own, simulated services that count what they bill, the `openai` package."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.server import ready, serving, start

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEY, SECRETS = "test-key", {"SHOP_KEY": "secret-of-shop", "POOR_KEY": "secret-of-poor", "BOSS_KEY": "secret-of-boss"}
PRICES = {
    "openai": "0.010",
    "bfl": "0.014",
    "replicate": "0.016",
    "fal": "0.018",
    "together": "0.020",
    "stability": "0.035",
}
MODELS = {
    "openai": "gpt-image-2",
    "bfl": "flux-2-klein-4b",
    "replicate": "black-forest-labs/flux-2-klein-4b",
    "fal": "fal-ai/flux-2/klein/4b",
    "together": "black-forest-labs/FLUX.2-dev",
    "stability": "sd3.5-medium",
}
CALLING_BACK = {"bfl": "BFL_HOOKS", "replicate": "REPLICATE_HOOKS"}
"""Services with webhooks, and the variables of their secrets."""
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"simulated webhooks' own secret").decode()
KEYS = """
[[keys]]
name = "shop"
secret_env = "SHOP_KEY"
budget = { amount = "50", window = "30d" }
policy = "cost"

[[keys]]
name = "poor"
secret_env = "POOR_KEY"
budget = { amount = "0.025" }

[[keys]]
name = "boss"
secret_env = "BOSS_KEY"
role = "admin"

[[aliases]]
name = "dall-e-3"
model = "sketch"
note = "retired on 2026-05-12"
"""


class Services:
    """The simulator's process, with an account of each kind."""

    def __init__(self) -> None:
        accounts = [word for kind, price in PRICES.items() for word in ("--account", f"{kind}:{kind}:0:{price}")]
        environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
        command = [sys.executable, "-m", "simulator", "--key", KEY, *accounts]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url, self.accounts = told["url"], told["accounts"]

    def reset(self) -> None:
        httpx2.post(f"{self.url}/_sim/reset").raise_for_status()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def put(self, kind: str, what: str, body: dict[str, Any]) -> None:
        httpx2.put(f"{self.url}/_sim/{kind}/{what}", json=body).raise_for_status()

    def billed(self, kind: str) -> Decimal:
        bill = httpx2.get(f"{self.url}/_sim/{kind}/bill").json()
        return sum((Decimal(item["cost"]) for item in bill["items"]), Decimal(0))

    def configuration(self) -> str:
        tables = ["[engine]\nmodels = []\n[routing]\nfailures = 50\nprobe_seconds = 0"]
        for kind, price in PRICES.items():
            base = self.accounts[kind]["url"] + ("/v1" if kind == "openai" else "")
            tables.append(f'[[providers]]\nname="{kind}"\nkind="{kind}"\nbase_url="{base}"\napi_key_env="PROVIDER_KEY"')
            tables.append(
                f'[[deployments]]\nname="{kind}-one"\nmodel="sketch"\nprovider="{kind}"\n'
                f'provider_model="{MODELS[kind]}"\nprice={{ per_image="{price}" }}\nquality=0.5'
            )
        return "\n".join([*tables, KEYS])


class Shop:
    """A gateway before the services, as the caller "shop" sees it."""

    def __init__(self, url: str, services: Services, name: str = "shop") -> None:
        self.url, self.services = url, services
        self.secret = SECRETS[f"{name.upper()}_KEY"]

    def as_(self, name: str) -> Shop:
        return Shop(self.url, self.services, name)

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.secret}", **more.pop("headers", {})}
        return httpx2.request(method, self.url + path, headers=headers, timeout=60, **more)

    def make(self, model: str = "sketch", **more: Any) -> Any:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.secret, max_retries=0) as client:
            return client.images.with_raw_response.generate(
                model=model, prompt="a fox", size="1024x1024", extra_body=more or None
            )


@contextmanager
def open_shop(folder: Path, services: Services) -> Iterator[Shop]:
    config = folder / "kleinbild.toml"
    config.write_text(services.configuration())
    with serving(folder, "--config", str(config), PROVIDER_KEY=KEY, **SECRETS) as server:
        yield Shop(server.url, services)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.stop()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, services: Services) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("gateway"), services) as shop:
        yield shop


@pytest.fixture
def shop(opened: Shop) -> Shop:
    opened.services.reset()
    return opened


@pytest.mark.parametrize("kind", PRICES)
def test_each_service_makes_a_picture_and_is_paid_what_it_bills(shop: Shop, kind: str) -> None:
    made = shop.make(f"{kind}-one")
    headers = made.headers
    assert headers["x-kleinbild-deployment"] == f"{kind}-one"
    assert headers["x-kleinbild-attempts"] == "1"
    assert Decimal(headers["x-kleinbild-cost"]) == shop.services.billed(kind) == Decimal(PRICES[kind])
    assert len(made.parse().data[0].b64_json) > 100


def test_the_cheapest_is_asked_and_the_next_if_it_is_gone(shop: Shop) -> None:
    assert shop.make().headers["x-kleinbild-deployment"] == "openai-one"
    shop.services.put("openai", "outage", {"state": "down"})
    shop.services.put("bfl", "faults", {"status_503": 1.0})
    made = shop.make()
    assert made.headers["x-kleinbild-deployment"] == "fal-one"  # replicate is cheaper, and chooses the size by itself
    assert made.headers["x-kleinbild-attempts"] == "3"
    job = made.headers["x-kleinbild-job-id"]
    attempts = shop.ask("GET", f"/v1/jobs/{job}/attempts").json()["data"]
    states = [(each["deployment"], each["state"]) for each in attempts]
    assert states == [("openai-one", "failed_unbilled"), ("bfl-one", "failed_unbilled"), ("fal-one", "done")]


def test_a_decision_explains_itself_and_a_quote_is_one_without_a_picture(shop: Shop) -> None:
    decision = shop.make(max_price="0.019", policy="quality").headers["x-kleinbild-decision"]
    told = shop.ask("GET", f"/v1/decisions/{decision}").json()
    assert (told["policy"], told["policy_source"]) == ("quality", "request")
    excluded = {each["deployment"]: each["rule"] for each in told["excluded"]}
    assert excluded == {"together-one": "max_price", "stability-one": "max_price"}
    assert len(told["candidates"]) == 4
    quote = shop.ask("POST", "/v1/quote", json={"model": "sketch", "prompt": "a fox", "n": 2}).json()
    assert (quote["deployment"], quote["price"], quote["policy"]) == ("openai-one", "0.02", "cost")
    assert shop.services.billed("openai") == 0
    assert shop.ask("GET", "/v1/decisions/dec_nobody").status_code == 404


def test_a_budget_ends_requests_before_a_byte_leaves(shop: Shop) -> None:
    poor = shop.as_("poor")
    for _ in range(2):
        poor.make("openai-one")
    with pytest.raises(openai.APIStatusError) as refused:
        poor.make("openai-one")
    assert (refused.value.status_code, refused.value.code) == (402, "budget_exceeded")
    assert shop.services.billed("openai") == Decimal("0.02")
    shop.make("openai-one")  # others have theirs


def test_what_no_place_may_do_is_refused_with_reasons(shop: Shop) -> None:
    with pytest.raises(openai.BadRequestError, match=r"max_price, 0\.01 > 0\.001") as refused:
        shop.make(max_price="0.001")
    assert refused.value.code == "no_deployment"
    with pytest.raises(openai.NotFoundError, match="sketch"):
        shop.make("skecth")
    with pytest.raises(openai.BadRequestError, match="max_price"):
        shop.make(max_price="a lot")


def test_refused_content_is_the_same_error_from_everybody(shop: Shop) -> None:
    for kind in ("bfl", "fal", "stability"):
        shop.services.put(kind, "faults", {"filtered": 1.0})
        with pytest.raises(openai.BadRequestError) as refused:
            shop.make(f"{kind}-one")
        assert (refused.value.code, refused.value.type) == ("moderation_blocked", "image_generation_user_error"), kind


def test_a_retired_model_is_an_alias_that_says_so(shop: Shop) -> None:
    made = shop.make("dall-e-3")
    (told,) = [each for each in json.loads(made.text)["warnings"] if each.startswith("model")]
    assert told == "model: dall-e-3 stands for sketch: retired on 2026-05-12"
    models = {each["id"] for each in shop.ask("GET", "/v1/models").json()["data"]}
    assert models == {"sketch", "dall-e-3"}


def test_a_lost_answer_is_not_paid_twice(shop: Shop) -> None:
    shop.services.put("openai", "faults", {"no_answer": 1.0})
    with pytest.raises(openai.APIStatusError) as lost:
        shop.make()
    assert (lost.value.status_code, lost.value.code) == (502, "outcome_unknown")
    assert sum(shop.services.billed(kind) for kind in PRICES) == Decimal("0.01")


def test_usage_is_what_the_services_bill(shop: Shop) -> None:
    before = {row["provider"]: Decimal(row["cost"]) for row in _usage(shop)}
    for kind in PRICES:
        shop.make(f"{kind}-one")
    after = {row["provider"]: Decimal(row["cost"]) for row in _usage(shop)}
    assert {kind: after[kind] - before.get(kind, Decimal(0)) for kind in PRICES} == {
        kind: shop.services.billed(kind) for kind in PRICES
    }
    sheet = shop.as_("boss").ask("GET", "/v1/usage?format=focus").text.splitlines()
    assert "BilledCost" in sheet[0]
    assert len(sheet) > len(PRICES)


def test_when_no_place_can_be_asked_the_caller_is_told_when_to_come_back(shop: Shop) -> None:
    shop.services.put("stability", "faults", {"rate_limited": {"share": 1.0, "retry_after": 0.2}})
    asked = {"model": "stability-one", "prompt": "a fox"}
    job = shop.ask("POST", "/v1/jobs", json={"task": "image.generate", "input": asked}).json()["id"]
    while not (kept := shop.ask("GET", f"/v1/jobs/{job}").json())["completed_at"]:
        time.sleep(0.05)
    assert (kept["status"], kept["error"]["code"], kept["error"]["type"]) == ("failed", "no_deployment", "server_error")
    assert re.search(r"stability-one: .*; try again in 1 s", kept["error"]["message"])
    refused = shop.ask("POST", "/v1/images/generations", json=asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_deployment")
    assert refused.headers["retry-after"] == "1"


def test_a_job_whose_service_took_it_on_is_collected_after_kill_9_and_not_bought_again(
    tmp_path: Path, services: Services
) -> None:
    services.reset()
    services.put("bfl", "speed", {"latency": 4.0, "spread": 0.0})
    config = tmp_path / "kleinbild.toml"
    config.write_text(services.configuration())
    options = ("--config", str(config))
    process = start(tmp_path, *options, PROVIDER_KEY=KEY, **SECRETS)
    try:
        shop = Shop(ready(process, tmp_path).url, services)
        job = shop.ask(
            "POST", "/v1/jobs", json={"task": "image.generate", "input": {"prompt": "a fox", "model": "bfl-one"}}
        ).json()["id"]
        for _ in range(400):
            attempts = shop.ask("GET", f"/v1/jobs/{job}/attempts").json()["data"]
            if attempts and attempts[0]["state"] == "accepted":
                break
        assert attempts[0]["state"] == "accepted"
    finally:
        process.kill()
        process.wait()
    with serving(tmp_path, *options, PROVIDER_KEY=KEY, **SECRETS) as server:
        again = Shop(server.url, services)
        for _ in range(400):
            found = again.ask("GET", f"/v1/jobs/{job}").json()
            if found["status"] in ("completed", "failed"):
                break
        assert found["status"] == "completed", found
        states = [each["state"] for each in again.ask("GET", f"/v1/jobs/{job}/attempts").json()["data"]]
    assert states == ["done"]
    assert services.billed("bfl") == Decimal(found["result"]["cost"]) == Decimal("0.014")


def _usage(shop: Shop) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shop.ask("GET", "/v1/usage?group_by=provider").json()["data"]
    return rows


def test_services_call_back_twice_and_the_work_is_fetched_at_once_and_paid_for_once(tmp_path: Path) -> None:
    """Polls begin after two seconds where services call back: what is there before came by a webhook."""
    services = Services()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        for kind in CALLING_BACK:
            services.put(kind, "speed", {"latency": 0.3, "spread": 0.0})
            services.put(kind, "faults", {"webhook_twice": {"share": 1.0, "seconds": 0.2}})
        tables = services.configuration()
        for kind, secret in CALLING_BACK.items():
            named = f'name="{kind}"\nkind="{kind}"\n'
            tables = tables.replace(named, f'{named}webhooks=true\nwebhook_secret_env="{secret}"\n')
        config = tmp_path / "kleinbild.toml"
        config.write_text(f'[server]\npublic_url = "http://127.0.0.1:{port}"\n{tables}')
        secrets = {"BFL_HOOKS": "a secret of ours", "REPLICATE_HOOKS": WEBHOOK_SECRET, "PROVIDER_KEY": KEY, **SECRETS}
        with serving(tmp_path, "--config", str(config), "--port", str(port), **secrets) as server:
            shop = Shop(server.url, services)
            for kind in CALLING_BACK:
                begun = time.monotonic()
                made = shop.make(f"{kind}-one")
                assert time.monotonic() - begun < 1.8, kind
                assert Decimal(made.headers["x-kleinbild-cost"]) == services.billed(kind) == Decimal(PRICES[kind])
                forged = httpx2.post(f"{server.url}/hooks/{kind}", json={"id": "of somebody"})
                assert forged.status_code == 401
            time.sleep(0.5)  # the third webhook
            assert [services.billed(kind) for kind in CALLING_BACK] == [Decimal(PRICES[kind]) for kind in CALLING_BACK]
    finally:
        services.stop()
