"""Who may administer which keys, field by field."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from kleinbild.core.callers import Caller, Limits, Role
from kleinbild.gateway.flow.make import payers_of
from kleinbild.storage import budgets, keys
from tests.unit.gateway.server import Server
from tests.unit.storage.money import a_budget, an_attempt, put

pytestmark = pytest.mark.anyio
KEYS = "/v1/admin/keys"
IN_2100 = 4_102_444_800  # not by the clock: it is in names of tests, which all who run them must agree on
RIGHTS: dict[str, Any] = {
    "models": ("nano",),
    "routes": ("/v1/images", "/v1/admin"),
    "limits": Limits(10, 10, 1),
    "expires_at": float(IN_2100),
}
MORE = {
    "role": "admin",
    "models": ["nano", "klein-4b"],
    "routes": ["/v1"],
    "limits": {"requests_per_minute": 11, "images_per_minute": 10, "concurrent_jobs": 1},
    "expires_at": IN_2100 + 1,
}
UNLIMITED = [("models", None), ("routes", None), ("limits", {}), ("expires_at", None)]


async def test_a_key_is_told_once(server: Server) -> None:
    _, admin = await server.key("admin")
    made = (await server.ask("POST", KEYS, admin, json={"name": "app", "project": "q", "owner": "anna"})).json()
    assert made["key"].startswith(made["prefix"])
    assert (made["project"], made["owner"], made["role"]) == ("q", "anna", "member")
    listed = await server.ask("GET", KEYS, admin)
    assert made["id"] in [key["id"] for key in listed.json()["data"]]
    assert made["key"] not in listed.text
    assert "key" not in (await server.ask("GET", f"{KEYS}/{made['id']}", admin)).json()
    assert (await server.ask("GET", "/v1/files", made["key"])).status_code != 401


@pytest.mark.parametrize(("field", "value"), [*MORE.items(), *UNLIMITED, ("project", "q")])
async def test_a_member_cannot_make_a_key_that_may_more(server: Server, field: str, value: object) -> None:
    _, member = await server.key(**RIGHTS)
    answer = await server.ask("POST", KEYS, member, json={"name": "more", field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, field)


@pytest.mark.parametrize(("field", "value"), [*MORE.items(), *UNLIMITED])
async def test_a_member_cannot_change_a_key_of_his_to_more(server: Server, field: str, value: object) -> None:
    _, member = await server.key(**RIGHTS)
    child = (await server.ask("POST", KEYS, member, json={"name": "child"})).json()
    answer = await server.ask("PATCH", f"{KEYS}/{child['id']}", member, json={field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, field)


@pytest.mark.parametrize("role", ["member", "admin"])
@pytest.mark.parametrize(("field", "value"), [*MORE.items(), *UNLIMITED])
async def test_nobody_changes_what_he_himself_may(server: Server, role: str, field: str, value: object) -> None:
    key, text = await server.key(role, **RIGHTS)
    answer = await server.ask("PATCH", f"{KEYS}/{key.id}", text, json={field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, field)


@pytest.mark.parametrize(("field", "value"), [item for item in (*MORE.items(), *UNLIMITED) if item[0] != "role"])
async def test_an_admin_with_limits_gives_no_more_than_he_has(server: Server, field: str, value: object) -> None:
    _, admin = await server.key("admin", **RIGHTS)
    made = await server.ask("POST", KEYS, admin, json={"name": "more", field: value})
    assert (made.status_code, made.json()["error"]["param"]) == (403, field)
    other, _ = await server.key("member", models=(), routes=("/v1/images",), limits=Limits(1, 1, 1), expires_at=1e9)
    changed = await server.ask("PATCH", f"{KEYS}/{other.id}", admin, json={field: value})
    assert (changed.status_code, changed.json()["error"]["param"]) == (403, field)


@pytest.mark.parametrize("field", ["owner", "project", "parent", "id", "digest", "revoked_at", "created_at"])
async def test_other_fields_are_not_writable(server: Server, field: str) -> None:
    _, admin = await server.key("admin")
    key, _ = await server.key()
    answer = await server.ask("PATCH", f"{KEYS}/{key.id}", admin, json={field: "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter")


async def test_a_member_sees_and_touches_his_own_keys_alone(server: Server) -> None:
    mine, member = await server.key()
    other, _ = await server.key()
    child = (await server.ask("POST", KEYS, member, json={"name": "child"})).json()
    assert [key["id"] for key in (await server.ask("GET", KEYS, member)).json()["data"]] == [mine.id, child["id"]]
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/rotate"), ("DELETE", "")):
        body = {"json": {"name": "x"}} if method == "PATCH" else {}
        assert (await server.ask(method, f"{KEYS}/{other.id}{path}", member, **body)).status_code == 404
        assert (await server.ask(method, f"{KEYS}/{child['id']}{path}", member, **body)).status_code == 200


async def test_a_viewer_sees_his_own_key_and_changes_nothing(server: Server) -> None:
    mine, viewer = await server.key("viewer")
    await server.key("viewer", parent=mine)
    assert [key["id"] for key in (await server.ask("GET", KEYS, viewer)).json()["data"]] == [mine.id]
    for method, path in (
        ("PATCH", f"/{mine.id}"),
        ("DELETE", f"/{mine.id}"),
        ("POST", f"/{mine.id}/rotate"),
        ("POST", ""),
    ):
        body = {} if method == "DELETE" or path.endswith("rotate") else {"json": {"name": "x"}}
        assert (await server.ask(method, KEYS + path, viewer, **body)).status_code == 403
    assert (await server.ask("GET", "/v1/admin/audit", viewer)).status_code == 403


async def test_a_revoked_key_is_refused_at_once_and_its_children_too(server: Server) -> None:
    _, admin = await server.key("admin")
    parent, text = await server.key()
    child = (await server.ask("POST", KEYS, text, json={"name": "child"})).json()["key"]
    assert (await server.ask("GET", KEYS, child)).status_code == 200
    revoked = await server.ask("DELETE", f"{KEYS}/{parent.id}", admin)
    assert revoked.json()["revoked_at"] is not None
    for key in (text, child):
        assert (await server.ask("GET", KEYS, key)).status_code == 401


async def test_a_rotated_key_works_and_the_one_before_does_not(server: Server) -> None:
    key, text = await server.key()
    new = (await server.ask("POST", f"{KEYS}/{key.id}/rotate", text)).json()["key"]
    assert (await server.ask("GET", KEYS, text)).status_code == 401
    assert (await server.ask("GET", KEYS, new)).status_code == 200


async def test_an_admin_with_limits_cannot_rotate_himself_into_a_stronger_key(server: Server) -> None:
    strong, _ = await server.key("admin")
    _, weak = await server.key("admin", **RIGHTS)
    answer = await server.ask("POST", f"{KEYS}/{strong.id}/rotate", weak)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "beyond_parent")


async def test_every_action_is_audited_and_no_refused_one(server: Server) -> None:
    admin_key, admin = await server.key("admin")
    made = (await server.ask("POST", KEYS, admin, json={"name": "app"})).json()
    path = f"{KEYS}/{made['id']}"
    await server.ask("PATCH", path, admin, json={"name": "app 2", "models": ["nano"]})
    await server.ask("PATCH", path, admin, json={"owner": "x"})
    await server.ask("POST", f"{path}/rotate", admin)
    await server.ask("DELETE", path, admin)
    answer = await server.ask("GET", "/v1/admin/audit", admin)
    entries = answer.json()["data"]
    assert [entry["action"] for entry in entries] == ["key.revoke", "key.rotate", "key.change", "key.create"]
    assert {(entry["actor"], entry["target"]) for entry in entries} == {(admin_key.id, made["id"])}
    assert entries[2]["details"] == {"name": "app 2", "models": ["nano"]}
    assert made["key"] not in answer.text
    page = (await server.ask("GET", f"/v1/admin/audit?limit=1&after={entries[0]['id']}", admin)).json()
    assert (page["data"], page["has_more"]) == ([entries[1]], True)


async def test_a_budget_is_given_shown_and_taken_away_by_an_admin(server: Server) -> None:
    _, admin = await server.key("admin")
    wanted = {"amount": "5.00", "window": "30d"}
    made = (await server.ask("POST", KEYS, admin, json={"name": "app", "budget": wanted, "policy": "cost"})).json()
    path = f"{KEYS}/{made['id']}"
    assert made["policy"] == "cost"
    await spend(server, made["id"], "0.30", reserved="0.40")
    for shown in (
        (await server.ask("GET", path, admin)).json(),
        next(k for k in (await server.ask("GET", KEYS, admin)).json()["data"] if k["id"] == made["id"]),
        (await server.ask("GET", path, made["key"])).json(),
    ):
        standing = dict(shown["budget"])
        assert time.time() < standing.pop("resets_at") <= time.time() + 30 * 24 * 3600
        assert standing == {"amount": "5", "window": "30d", "spent": "0.3", "reserved": "0.4", "remaining": "4.3"}
    raised = await server.ask("PATCH", path, admin, json={"budget": {"amount": "7", "window": "30d"}})
    assert (raised.json()["budget"]["remaining"], raised.json()["policy"]) == ("6.3", "cost")
    taken = await server.ask("PATCH", path, admin, json={"budget": None, "policy": None})
    assert (taken.json()["budget"], taken.json()["policy"]) == (None, None)
    log = (await server.ask("GET", "/v1/admin/audit", admin)).json()["data"]
    assert [entry["details"]["budget"] for entry in log] == [None, {"amount": "7", "window": "30d"}, wanted]
    assert log[2]["details"]["policy"] == "cost"


async def test_a_member_gives_no_budgets_and_nobody_raises_his_own(server: Server) -> None:
    more = {"budget": {"amount": "100"}}
    for role in ("member", "admin"):
        key, text = await server.key(role)
        answer = await server.ask("PATCH", f"{KEYS}/{key.id}", text, json=more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "budget")
    _, member = await server.key()
    child = (await server.ask("POST", KEYS, member, json={"name": "child", "policy": "latency"})).json()
    assert child["policy"] == "latency"
    for method, path in (("POST", KEYS), ("PATCH", f"{KEYS}/{child['id']}")):
        answer = await server.ask(method, path, member, json={"name": "child", **more})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "field_not_allowed")


async def test_an_admin_with_a_budget_finds_no_way_around_it(server: Server) -> None:
    """By a key of his own making, one of others', or the one above his."""
    above, _ = await server.key("admin")
    await budget_of(server, above.id, "1")
    _, admin = await server.key("admin", parent=above)
    other, _ = await server.key()
    for key in (above, other):
        raised = await server.ask("PATCH", f"{KEYS}/{key.id}", admin, json={"budget": {"amount": "9"}})
        assert (raised.status_code, raised.json()["error"]["code"]) == (403, "beyond_budget")
        rotated = await server.ask("POST", f"{KEYS}/{key.id}/rotate", admin)
        assert (rotated.status_code, rotated.json()["error"]["code"]) == (403, "beyond_budget")
    child = (await server.ask("POST", KEYS, admin, json={"name": "child", "budget": {"amount": "9"}})).json()
    assert above.id in payers_of(await server.authenticator.caller(child["key"]))


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"amount": 5},
        {"amount": "-1"},
        {"amount": "1e3"},
        {"amount": "5", "window": "400d"},
        {"amount": "5", "x": 1},
    ],
)
async def test_what_is_no_budget_is_refused(server: Server, budget: dict[str, Any]) -> None:
    _, admin = await server.key("admin")
    answer = await server.ask("POST", KEYS, admin, json={"name": "app", "budget": budget})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("budget")


