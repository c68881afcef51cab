"""Catalogs that are looked for anew: newer and right ones are in force at once, others are told and change nothing."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kleinbild.cli.app import invoke
from kleinbild.gateway import refresh
from kleinbild.gateway.app import create_app
from kleinbild.gateway.catalog import FILE, MAX_BYTES, CatalogError, current, shipped
from kleinbild.gateway.refresh import Refreshed, is_due, last_of
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import ConfigurationError, read_configuration
from tests.unit.gateway.hosting import hosting, settings
from tests.unit.gateway.test_catalog import FACT, NEWER
from tests.unit.providers.taking_on import Server, fetcher_to

pytestmark = pytest.mark.anyio

URL = "https://prices.example.com/catalog.toml"
PATH = "GET /catalog.toml"
LIMIT = f'[[limits]]\nkind = "openai"\nmax_active = 3\n{FACT}'.encode()
BY_URL = {"url": URL, "refresh_hours": 2}
HOUR = 3600.0


def priced(price: str, version: str = "2099-01-01") -> bytes:
    """A catalog of the model that tests' deployments are of."""
    return (
        f'version = "{version}"\n[[models]]\nkind = "openai"\nprovider_model = "gpt-image-1"\nconfidence = "low"\n'
        f'[models.price]\nper_image = "{price}"\n{FACT}'
    ).encode()


def price_of(services: Services) -> str:
    return str(services.fleet.deployments["a"].price.per_image)


def answering(content: bytes) -> Server:
    return Server(**{PATH: httpx2.Response(200, content=content)})


async def test_what_is_fetched_is_in_force_without_a_restart_and_after_one(tmp_path: Path) -> None:
    found = settings(tmp_path, "a", price=None, catalog=BY_URL)
    server = answering(priced("0.5"))
    async with hosting(found) as services:
        services.fetcher = fetcher_to(server)
        services.known.last = None
        await refresh.look(services)
        assert price_of(services) == "0.5"
        await refresh.look(services)
        assert len(server.asked(PATH)) == 1
        server.routes[PATH] = httpx2.Response(200, content=priced("0.6", "2099-01-01.1"))
        services.known.last = Refreshed(URL, time.time() - 2.1 * HOUR)
        async with services.fleet.slot(services.fleet.deployments["a"], 1, 1.0):
            await refresh.look(services)
            assert services.fleet.limits.active("a") == 1  # what is the same goes on counting
        assert price_of(services) == "0.6"
        server.routes[PATH] = httpx2.Response(200, content=priced("0.6", "2099-01-01.2") + LIMIT)
        services.known.last = None
        await refresh.look(services)
        assert services.fleet.limits.limit("a").max_active == 3
        server.routes[PATH] = httpx2.Response(200, content=priced("0.6", "2099-01-01.3"))
        services.known.last = None
        await refresh.look(services)
        assert services.fleet.limits.limit("a").max_active is None
        assert await readiness(services) == {"version": "2099-01-01.3", "error": None}
    async with hosting(found) as services:
        assert price_of(services) == "0.6"


