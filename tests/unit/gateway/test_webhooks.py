import asyncio
import json
import time
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace

import httpx2
import openai
import pytest
from fastapi import FastAPI
from standardwebhooks import Webhook, WebhookVerificationError

from kleinbild.core.callers import Caller
from kleinbild.gateway import errors
from kleinbild.gateway.api import webhooks as api
from kleinbild.gateway.flow import authenticate
from kleinbild.gateway.secrets import Secrets
from kleinbild.gateway.webhooks import (
    MAX_PAYLOAD_BYTES,
    RETRY_SECONDS,
    Attempt,
    Receiver,
    SealError,
    WebhookEvent,
    deliver_once,
    new_secret,
    payload,
    receiver_of,
    seal,
    send_once,
    sign,
    sign_for_bfl,
    unseal,
)
from kleinbild.safety.fetch import Fetcher, Reach
from kleinbild.storage import webhooks
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.webhooks import Endpoint
from tests.unit.safety.server import answer_of, serving

pytestmark = pytest.mark.anyio

LOOPBACK = (ip_network("127.0.0.0/8"),)
KEY = bytes(range(32))
EVENT = WebhookEvent("evt_1", "job.completed", 1_700_000_000.5, "job_1", {"id": "job_1", "status": "completed"})


@pytest.fixture
def anyio_backend():
    return "asyncio"


def headers_of(request):
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
    return {name.lower(): value for name, _, value in lines}, body


async def delivered(answer, secrets=("whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=",), now=None, path="/hook"):
    async with serving(answer) as server:
        fetcher = Fetcher(Reach(LOOPBACK, frozenset({server.port})))
        receiver = Receiver(f"http://127.0.0.1:{server.port}{path}", tuple(secrets))
        attempt = await deliver_once(receiver, EVENT, client=fetcher, now=now or time.time())
        await fetcher.aclose()
    return attempt, server


async def test_a_receiver_verifies_what_is_delivered():
    secret = new_secret()
    attempt, server = await delivered(answer_of(b"", "204 None"), [secret])
    assert attempt == Attempt("delivered", 204)
    headers, body = headers_of(server.requests[0])
    event = Webhook(secret).verify(body, headers)
    assert event == {
        "id": "evt_1",
        "object": "event",
        "type": "job.completed",
        "created_at": 1_700_000_000,
        "timestamp": "2023-11-14T22:13:20.500Z",
        "data": {"id": "job_1", "status": "completed"},
    }
    assert headers["webhook-id"] == "evt_1"
    assert headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)


async def test_openais_own_package_verifies_it():
    secret = new_secret()
    _, server = await delivered(answer_of(b""), [secret])
    headers, body = headers_of(server.requests[0])
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    client.webhooks.verify_signature(body.decode(), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body.decode() + " ", headers)


async def test_after_a_rotation_both_secrets_verify():
    old, new = new_secret(), new_secret()
    _, server = await delivered(answer_of(b""), [new, old])
    headers, body = headers_of(server.requests[0])
    Webhook(old).verify(body, headers)
    Webhook(new).verify(body, headers)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("200 OK", "delivered"),
        ("202 Accepted", "delivered"),
        ("301 Moved", "retry"),
        ("307 Moved", "retry"),
        ("400 Bad", "retry"),
        ("404 Missing", "retry"),
        ("410 Gone", "gone"),
        ("429 Slow", "retry"),
        ("500 Broken", "retry"),
    ],
)
async def test_what_an_answer_means(status, outcome):
    attempt, _ = await delivered(answer_of(b"x", status, "location: http://127.0.0.1/"))
    assert attempt == Attempt(outcome, int(status[:3]))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://10.0.0.1/", "http://169.254.169.254/", "nonsense"])
async def test_where_there_is_no_answer_it_is_tried_again(url):
    fetcher = Fetcher()
    assert await deliver_once(Receiver(url, (new_secret(),)), EVENT, client=fetcher, now=1e9) == Attempt("retry")
    await fetcher.aclose()


def test_the_times_of_standard_webhooks():
    assert RETRY_SECONDS == (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)


