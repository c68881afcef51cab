"""A key gives no more than it has, however it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kleinbild.core.callers import Limits
from kleinbild.storage import keys
from kleinbild.storage.database import Database
from kleinbild.storage.keys import BeyondParentError, Key, MissingKeyError, Rights, covers, within

pytestmark = pytest.mark.anyio

SECRET = b"s" * 32
PARENT = Rights(
    "p", "member", ("klein-4b", "nano"), ("/v1/images", "/v1/jobs"), Limits(60, 10, 2), expires_at=2_000_000_000.0
)
MORE = {
    "project": "q",
    "role": "admin",
    "models": ("nano", "klein-9b"),
    "routes": ("/v1",),
    "limits": Limits(61, 10, 2),
    "expires_at": 2_000_000_001.0,
}
UNLIMITED = {"models": None, "routes": None, "limits": Limits(60, None, 2), "expires_at": None}


async def made(database: Database, rights: Rights, parent: Key | None = None) -> tuple[Key, str]:
    async with database.write() as connection:
        return await keys.create(
            connection, SECRET, name="n", owner="o", rights=rights, parent=parent.id if parent else None
        )


async def used(database: Database, text: str, now: float = 1_900_000_000.0) -> Key | None:
    async with database.read() as connection:
        return await keys.authenticate(connection, keys.digest(SECRET, text), now)


async def test_a_key_is_found_by_its_digest_and_kept_nowhere(database: Database) -> None:
    key, text = await made(database, PARENT)
    assert keys.FORM.fullmatch(text)
    assert text.startswith(key.prefix)
    found = await used(database, text)
    assert found == key
    async with database.read() as connection:
        rows = (await connection.exec_driver_sql("SELECT * FROM keys")).all()
    assert text not in str(rows)
    assert text[11:] not in str(rows)


async def test_the_digest_is_no_key_and_depends_on_the_secret(database: Database) -> None:
    _, text = await made(database, PARENT)
    assert await used(database, keys.digest(SECRET, text)) is None
    async with database.read() as connection:
        assert await keys.authenticate(connection, keys.digest(b"other", text), 0) is None


async def test_keys_of_the_same_beginning_are_told_apart(database: Database) -> None:
    _, text = await made(database, PARENT)
    assert await used(database, text[:-1] + ("0" if text[-1] != "0" else "1")) is None


@pytest.mark.parametrize(
    ("field", "value"), [*MORE.items(), *UNLIMITED.items()], ids=[*MORE, *(f"no-{name}" for name in UNLIMITED)]
)
async def test_a_child_cannot_be_given_more(database: Database, field: str, value: object) -> None:
    parent, _ = await made(database, PARENT)
    with pytest.raises(BeyondParentError) as refused:
        await made(database, replace(PARENT, **{field: value}), parent)
    assert refused.value.field == field


@pytest.mark.parametrize(("field", "value"), [*MORE.items(), *UNLIMITED.items()])
async def test_a_child_cannot_be_changed_to_more(database: Database, field: str, value: object) -> None:
    parent, _ = await made(database, PARENT)
    child, _ = await made(database, PARENT, parent)
    async with database.write() as connection:
        with pytest.raises(BeyondParentError):
            await keys.change(connection, child.id, rights=replace(PARENT, **{field: value}))


async def test_a_child_can_have_less(database: Database) -> None:
    parent, _ = await made(database, PARENT)
    less = Rights("p", "viewer", ("nano",), ("/v1/images/edits",), Limits(1, 1, 1), expires_at=1_950_000_000.0)
    child, text = await made(database, less, parent)
    assert child.rights == less
    assert await used(database, text) == replace(child, above=((parent.id, PARENT.limits),), payers=(parent.id,))


async def test_a_child_cannot_have_more_than_its_grandparent(database: Database) -> None:
    top, _ = await made(database, PARENT)
    middle, _ = await made(database, replace(PARENT, models=("nano",)), top)
    with pytest.raises(BeyondParentError):
        await made(database, PARENT, middle)


@pytest.mark.parametrize(
    ("field", "value"),
    [("role", "viewer"), ("models", ("nano",)), ("routes", ("/v1/jobs",)), ("limits", Limits(1, 1, 1))],
)
async def test_cutting_a_parent_cuts_its_children(database: Database, field: str, value: object) -> None:
    parent, _ = await made(database, PARENT)
    _, text = await made(database, PARENT, parent)
    async with database.write() as connection:
        await keys.change(connection, parent.id, rights=replace(PARENT, **{field: value}))
    found = await used(database, text)
    assert found is not None
    assert getattr(found.rights, field) == value


async def test_revoking_a_key_fells_what_descends_from_it_alone(database: Database) -> None:
    top, top_text = await made(database, PARENT)
    middle, middle_text = await made(database, PARENT, top)
    _, low_text = await made(database, PARENT, middle)
    async with database.write() as connection:
        await keys.revoke(connection, middle.id, 1.0)
    assert [await used(database, text) is not None for text in (top_text, middle_text, low_text)] == [
        True,
        False,
        False,
    ]


async def test_a_key_expires_and_so_does_a_child_with_its_parent(database: Database) -> None:
    parent, text = await made(database, replace(PARENT, expires_at=100.0))
    _, child_text = await made(database, replace(PARENT, expires_at=100.0), parent)
    assert await used(database, text, now=99.0)
    assert await used(database, text, now=100.0) is None
    async with database.write() as connection:
        await keys.change(connection, parent.id, rights=replace(PARENT, expires_at=50.0))
    assert await used(database, child_text, now=60.0) is None


async def test_a_key_of_another_project_falls_when_its_parent_is_admin_no_more(database: Database) -> None:
    admin, _ = await made(database, Rights("p", "admin"))
    _, text = await made(database, Rights("q"), admin)
    assert await used(database, text)
    async with database.write() as connection:
        await keys.change(connection, admin.id, rights=Rights("p", "member"))
    assert await used(database, text) is None


async def test_a_rotated_key_is_another_text_with_the_same_children(database: Database) -> None:
    parent, old = await made(database, PARENT)
    _, child_text = await made(database, PARENT, parent)
    async with database.write() as connection:
        rotated, new = await keys.rotate(connection, SECRET, parent.id)
    assert await used(database, old) is None
    assert await used(database, new) == rotated
    assert await used(database, child_text)


async def test_generations_are_limited(database: Database) -> None:
    key: Key | None = None
    for _ in range(keys.MAX_DEPTH):
        key, _ = await made(database, PARENT, key)
    with pytest.raises(BeyondParentError):
        await made(database, PARENT, key)


async def test_descendants_are_listed_and_no_others(database: Database) -> None:
    top, _ = await made(database, PARENT)
    child, _ = await made(database, PARENT, top)
    grandchild, _ = await made(database, PARENT, child)
    other, _ = await made(database, replace(PARENT, project="q"))
    async with database.read() as connection:
        assert [key.id for key in await keys.listed(connection, below=child.id)] == [child.id, grandchild.id]
        assert [key.id for key in await keys.listed(connection, project="q")] == [other.id]
        assert await keys.is_below(connection, grandchild.id, top.id)
        assert not await keys.is_below(connection, top.id, grandchild.id)
        assert not await keys.is_below(connection, top.id, top.id)
        with pytest.raises(MissingKeyError):
            await keys.find(connection, "key_unknown")


@pytest.mark.parametrize(
    ("route", "path", "covered"),
    [
        ("/v1/images", "/v1/images", True),
        ("/v1/images", "/v1/images/edits", True),
        ("/v1/images", "/v1/images-of-others", False),
        ("/v1/images", "/v1", False),
        ("/", "/v1", True),
        ("", "/v1", True),
    ],
)
def test_a_route_covers_what_is_below_it(route: str, path: str, covered: bool) -> None:
    assert covers(route, path) is covered


def test_nothing_allowed_stays_nothing() -> None:
    assert within(replace(PARENT, models=None), replace(PARENT, models=())).models == ()
    assert within(replace(PARENT, models=()), PARENT).models == ()