async def readiness(services: Services) -> Any:
    app = create_app(services.settings)
    app.state.services = services
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        return (await client.get("/readyz")).json()["catalog"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx2.Response(200, content=b'version = "2099-02-01"\nprices = 1\n'), "prices"),
        (httpx2.Response(200, content=b"\xff\xfe"), "not UTF-8"),
        (httpx2.Response(200, content=b"#" * (MAX_BYTES + 1)), "larger than 4 MB"),
        (httpx2.Response(404), "did not give the file"),
        (httpx2.Response(302, headers={"location": "https://elsewhere.example.com"}), "redirects"),
    ],
    ids=["wrong", "no text", "large", "not there", "elsewhere"],
)
async def test_what_is_wrong_is_told_and_the_last_good_one_holds(
    tmp_path: Path, answer: httpx2.Response, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(priced("0.5"))
    async with hosting(settings(tmp_path, "a", price=None, catalog=BY_URL)) as services:
        services.fetcher = fetcher_to(Server(**{PATH: answer}))
        services.known.last = None
        with caplog.at_level(logging.WARNING):
            await refresh.look(services)
        assert price_of(services) == "0.5"
        told = await readiness(services)
        assert told["version"] == "2099-01-01"
        assert said in told["error"]
        assert "2099-01-01 stays in force" in caplog.text
    assert current(tmp_path).version == "2099-01-01"
    last = last_of(tmp_path)
    assert last is not None
    assert said in str(last.error)


@pytest.mark.parametrize("text", [NEWER.encode(), b'version = "2020-01-01"\n'])
async def test_what_is_known_already_is_no_fault(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_text(NEWER)
    async with hosting(settings(tmp_path, "a", catalog=BY_URL)) as services:
        found = await refresh.refreshed(services.settings, fetcher_to(answering(text)))
        assert (found.source, found.error) == (URL, None)
    assert current(tmp_path).version == "2099-01-01"


async def test_a_catalog_that_somebody_puts_into_the_data_folder_is_in_force_at_the_next_look(tmp_path: Path) -> None:
    async with hosting(settings(tmp_path, "a", price=None)) as services:
        fleet, before = services.fleet, services.fleet.deployments
        await refresh.look(services)
        assert fleet.deployments is before
        (tmp_path / FILE).write_bytes(priced("0.7"))
        await refresh.look(services)
        assert price_of(services) == "0.7"
        (tmp_path / FILE).write_text("version = 3\n")
        await refresh.look(services)
        assert services.known.version == shipped().version


async def test_a_file_may_be_named_instead(tmp_path: Path) -> None:
    (tmp_path / "theirs.toml").write_bytes(priced("0.8"))
    catalog = {"file": tmp_path / "theirs.toml"}
    async with hosting(settings(tmp_path / "data", "a", price=None, catalog=catalog)) as services:
        services.known.last = None
        await refresh.look(services)
        assert price_of(services) == "0.8"


@pytest.mark.parametrize(
    ("last", "due"),
    [
        (None, True),
        (Refreshed(URL, 1e6 - 1.9 * HOUR), False),
        (Refreshed(URL, 1e6 - 2 * HOUR), True),
        (Refreshed("https://elsewhere.example.com", 1e6 - 1), True),
        (Refreshed(URL, 1e6 - 599, "it failed"), False),
        (Refreshed(URL, 1e6 - 600, "it failed"), True),
    ],
)
def test_it_is_looked_for_when_it_is_time_and_sooner_if_that_failed(
    tmp_path: Path, last: Refreshed | None, due: bool
) -> None:
    assert is_due(settings(tmp_path, "a", catalog=BY_URL), last, 1e6) is due
    assert not is_due(settings(tmp_path, "a"), last, 1e6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('url = "http://prices.example.com"', "https://"),
        ('url = "https://me:secret@prices.example.com"', "https://"),
        ('url = "https://prices.example.com"\nfile = "x"', "set one of them"),
    ],
)
def test_it_is_fetched_by_https_from_one_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "kleinbild.toml"
    file.write_text(f"[catalog]\n{text}\n")
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file)
    assert said in caught.value.message
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


@pytest.fixture(autouse=True)
def looked_at(tmp_path: Path) -> None:
    """A moment ago, so that servers do not look at once when they start, somewhere else than tests do."""
    for folder, source in ((tmp_path, URL), (tmp_path / "data", str(tmp_path / "theirs.toml"))):
        folder.mkdir(exist_ok=True)
        (folder / refresh.STATE).write_text(json.dumps({"source": source, "at": time.time()}))


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.toml").write_bytes(priced("0.8"))
    Path("kleinbild.toml").write_text('[server]\ndata = "data"\n[catalog]\nfile = "theirs.toml"\n')


def test_the_command_looks_at_once_and_tells_of_a_bad_one(configured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["catalog", "refresh"]) == 0
    assert capsys.readouterr().out == "the catalog 2099-01-01 is known\n"
    Path("theirs.toml").write_text("version = 3\n")
    with pytest.raises(CatalogError, match=r"none was taken: theirs\.toml: version is wrong"):
        invoke(["catalog", "refresh"])
    assert invoke(["catalog", "show"]) == 0
    shown = capsys.readouterr()
    assert "gpt-image-1" in shown.out
    assert "none was taken" in shown.err


def test_the_command_says_that_nothing_is_set(configured: None) -> None:
    Path("kleinbild.toml").write_text("")
    with pytest.raises(ConfigurationError, match=r"catalog\.url is not set"):
        invoke(["catalog", "refresh"])
