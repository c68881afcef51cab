"""From header to caller: who is refused, how, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from kleinbild.core.callers import LOCAL, Limits
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.authenticate import Authenticator, require_model, require_route
from kleinbild.storage import keys
from kleinbild.storage.database import Database
from kleinbild.storage.keys import Rights
from tests.unit.gateway.server import Server, serving

pytestmark = pytest.mark.anyio


class Clock:
    now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def queries(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    for engine in (database.reader, database.writer):
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    for engine in (database.reader, database.writer):
        event.remove(engine.sync_engine, "before_cursor_execute", note)


def at(server: Server, clock: Clock) -> Authenticator:
    return Authenticator(server.database, server.secrets.derive("api keys"), clock=clock)


async def test_a_key_stands_for_its_caller(server: Server) -> None:
    key, text = await server.key(models=("nano",), routes=("/v1",), limits=Limits(5, 6, 7))
    caller = await server.authenticator.caller(text)
    assert (caller.id, caller.project, caller.models, caller.limits) == (key.id, "p", ("nano",), Limits(5, 6, 7))


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer sk-proj-123", "Bearer kb_' OR 1=1 --"]
)
async def test_no_key_and_what_is_none_of_ours_is_refused_as_openai_does_and_without_a_query(
    server: Server, header: str | None
) -> None:
    with queries(server.database) as seen:
        answer = await server.client.get("/v1/files", headers={"Authorization": header} if header is not None else {})
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert not seen


async def test_an_unknown_key_is_refused_and_not_told_whole(server: Server) -> None:
    text = keys.new_key()
    answer = await server.ask("GET", "/v1/files", text)
    assert answer.status_code == 401
    assert text not in answer.text


async def test_a_second_request_needs_no_query_and_a_later_one_does(server: Server) -> None:
    clock, (_, text) = Clock(), await server.key()
    authenticator = at(server, clock)
    with queries(server.database) as seen:
        await authenticator.caller(text)
        first = len(seen)
        await authenticator.caller(text)
        assert len(seen) == first > 0
        clock.now += 6
        await authenticator.caller(text)
        assert len(seen) > first


async def test_a_revoked_key_is_refused_within_seconds_and_at_once_after_forgetting(server: Server) -> None:
    clock, (key, text) = Clock(), await server.key()
    authenticator = at(server, clock)
    await authenticator.caller(text)
    async with server.database.write() as connection:
        await keys.revoke(connection, key.id, clock.now)
    authenticator.forget()
    with pytest.raises(ApiError):
        await authenticator.caller(text)


async def test_an_expired_key_is_refused_though_it_is_remembered(server: Server) -> None:
    clock = Clock()
    _, text = await server.key(expires_at=clock.now + 2)
    authenticator = at(server, clock)
    await authenticator.caller(text)
    clock.now += 2
    with pytest.raises(ApiError):
        await authenticator.caller(text)


async def test_callers_with_keys_of_the_same_beginning_are_told_apart(server: Server) -> None:
    _, text = await server.key()
    await server.authenticator.caller(text)
    with pytest.raises(ApiError):
        await server.authenticator.caller(text[:-1] + ("0" if text[-1] != "0" else "1"))


async def test_use_is_noted_once_in_a_while(server: Server) -> None:
    clock, (key, text) = Clock(), await server.key()
    authenticator = at(server, clock)
    for _ in range(3):
        await authenticator.caller(text)
        clock.now += 10
    async with server.database.read() as connection:
        assert (await keys.find(connection, key.id)).last_used_at == 1_900_000_000.0


async def test_without_keys_on_loopback_anybody_is_local_until_the_first_key(
    database: Database, tmp_path: Path
) -> None:
    async with serving(database, tmp_path, open_to_all=True) as server:
        assert await server.authenticator.caller(None) == LOCAL
        assert await server.authenticator.caller("sk-unused") == LOCAL
        answer = await server.ask("POST", "/v1/admin/keys", json={"name": "first", "role": "admin"})
        assert answer.status_code == 201
        with pytest.raises(ApiError):
            await server.authenticator.caller(None)
        assert (await server.authenticator.caller(answer.json()["key"])).role == "admin"


async def test_a_revoked_key_does_not_open_the_server_again(database: Database, tmp_path: Path) -> None:
    async with serving(database, tmp_path, open_to_all=True) as server:
        key, _ = await server.key()
        async with database.write() as connection:
            await keys.revoke(connection, key.id, time.time())
        with pytest.raises(ApiError):
            await server.authenticator.caller(None)


async def test_routes_and_models_that_are_not_allowed_are_403(server: Server) -> None:
    _, text = await server.key(routes=("/v1/images",), models=("nano",))
    answer = await server.ask("GET", "/v1/files", text)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "route_not_allowed")
    caller = await server.authenticator.caller(text)
    require_route(caller, "/v1/images/edits")
    require_model(caller, "nano")
    with pytest.raises(ApiError) as refused:
        require_model(caller, "klein-4b")
    assert (refused.value.status, refused.value.param) == (403, "model")


async def test_rights_without_routes_may_go_anywhere() -> None:
    require_route(LOCAL, "/v1/anything")
    assert Rights("p").routes is None


async def test_a_callers_use_counts_against_the_members_above_him(server: Server) -> None:
    """Not against the admin's, who makes keys for others."""
    limits = Limits(requests_per_minute=5)
    admin, _ = await server.key("admin", limits=Limits(requests_per_minute=9))
    member, _ = await server.key("member", parent=admin, limits=limits)
    _, key = await server.key("member", parent=member, limits=limits)
    assert (await server.authenticator.caller(key)).above == ((member.id, limits),)