async def test_a_policy_is_that_of_the_nearest_key_above(server: Server) -> None:
    _, admin = await server.key("admin")
    made = (await server.ask("POST", KEYS, admin, json={"name": "app", "policy": "cost"})).json()
    child = (await server.ask("POST", KEYS, made["key"], json={"name": "child"})).json()
    assert child["policy"] is None
    assert (await server.authenticator.caller(child["key"])).policy == "cost"
    await server.ask("PATCH", f"{KEYS}/{child['id']}", admin, json={"policy": "quality"})
    assert (await server.authenticator.caller(child["key"])).policy == "quality"
    assert (await server.authenticator.caller(made["key"])).policy == "cost"
    assert (await server.ask("PATCH", f"{KEYS}/{child['id']}", admin, json={"policy": "cheap"})).status_code == 400


async def test_a_new_budget_holds_at_once(server: Server) -> None:
    key, _ = await server.key()
    known = server.app.state.services.budgets
    assert await known.for_call([key.id], "p", "nano") == ()
    _, admin = await server.key("admin")
    await server.ask("PATCH", f"{KEYS}/{key.id}", admin, json={"budget": {"amount": "0.5"}})
    assert [each.amount for each in await known.for_call([key.id], "p", "nano")] == [Decimal("0.5")]


@pytest.mark.parametrize("role", ["member", "admin"])
async def test_an_admin_of_the_configuration_gives_what_he_has(server: Server, role: Role) -> None:
    digest = keys.digest(server.secrets.derive("api keys"), "a secret of the file")
    ops = Caller("toml:ops", owner="olga", project="q", role=role, models=("nano",))
    server.authenticator.configure({digest: ops})
    answer = await server.ask("POST", KEYS, "a secret of the file", json={"name": "app"})
    if role == "member":
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_not_allowed")
        return
    made = answer.json()
    assert (made["owner"], made["project"], made["role"], made["models"]) == ("olga", "q", "member", ["nano"])
    more = await server.ask("POST", KEYS, "a secret of the file", json={"name": "app", "models": None})
    assert (more.status_code, more.json()["error"]["param"]) == (403, "models")
    changed = await server.ask("PATCH", f"{KEYS}/{made['id']}", "a secret of the file", json={"role": "viewer"})
    assert changed.json()["role"] == "viewer"
    await put(server.database, a_budget("toml:keys.ops", key="toml:ops"))
    around = await server.ask("POST", KEYS, "a secret of the file", json={"name": "app"})
    assert (around.status_code, around.json()["error"]["code"]) == (403, "beyond_budget")


async def budget_of(server: Server, key_id: str, amount: str) -> None:
    await put(server.database, a_budget(f"key:{key_id}", amount, key=key_id))


async def spend(server: Server, key_id: str, cost: str, *, reserved: str) -> None:
    """Of the key's budgets, and sets aside `reserved` besides."""
    ledger = server.app.state.services.ledger
    async with server.database.read() as connection:
        of = [each for each in await budgets.listed(connection) if each.key == key_id]
    await ledger.reserve(an_attempt("att_1", cost, caller=key_id), of)
    await ledger.settle("att_1", "done", Decimal(cost))
    await ledger.reserve(an_attempt("att_2", reserved, caller=key_id, number=2), of)
