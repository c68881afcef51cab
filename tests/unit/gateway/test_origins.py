"""Without keys, only this machine's own programs and the server's own pages may use it."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.origins import require_own_origin
from kleinbild.gateway.settings import Server
from kleinbild.storage.database import Database
from tests.unit.gateway.server import serving


def refusal(method: str = "POST", *, server: Server = Server(), **headers: str) -> str | None:  # type: ignore[call-arg]  # noqa: B008
    given = {"host": "127.0.0.1:8190", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    request = Request({"type": "http", "method": method, "scheme": "http", "path": "/", "headers": raw})
    try:
        require_own_origin(request, server)
    except ApiError as error:
        return error.code if error.status == 403 else f"{error.status}"
    return None


@pytest.mark.parametrize("host", ["127.0.0.1:8190", "localhost", "LOCALHOST:1", "[::1]:8190"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_programs_on_this_machine_may(host: str, method: str) -> None:
    assert refusal(method, host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8190", "127.0.0.1.evil.example", "", "[", "192.168.1.2"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_made_to_point_here_may_not(host: str, method: str) -> None:
    assert refusal(method, host=host) == "host_not_allowed"


def test_the_configured_host_and_the_public_url_are_the_servers_own() -> None:
    server = Server(host="127.0.0.9", public_url="https://pictures.example/kleinbild")  # type: ignore[call-arg]
    assert refusal(host="127.0.0.9:8190", server=server) is None
    assert refusal(host="pictures.example", origin="https://pictures.example", server=server) is None
    assert refusal(host="pictures.example", origin="https://other.example", server=server) == "origin_not_allowed"


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8190", "https://127.0.0.1:8190"],
)
def test_a_page_of_another_site_may_look_but_change_nothing(origin: str) -> None:
    for method in ("POST", "PATCH", "PUT", "DELETE"):
        assert refusal(method, origin=origin) == "origin_not_allowed"
    assert refusal("GET", origin=origin, sec_fetch_site="cross-site") is None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_browser_that_tells_no_origin_tells_the_site(site: str) -> None:
    assert refusal(sec_fetch_site=site) == "origin_not_allowed"


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_the_servers_own_pages_may(site: str) -> None:
    assert refusal(sec_fetch_site=site) is None
    assert refusal(origin="http://127.0.0.1:8190", sec_fetch_site=site) is None


@pytest.mark.anyio
async def test_a_route_refuses_and_with_keys_does_not(database: Database, tmp_path) -> None:
    form = {"files": {"file": ("a.txt", b"words")}, "data": {"purpose": "user_data"}}
    foreign = {"Origin": "https://evil.example"}
    async with serving(database, tmp_path, open_to_all=True) as server:
        refused = await server.ask("POST", "/v1/files", headers=foreign, **form)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        _, key = await server.key()
        server.authenticator.forget()
        assert (await server.ask("POST", "/v1/files", key, headers=foreign, **form)).status_code == 200