def test_a_known_signature():
    """The example of the standardwebhooks packages' own tests."""
    headers = sign(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330.9,
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


async def test_bfls_signature():
    """RFC 4231, test case 2; and as it is sent."""
    signed = sign_for_bfl("Jefe", b"what do ya want for nothing?")
    digest = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert signed == {"x-bfl-signature": f"sha256={digest}"}
    async with serving(answer_of(b"")) as server:
        fetcher = Fetcher(Reach(LOOPBACK, frozenset({server.port})))
        url = f"http://127.0.0.1:{server.port}/"
        assert await send_once(url, b"{}", signed, client=fetcher) == Attempt("delivered", 200)
        await fetcher.aclose()
    assert headers_of(server.requests[0])[0]["x-bfl-signature"] == f"sha256={digest}"


def test_a_payload_is_small():
    large = replace(EVENT, data={"id": "job_1", "input": {"prompt": "ä" * MAX_PAYLOAD_BYTES}})
    assert len(payload(large)) < 1000
    assert json.loads(payload(large))["data"] == {"id": "job_1"}


def test_a_sealed_secret_opens_with_its_key_for_its_endpoint_only():
    secret = new_secret()
    sealed = seal(secret, "wh_1", KEY)
    assert secret not in sealed
    assert sealed != seal(secret, "wh_1", KEY)
    assert unseal(sealed, "wh_1", KEY) == secret
    for webhook_id, key in (("wh_2", KEY), ("wh_1", bytes(32))):
        with pytest.raises(SealError, match="sealed with another key"):
            unseal(sealed, webhook_id, key)


def test_the_secret_before_signs_for_its_time():
    old, new = new_secret(), new_secret()
    endpoint = Endpoint(
        "wh_1", "alpha", "https://a.example/", seal(new, "wh_1", KEY), 0.0, None, seal(old, "wh_1", KEY), 1000.0
    )
    assert receiver_of(endpoint, KEY, 999.0).secrets == (new, old)
    assert receiver_of(endpoint, KEY, 1000.0).secrets == (new,)
    assert "whsec_" not in repr(receiver_of(endpoint, KEY, 999.0))


class Server:
    """The routes with all that they work with, asked by any caller."""

    def __init__(self, database, networks=LOOPBACK, ports=frozenset({80, 443})):
        self.caller = Caller("key_1", "ada", "alpha", "member")
        self.services = SimpleNamespace(
            database=database,
            secrets=Secrets(bytes(32)),
            fetcher=Fetcher(Reach(networks, ports)),
            settings=SimpleNamespace(limits=SimpleNamespace(allowed_networks=networks)),
        )
        app = FastAPI()
        errors.install(app)
        app.include_router(api.router)
        app.state.services = self.services
        app.dependency_overrides[authenticate.caller] = lambda: self.caller
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://server")

    async def register(self, url="https://hooks.example/", **fields):
        return await self.client.post("/v1/webhooks", json={"url": url, **fields})


@pytest.fixture
async def database(tmp_path):
    database = await open_database(sqlite_url(tmp_path / "kleinbild.sqlite"))
    yield database
    await database.close()


@pytest.fixture
async def server(database):
    return Server(database, networks=())


async def test_a_secret_is_shown_once_and_kept_sealed(server, tmp_path):
    created = await server.register(events=["job.completed"])
    assert created.status_code == 201
    secret = created.json().pop("secret")
    assert secret.startswith("whsec_")
    shown = {name: value for name, value in created.json().items() if name != "secret"}
    assert (await server.client.get(f"/v1/webhooks/{shown['id']}")).json() == shown
    listed = (await server.client.get("/v1/webhooks")).json()
    ends = {"first_id": shown["id"], "last_id": shown["id"], "has_more": False}
    assert listed == {"object": "list", "data": [shown], **ends}
    for file in tmp_path.iterdir():
        assert secret.removeprefix("whsec_").encode() not in file.read_bytes()


async def test_deleting(server):
    webhook = (await server.register()).json()["id"]
    deleted = await server.client.delete(f"/v1/webhooks/{webhook}")
    assert deleted.json() == {"id": webhook, "object": "webhook", "deleted": True}
    for answer in (
        await server.client.get(f"/v1/webhooks/{webhook}"),
        await server.client.delete(f"/v1/webhooks/{webhook}"),
    ):
        assert answer.status_code == 404
    nothing = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await server.client.get("/v1/webhooks")).json() == nothing


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://hooks.example/"}, "url"),
        ({"url": "https://10.0.0.256/"}, "url"),
        ({"url": "https://me:secret@hooks.example/"}, "url"),
        ({"url": "https://hooks.example:22/"}, "url"),
        ({"url": "javascript:alert(1)"}, "url"),
        ({"url": 7}, "url"),
        ({}, "url"),
        ({"url": "https://hooks.example/", "events": []}, "events"),
        ({"url": "https://hooks.example/", "secret": "mine"}, "secret"),
    ],
)
async def test_what_is_no_endpoint_is_refused_in_words(server, fields, param):
    answer = await server.client.post("/v1/webhooks", json=fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert answer.json()["error"]["message"]


async def test_a_project_has_so_many_and_sees_its_own_alone(server):
    ids = [(await server.register()).json()["id"] for _ in range(api.MAX_ENDPOINTS)]
    assert (await server.register()).json()["error"]["code"] == "too_many_webhooks"
    server.caller = replace(server.caller, project="beta")
    assert (await server.register()).status_code == 201
    path = f"/v1/webhooks/{ids[0]}"
    for answer in (
        await server.client.get(path),
        await server.client.delete(path),
        await server.client.post(f"{path}/rotate"),
        await server.client.post(f"{path}/test"),
    ):
        assert answer.status_code == 404


async def test_a_viewer_may_look_only(server):
    webhook = (await server.register()).json()["id"]
    server.caller = replace(server.caller, role="viewer")
    path = f"/v1/webhooks/{webhook}"
    assert (await server.client.get(path)).status_code == 200
    for answer in (
        await server.register(),
        await server.client.delete(path),
        await server.client.post(f"{path}/rotate"),
        await server.client.post(f"{path}/test"),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"


async def test_a_test_is_signed_by_the_secrets_in_force(database):
    async with serving(answer_of(b"thanks")) as receiver:
        server = Server(database, ports=frozenset({receiver.port}))
        created = (await server.register(f"http://127.0.0.1:{receiver.port}/hook")).json()
        path = f"/v1/webhooks/{created['id']}"
        rotated = (await server.client.post(f"{path}/rotate")).json()
        assert rotated["secret"] != created["secret"]
        assert 86_000 < rotated["previous_until"] - time.time() <= 86_400
        tested = (await server.client.post(f"{path}/test")).json()
    headers, body = headers_of(receiver.requests[0])
    assert tested == {"id": headers["webhook-id"], "object": "webhook.test", "delivered": True, "status": 200}
    for secret in (created["secret"], rotated["secret"]):
        assert Webhook(secret).verify(body, headers)["type"] == "webhook.test"


async def test_a_test_that_arrives_enables_an_endpoint_again(database):
    answers = iter([answer_of(b"", "410 Gone"), answer_of(b"")])

    async def answer(writer):
        writer.write(next(answers))

    async with serving(answer) as receiver:
        server = Server(database, ports=frozenset({receiver.port}))
        webhook = (await server.register(f"http://127.0.0.1:{receiver.port}/")).json()["id"]
        async with database.write() as connection:
            await webhooks.disable(connection, webhook, 100.0)
        states = []
        for _ in range(2):
            tested = (await server.client.post(f"/v1/webhooks/{webhook}/test")).json()
            shown = (await server.client.get(f"/v1/webhooks/{webhook}")).json()
            states.append((tested["delivered"], tested["status"], shown["disabled_at"]))
    assert states == [(False, 410, 100), (True, 200, None)]


async def test_a_private_receiver_is_not_reached_and_nothing_is_told_of_it(database):
    async with serving(answer_of(b"internal")) as receiver:
        server = Server(database, networks=(), ports=frozenset({receiver.port}))
        webhook = (await server.register(f"https://127.0.0.1:{receiver.port}/")).json()["id"]
        tested = (await server.client.post(f"/v1/webhooks/{webhook}/test")).json()
        await asyncio.sleep(0)
    assert (tested["delivered"], tested["status"]) == (False, None)
    assert receiver.requests == []
