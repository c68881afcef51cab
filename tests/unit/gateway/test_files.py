"""OpenAI's files: what is uploaded is there for its project, for as long as it was to be."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import update

from kleinbild.storage.retention import sweep
from kleinbild.storage.schema import files
from tests.unit.gateway.server import Server

pytestmark = pytest.mark.anyio


async def upload(server: Server, key: str, data: bytes = b"pixels", name: str = "cat.png", **fields: str):
    return await server.ask(
        "POST", "/v1/files", key, files={"file": (name, data, "image/png")}, data={"purpose": "vision", **fields}
    )


async def test_a_file_is_uploaded_found_read_and_deleted(server: Server) -> None:
    _, key = await server.key()
    answer = await upload(server, key)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file["id"].startswith("file_")
    assert abs(file.pop("created_at") - time.time()) < 5
    assert {name: value for name, value in file.items() if name != "id"} == {
        "object": "file",
        "bytes": 6,
        "filename": "cat.png",
        "purpose": "vision",
        "status": "processed",
    }
    path = f"/v1/files/{file['id']}"
    assert (await server.ask("GET", path, key)).json()["filename"] == "cat.png"
    read = await server.ask("GET", f"{path}/content", key)
    assert (read.content, read.headers["content-type"]) == (b"pixels", "application/octet-stream")
    assert read.headers["x-content-type-options"] == "nosniff"
    assert read.headers["content-disposition"].startswith("attachment")
    deleted = await server.ask("DELETE", path, key)
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert (await server.ask(method, path + rest, key)).status_code == 404


async def test_a_large_file_comes_back_as_it_was(server: Server) -> None:
    _, key = await server.key()
    data = bytes(range(256)) * 12_000
    file = (await upload(server, key, data)).json()
    assert file["bytes"] == len(data)
    assert (await server.ask("GET", f"/v1/files/{file['id']}/content", key)).content == data


async def test_another_project_sees_nothing_of_it(server: Server) -> None:
    _, key = await server.key()
    _, other = await server.key(project="q")
    _, admin = await server.key("admin", project="q")
    file = (await upload(server, key)).json()
    for stranger in (other, admin):
        for method, rest in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert (await server.ask(method, f"/v1/files/{file['id']}{rest}", stranger)).status_code == 404
        assert (await server.ask("GET", "/v1/files", stranger)).json()["data"] == []


async def test_files_are_listed_in_pages(server: Server) -> None:
    _, key = await server.key()
    ids = []
    for number in range(5):
        ids.append((await upload(server, key, b"%d" % number)).json()["id"])
        time.sleep(0.002)  # noqa: ASYNC251 - ids are ordered by milliseconds
    await upload(server, key, b"x", purpose="user_data")
    first = (await server.ask("GET", "/v1/files?purpose=vision&order=asc&limit=3", key)).json()
    assert [file["id"] for file in first["data"]] == ids[:3]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[2], True)
    rest = (await server.ask("GET", f"/v1/files?purpose=vision&order=asc&after={ids[2]}", key)).json()
    assert [file["id"] for file in rest["data"]] == ids[3:]
    assert rest["has_more"] is False
    newest = (await server.ask("GET", "/v1/files?purpose=vision", key)).json()
    assert [file["id"] for file in newest["data"]] == ids[::-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"colour": "red"}, "colour"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "7200"}, "expires_after[anchor]"),
        ({"expires_after[seconds]": "7200"}, "expires_after"),
    ],
)
async def test_what_openai_refuses_is_refused(server: Server, fields: dict[str, str], param: str) -> None:
    _, key = await server.key()
    answer = await upload(server, key, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_file_without_a_file_is_refused(server: Server) -> None:
    _, key = await server.key()
    answer = await server.ask("POST", "/v1/files", key, files={"purpose": (None, "vision")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


async def test_files_expire_when_asked_to_and_batches_by_themselves(server: Server) -> None:
    _, key = await server.key()
    asked = await upload(server, key, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"})
    assert asked.json()["expires_at"] - asked.json()["created_at"] == 7200
    batch = await upload(server, key, purpose="batch")
    assert batch.json()["expires_at"] - batch.json()["created_at"] == 30 * 24 * 3600


async def test_an_expired_file_is_gone_before_and_after_the_sweep_and_its_bytes_with_it(server: Server) -> None:
    _, key = await server.key()
    kept = (await upload(server, key, b"kept")).json()
    file = (await upload(server, key)).json()
    async with server.database.write() as connection:
        await connection.execute(update(files).where(files.c.id == file["id"]).values(expires_at=time.time() - 1))
    assert (await server.ask("GET", f"/v1/files/{file['id']}", key)).status_code == 404
    in_two_days = time.time() + 2 * 24 * 3600
    await sweep(server.database, server.blobs, in_two_days, kept_seconds=30 * 24 * 3600)
    async with server.database.read() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM files")).scalar() == 1
        assert (await connection.exec_driver_sql("SELECT count(*) FROM blobs")).scalar() == 1
    assert (await server.ask("GET", f"/v1/files/{kept['id']}/content", key)).content == b"kept"


async def test_a_viewer_looks_and_does_not_upload(server: Server) -> None:
    _, viewer = await server.key("viewer")
    assert (await upload(server, viewer)).status_code == 403
    assert (await server.ask("GET", "/v1/files", viewer)).status_code == 200


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b\\c.png", "x" * 300, "..", ""])
async def test_a_name_is_a_name_and_no_path(server: Server, name: str) -> None:
    _, key = await server.key()
    answer = await upload(server, key, name=name)
    if answer.status_code == 200:
        assert not set(answer.json()["filename"]) & set("/\\")
        assert 0 < len(answer.json()["filename"]) <= 255
