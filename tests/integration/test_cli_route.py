"""`kleinbild route`: decisions and attempts that a server kept, read from its data."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from kleinbild.cli.main import run
from kleinbild.gateway.routing.decision import Decision
from kleinbild.storage import decisions
from kleinbild.storage.attempts import Attempt
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.ledger import Ledger
from tests.unit.gateway.routing.places import asked, decided, place

CHEAP, GOOD = place("cheap", "0.01", quality=0.5), place("good", "0.05", quality=0.9)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder, in which two requests went to the good place: one of them not in this week."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    asyncio.run(_keep(folder, [("1", time.time() - 60), ("2", time.time() - 20 * 24 * 3600)]))
    return folder


@pytest.fixture
def told(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `kleinbild route …` says on stdout."""

    def route(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["route", *arguments, "--data", str(data)]) == 0
        return capsys.readouterr().out

    return route


async def _keep(folder: Path, requests: list[tuple[str, float]]) -> None:
    database = await open_database(sqlite_url(folder / "kleinbild.sqlite"))
    ledger = Ledger(database)
    for name, at in requests:
        decision = decided(asked(policy="quality"), [CHEAP, GOOD, place("blind", tasks=frozenset())], now=at)
        kept = decisions.Decision(f"dec_{name}", f"job_{name}", "me", "local", at, decision.to_json())
        async with database.write() as connection:
            await decisions.add(connection, kept)
        await ledger.reserve(_attempt(f"job_{name}", at), [])
        await ledger.settle(f"att_job_{name}", "done", Decimal("0.06"), seconds=4.0)
    await ledger.drain()
    await database.close()


def _attempt(job: str, at: float) -> Attempt:
    return Attempt(
        id=f"att_{job}",
        job_id=job,
        part=0,
        number=1,
        deployment="good",
        provider="bfl",
        kind="bfl",
        model="klein",
        provider_model="flux",
        task="image.generate",
        caller="me",
        project="local",
        first=0,
        count=1,
        reserved=Decimal("0.05"),
        quoted=Decimal("0.05"),
        price_version="",
        hedged=False,
        megapixels=Decimal(1),
        created_at=at,
    )


def test_a_replay_says_what_a_week_would_have_cost(told: Callable[..., str]) -> None:
    body = json.loads(told("replay", "--json"))
    assert body["policy"] == "cost"
    total = body["total"]
    assert (total["requests"], total["changed"], total["cost"], total["replayed_cost"]) == (1, 1, "0.06", "0.01")
    assert body["moves"] == [{"from": "good", "to": "cheap", "requests": 1}]
    assert total["seconds"] == 4.0


def test_a_replay_goes_as_far_back_as_it_is_told(told: Callable[..., str]) -> None:
    body = json.loads(told("replay", "--policy", "quality", "--since", "4w", "--json"))
    assert len(body["days"]) == 2
    assert (body["total"]["cost"], body["total"]["replayed_cost"]) == ("0.12", "0.12")
    assert json.loads(told("replay", "--project", "another", "--json"))["total"]["requests"] == 0


def test_a_replay_is_a_table_with_a_line_for_all(told: Callable[..., str]) -> None:
    lines = told("replay", "--since", "4w").splitlines()
    assert lines[0].split()[:3] == ["day", "requests", "changed"]
    assert lines[-1].split() == ["all", "2", "2", "0.12", "0.02", "8.0", lines[-1].split()[-1]]


@pytest.mark.parametrize("name", ["dec_1", "job_1"])
def test_a_decision_is_explained_by_its_id_or_its_jobs(told: Callable[..., str], name: str) -> None:
    told_of = told("explain", name)
    rows = {line.split()[0]: line for line in told_of.splitlines() if line}
    assert list(rows).index("good") < list(rows).index("cheap")
    assert "quality 0.9" in rows["good"]
    assert "task" in rows["blind"]
    assert "quality, by default" in rows["policy:"]
    assert Decision.from_json(json.loads(told("explain", name, "--json"))).candidates[0].deployment == GOOD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "dec_none"], "there is no decision 'dec_none'"),
        (["replay", "--policy", "cheapest"], "--policy 'cheapest': 'cheapest' is no policy"),
        (["replay", "--since", "soon"], "--since 'soon': not a time"),
    ],
)
def test_what_is_wrong_is_told_in_words(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["route", *arguments, "--data", str(data)]) == 2
    assert message in capsys.readouterr().err


def test_without_data_there_is_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["route", "replay", "--data", str(tmp_path / "none")]) == 2
    assert "nothing was decided yet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
