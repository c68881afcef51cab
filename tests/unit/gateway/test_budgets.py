"""`/v1/budgets` and `/v1/admin/reconcile`: who sees what may be spent, and what a provider's statement changes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.unit.gateway.server import Server
from tests.unit.storage.money import a_budget, an_attempt, put

pytestmark = pytest.mark.anyio
RECONCILE = "/v1/admin/reconcile"


async def seen(server: Server, key: str) -> list[dict[str, Any]]:
    answer = await server.ask("GET", "/v1/budgets", key)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_everyone_sees_the_budgets_that_concern_him(server: Server) -> None:
    _, admin = await server.key("admin")
    parent, parents = await server.key("member")
    child, childs = await server.key("member", parent=parent, models=("nano",))
    _, viewer = await server.key("viewer", project="q")
    await put(
        server.database,
        a_budget("all", "100"),
        a_budget("child", "1", key=child.id),
        a_budget("model", "9", model="klein-4b"),
        a_budget("other", "1", key="key_other"),
        a_budget("parent", "5", key=parent.id),
        a_budget("project", "50", project="p"),
    )
    assert [each["id"] for each in await seen(server, admin)] == ["all", "child", "model", "other", "parent", "project"]
    assert [each["id"] for each in await seen(server, parents)] == ["all", "child", "model", "parent", "project"]
    assert [each["id"] for each in await seen(server, childs)] == ["all", "child", "parent", "project"]
    assert [each["id"] for each in await seen(server, viewer)] == ["all", "model"]


async def test_a_budget_is_told_as_it_stands(server: Server) -> None:
    key, text = await server.key()
    (budget,) = await put(server.database, a_budget("b", "1.50", project="p", model="nano", window="month"))
    ledger = server.app.state.services.ledger
    await ledger.reserve(an_attempt("att_1", "0.25"), [budget])
    await ledger.settle("att_1", "done", Decimal("0.20"))
    await ledger.reserve(an_attempt("att_2", "0.10", number=2), [budget])
    (told,) = await seen(server, text)
    assert told.pop("resets_at") > key.created_at
    assert told == {
        "id": "b",
        "object": "budget",
        "scope": "project+model",
        "subject": "p+nano",
        "amount": "1.5",
        "window": "month",
        "spent": "0.2",
        "reserved": "0.1",
        "remaining": "1.2",
    }


async def test_a_statement_settles_what_nobody_knew_and_corrects_the_rest_once(server: Server) -> None:
    _, admin = await server.key("admin")
    ledger = server.app.state.services.ledger
    for number, name in enumerate(("lost", "dear", "same", "begun"), start=1):
        await ledger.reserve(an_attempt(name, number=number), ())
    await ledger.unknown("lost", "the line broke")
    await ledger.settle("dear", "done", Decimal("0.01"), request_id="req_dear")
    await ledger.settle("same", "done", Decimal("0.02"))
    lines = {"lost": "0.03", "req_dear": "0.015", "same": "0.02", "begun": "0.01", "nobody": "1"}
    statement = {"provider": "fal", "lines": [{"id": id_, "cost": cost} for id_, cost in lines.items()]}
    first = await server.ask("POST", RECONCILE, admin, json=statement)
    assert first.json() == {
        "object": "reconciliation",
        "provider": "fal",
        "currency": "USD",
        "settled": ["lost"],
        "corrected": [{"attempt": "dear", "booked": "0.01", "stated": "0.015", "difference": "0.005"}],
        "under_way": ["begun"],
        "unmatched": ["nobody"],
    }
    entry = await ledger.find("lost")
    assert (entry.state, entry.cost) == ("failed_billed", Decimal("0.03"))
    again = (await server.ask("POST", RECONCILE, admin, json=statement)).json()
    assert (again["settled"], again["corrected"]) == ([], [])
    log = (await server.ask("GET", "/v1/admin/audit", admin)).json()["data"]
    assert [(one["action"], one["target"]) for one in log] == [("ledger.reconcile", "fal")] * 2
    assert log[0]["details"] == {"lines": 5, "total": "1.075"}


async def test_only_an_admin_reconciles(server: Server) -> None:
    _, member = await server.key("member")
    statement = {"provider": "fal", "lines": [{"id": "a", "cost": "1"}]}
    answer = await server.ask("POST", RECONCILE, member, json=statement)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed")


@pytest.mark.parametrize(
    "statement",
    [
        {"provider": "fal"},
        {"provider": "fal", "lines": []},
        {"provider": "fal", "lines": [{"id": "a", "cost": 1.5}]},
        {"provider": "fal", "lines": [{"id": "a", "cost": "1e2"}]},
        {"lines": [{"id": "a", "cost": "1"}]},
    ],
)
async def test_what_is_no_statement_changes_nothing(server: Server, statement: dict[str, Any]) -> None:
    _, admin = await server.key("admin")
    assert (await server.ask("POST", RECONCILE, admin, json=statement)).status_code == 400
    assert (await server.ask("GET", "/v1/admin/audit", admin)).json()["data"] == []
