"""`kleinbild budgets`, `usage` and `ledger reconcile`, with a server that tells what it is told to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from kleinbild.cli.ledger import read_statement
from kleinbild.cli.main import run
from kleinbild.client import running
from kleinbild.core.errors import RequestError
from tests.unit.client.contract import Contract, Fault, contract, error

BUDGET = {
    "id": "key:key_1",
    "object": "budget",
    "scope": "key",
    "subject": "key_1",
    "amount": "5",
    "window": "30d",
    "spent": "0.3",
    "reserved": "0",
    "remaining": "4.7",
    "resets_at": 1_800_000_000,
}
USED = {
    "requests": 2,
    "attempts": 3,
    "images": 4,
    "megapixels": 4.5,
    "cost": "0.03",
    "corrections": "0",
    "reserved": "1",
}
FOUND = {
    "object": "reconciliation",
    "provider": "fal",
    "currency": "USD",
    "settled": ["att_1"],
    "corrected": [{"attempt": "att_2", "booked": "0.01", "stated": "0.015", "difference": "0.005"}],
    "under_way": [],
    "unmatched": ["req_9"],
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Contract]:
    """It runs on this machine, so that it is found; in a home of its own."""
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KLEINBILD_BASE_URL", raising=False)
    monkeypatch.setenv("KLEINBILD_API_KEY", "kb_mine")
    with contract() as listening:
        running.announce(listening.url)
        yield listening


@pytest.fixture
def told(server: Contract, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says on stdout if the server answers so."""

    def say(call: str, body: object, *arguments: str) -> str:
        server.faults = [Fault(call, 200, body=body)]
        capsys.readouterr()
        assert run(list(arguments)) == 0
        return capsys.readouterr().out

    return say


def test_budgets_are_a_table(server: Contract, told: Callable[..., str]) -> None:
    answer = {"object": "list", "currency": "USD", "data": [BUDGET, {**BUDGET, "window": None, "resets_at": None}]}
    lines = told("GET /v1/budgets", answer, "budgets").splitlines()
    assert lines[0].split() == ["budget", "of", "which", "amount", "each", "spent", "reserved", "left", "anew"]
    assert lines[1].split() == [*"key:key_1 key key_1 5 30d 0.3 0 4.7 2027-01-15 08:00 UTC".split()]
    assert lines[2].split()[-1] == "-"
    assert server.calls[0].headers["authorization"] == "Bearer kb_mine"
    assert json.loads(told("GET /v1/budgets", answer, "budgets", "--json"))[0] == BUDGET


def test_usage_is_grouped_as_said(server: Contract, told: Callable[..., str]) -> None:
    answer = {"object": "list", "data": [{"project": "p", "model": "nano", **USED}]}
    command = "usage --since 7d --group-by project,model --project p".split()
    lines = told("GET /v1/usage", answer, *command).splitlines()
    assert lines[0].split()[:4] == ["project", "model", "requests", "attempts"]
    assert lines[1].split() == ["p", "nano", "2", "3", "4", "4.5", "0.03", "0", "1"]
    asked = parse_qs(urlsplit(server.calls[0].line.split(" ")[1]).query)
    assert float(asked["start"][0]) == pytest.approx(time.time() - 7 * 24 * 3600, abs=30)
    assert (asked["group_by"], asked["project"], "format" in asked) == (["project", "model"], ["p"], False)
    assert json.loads(told("GET /v1/usage", answer, "usage", "--format", "json")) == answer


@pytest.mark.parametrize("form", ["csv", "focus"])
def test_usage_in_files_is_the_servers_word_by_word(form: str, server: Contract, told: Callable[..., str]) -> None:
    said = told("GET /v1/usage", {"as": "it is"}, "usage", "--format", form)
    assert json.loads(said) == {"as": "it is"}
    assert f"format={form}" in server.calls[0].line


def test_a_statement_is_sent_and_what_it_changes_is_told(
    server: Contract, told: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "statement.csv"
    file.write_text("when,request,amount\nmonday,req_1,0.01\ntuesday,req_1,0.005\ntuesday,req_9,1e-2\n", "utf-8-sig")
    columns = ["--id-column", "request", "--cost-column", "amount"]
    command = ["ledger", "reconcile", "fal", str(file), *columns]
    lines = told("POST /v1/admin/reconcile", FOUND, *command).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["att_2", "corrected", "0.01", "0.015", "0.005"],
        ["att_1", "settled", "-", "-", "-"],
        ["req_9", "not", "found", "-", "-", "-"],
    ]
    assert server.calls[0].json == {
        "provider": "fal",
        "lines": [{"id": "req_1", "cost": "0.015"}, {"id": "req_9", "cost": "0.01"}],
    }
    assert json.loads(told("POST /v1/admin/reconcile", FOUND, *command, "--json")) == FOUND


def test_the_amounts_of_jsonl_are_exact(tmp_path: Path) -> None:
    file = tmp_path / "statement.jsonl"
    file.write_text('{"id": "a", "cost": 0.1}\n\n{"id": "a", "cost": 0.2}\n{"id": 7, "cost": "-1.0000000004"}\n')
    assert read_statement(file, "id", "cost") == [{"id": "a", "cost": "0.3"}, {"id": "7", "cost": "-1"}]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "neither .csv nor .jsonl"),
        ("a.csv", "id,cost\n", "has no lines"),
        ("a.csv", "id,price\nx,1\n", "line 2 of .* has no 'cost', it has id, price"),
        ("a.csv", "id,cost\nx,1\ny,free\n", "line 3 of .* 'free' is no amount"),
        ("a.jsonl", "{}\n", "line 1 of .* has no 'id'"),
        ("a.jsonl", "[]\n", "line 1 of .* is no object"),
        ("a.jsonl", "\n{\n", "line 2 of .* is not JSON"),
        ("a.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_statement_is_said(name: str, text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=words):
        read_statement(file, "id", "cost")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("usage --since 30", "--since '30': not a time"),
        ("usage --group-by project,colour", "--group-by 'colour'"),
        ("usage --format xml", "table, csv, focus, json"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: str, words: str, server: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    assert words in capsys.readouterr().err
    assert server.calls == []


def test_without_a_server_and_without_rights_that_is_said(server: Contract, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults = [Fault("GET /v1/budgets", 401, body=error("a key is needed", code="invalid_api_key"))]
    assert run(["budgets"]) == 2
    assert "KLEINBILD_API_KEY" in capsys.readouterr().err
    running.withdraw()
    assert run(["budgets"]) == 5
    assert "no server runs on this machine" in capsys.readouterr().err
