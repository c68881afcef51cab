"""BFL's API over a whole server, by a client as BFL's documentation writes it; answers are checked with BFL's description."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from standardwebhooks import Webhook

import kleinbild
from kleinbild.gateway.secrets import load_secrets
from kleinbild.storage import keys
from kleinbild.storage.database import open_database, sqlite_url
from kleinbild.storage.keys import Rights
from tests.integration.process import ServerProcess, free_port, server_process
from tests.receiver import Receiver, receiving

PROMPT = "a red apple on a beach"
SHARED = Path(os.environ.get("KLEINBILD_SHARED") or Path(__file__).parents[2].parent / "shared")
DESCRIPTIONS = ("openapi.json", "openapi.flux2-with-errors.json")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as listening:
        yield listening


@pytest.fixture(scope="module")
def server(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    port = free_port()
    variables = {
        "KLEINBILD_LIMITS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "KLEINBILD_LIMITS__ALLOWED_PORTS": str(receiver.port),
        "KLEINBILD_SERVER__PUBLIC_URL": f"http://localhost:{port}/",
    }
    with server_process(tmp_path_factory.mktemp("bfl"), port, **variables) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: ServerProcess) -> str:
    answer = httpx2.post(f"{server.url}/v1/admin/keys", json={"name": "bfl"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


class Client:
    """Written for https://api.bfl.ai; only the base URL is another."""

    def __init__(self, server: ServerProcess, key: str) -> None:
        self.http = httpx2.Client(base_url=server.url, headers={"accept": "application/json", "x-key": key})

    def submit(self, name: str = "flux-2-klein-4b", **fields: Any) -> httpx2.Response:
        return self.http.post(f"/v1/{name}", json={"prompt": PROMPT, **fields})

    def result(self, submitted: httpx2.Response) -> dict[str, Any]:
        """Polls as BFL's documentation does."""
        assert submitted.status_code == 200, submitted.text
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.1)
            answer = self.http.get(submitted.json()["polling_url"])
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            conforms(found, "ResultResponse")
            if found["status"] == "Ready":
                return found
            assert found["status"] == "Pending", found
            assert 0 <= found["progress"] <= 1
            assert found["result"] is None
        raise TimeoutError

    def sample(self, found: dict[str, Any]) -> bytes:
        """The picture, by a URL that needs no key."""
        answer = httpx2.get(found["result"]["sample"])
        assert answer.status_code == 200
        return answer.content


@pytest.fixture
def client(server: ServerProcess, key: str) -> Iterator[Client]:
    client = Client(server, key)
    yield client
    client.http.close()


def conforms(answer: Any, *names: str) -> None:
    """That `answer` is one of the schemas `names` of BFL's description, where that is at hand."""
    from jsonschema import Draft202012Validator

    for file in DESCRIPTIONS:
        path = SHARED / "provider-specs" / "bfl" / file
        if path.exists():
            components = json.loads(path.read_text())["components"]
            schema = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names], "components": components}
            Draft202012Validator(schema).validate(answer)


def pixels(file: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        return image.format, image.size


def picture(color: str, size: tuple[int, int] = (64, 64)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.skipif(not SHARED.exists(), reason="BFL's description is not there (KLEINBILD_SHARED)")
def test_every_path_of_the_description_is_there(client: Client) -> None:
    paths = json.loads((SHARED / "provider-specs" / "bfl" / DESCRIPTIONS[1]).read_text())["paths"]
    ours = client.http.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path not in ours} == {"/v1/credits"}
    for path in paths:
        if "flux-2" in path:
            schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/")[-1]
            theirs = json.loads((SHARED / "provider-specs" / "bfl" / DESCRIPTIONS[1]).read_text())["components"]
            known = ours[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
            missing = set(theirs["schemas"][schema]["properties"]) - set(known)
            assert missing <= {"input_image_blob_path"}


def test_submit_poll_download(client: Client, server: ServerProcess) -> None:
    submitted = client.submit(seed=7, width=128, height=96, output_format="png")
    conforms(submitted.json(), "AsyncResponse")
    assert submitted.json()["polling_url"].startswith(f"http://localhost:{server.port}/v1/get_result?id=")
    assert set(submitted.json()) == {"id", "polling_url", "cost", "input_mp", "output_mp"}
    found = client.result(submitted)
    result = found["result"]
    assert found["id"] == submitted.json()["id"]
    assert (result["prompt"], result["seed"]) == (PROMPT, 7)
    assert set(result) == {"sample", "prompt", "seed", "start_time", "end_time", "duration"}
    assert result["duration"] == pytest.approx(result["end_time"] - result["start_time"])
    assert abs(result["end_time"] - time.time()) < 60
    assert client.sample(found) == kleinbild.generate(PROMPT, seed=7, size="128x96").to_bytes("png")


def test_the_documentations_example(key: str, server: ServerProcess) -> None:
    text = (Path(__file__).parents[2] / "docs" / "bfl.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(program.replace("http://127.0.0.1:8190", server.url).replace("kb_…", key), found)
    assert pixels(found["picture"]) == ("JPEG", (128, 128))


def test_a_jpeg_of_the_models_own_size_unless_said_otherwise(client: Client) -> None:
    found = client.result(client.submit(width=0, height=None, seed=None))
    assert pixels(client.sample(found)) == ("JPEG", (128, 128))
    assert isinstance(found["result"]["seed"], int)
    assert pixels(client.sample(client.result(client.submit(width=64, output_format="webp")))) == ("WEBP", (64, 128))


def test_pictures_are_base64_or_urls_in_their_order(client: Client) -> None:
    red, blue = picture("red"), picture("blue", (96, 64))
    submitted = client.submit(
        prompt="replace the red apple with a lemon",
        input_image=f"data:image/png;base64,{red}",
        input_image_2=blue,
    )
    job = client.http.get(f"/v1/jobs/{submitted.json()['id']}", headers=bearer(client)).json()
    assert job["task"] == "image.edit"
    first, second = (each["sha256"] for each in job["input"]["references"])
    assert first != second
    again = client.submit(prompt="replace the red apple with a lemon", input_image=red)
    job = client.http.get(f"/v1/jobs/{again.json()['id']}", headers=bearer(client)).json()
    assert [each["sha256"] for each in job["input"]["references"]] == [first]
    assert client.sample(client.result(submitted))


async def key_of(project: str, data: Path) -> str:
    database = await open_database(sqlite_url(data / "kleinbild.sqlite"))
    async with database.write() as connection:
        secret = load_secrets(data).derive("api keys")
        _, key = await keys.create(connection, secret, name="other", owner="o", rights=Rights(project, "member"))
    await database.close()
    return key


def bearer(client: Client) -> dict[str, str]:
    return {"authorization": f"Bearer {client.http.headers['x-key']}"}


def test_what_is_not_honoured_is_told(client: Client) -> None:
    submitted = client.submit("flux-2-pro", safety_tolerance=2, guidance=3.0, transparent_bg=True, seed=1)
    assert submitted.headers["x-kleinbild-warnings"] == "4"
    found = client.result(submitted)
    conforms(found, "ResultResponse")
    told = found["details"]["warnings"]
    assert any("flux-2-pro is not served here, nano made it" in each for each in told)
    for name in ("safety_tolerance", "guidance", "transparent_bg"):
        assert any(each.startswith(f"{name}:") for each in told), told


@pytest.mark.parametrize(
    ("fields", "loc", "message"),
    [
        ({"prompt": None}, ["body", "prompt"], "required"),
        ({"prompt": 7}, ["body", "prompt"], "string"),
        ({"prompt": "a xyzzy"}, ["body", "prompt"], "xyzzy"),
        ({"width": 32}, ["body", "width"], "at least 64"),
        ({"safety_tolerance": 6}, ["body", "safety_tolerance"], "less than or equal to 5"),
        ({"output_format": "gif"}, ["body", "output_format"], "'png', 'jpeg' or 'webp'"),
        ({"input_image_3": "not base64!"}, ["body", "input_image_3"], "base64"),
        ({"input_image": base64.b64encode(b"no picture").decode()}, ["body", "input_image"], "picture"),
        ({"input_image": "http://10.0.0.1/a.png"}, ["body", "input_image"], ""),
        ({"steps": 0}, ["body", "steps"], "greater than or equal to 1"),
        ({"webhook_url": "https://elsewhere.example/"}, ["body", "webhook_url"], "not registered"),
    ],
)
def test_a_wrong_field_is_told_as_bfl_tells_it(
    client: Client, fields: dict[str, Any], loc: list[str], message: str
) -> None:
    answer = client.submit(**fields)
    assert answer.status_code == 422, answer.text
    conforms(answer.json(), "HTTPValidationError")
    (found,) = answer.json()["detail"]
    assert found["loc"] == loc
    assert message in found["msg"]
    assert found["type"]
    assert "input" not in found


def test_other_refusals_are_told_in_a_detail(client: Client, server: ServerProcess) -> None:
    malformed = client.http.post("/v1/flux-2-klein-4b", content=b"{", headers={"content-type": "application/json"})
    assert malformed.status_code == 400
    assert "not valid JSON" in malformed.json()["detail"]
    for headers in ({}, {"x-key": "wrong"}, {"x-key": "kb_" + "a" * 43}):
        for answer in (
            httpx2.post(f"{server.url}/v1/flux-2-klein-4b", json={"prompt": PROMPT}, headers=headers),
            httpx2.get(f"{server.url}/v1/get_result", params={"id": "x"}, headers=headers),
        ):
            assert answer.status_code == 403
            assert set(answer.json()) == {"detail"}
            assert isinstance(answer.json()["detail"], str)
    missing = client.http.get("/v1/get_result")
    assert missing.status_code == 422
    conforms(missing.json(), "HTTPValidationError")
    assert missing.json()["detail"][0]["loc"] == ["query", "id"]


def test_a_task_that_there_is_not_or_not_for_this_caller(client: Client, server: ServerProcess) -> None:
    answer = client.http.get("/v1/get_result", params={"id": "job_0"})
    conforms(answer.json(), "ResultResponse")
    assert (answer.status_code, answer.json()["status"], answer.json()["id"]) == (200, "Task not found", "job_0")
    task = client.submit(seed=7).json()["id"]
    stranger = {"x-key": asyncio.run(key_of("another project", server.home / "server"))}
    other = httpx2.get(f"{server.url}/v1/get_result", params={"id": task}, headers=stranger)
    assert other.status_code == 200
    assert other.json()["status"] == "Task not found"


def test_a_task_that_ends_without_a_picture(client: Client) -> None:
    task = client.submit(steps=200, seed=7).json()["id"]
    client.http.post(f"/v1/jobs/{task}/cancel", headers=bearer(client)).raise_for_status()
    found = client.http.get("/v1/get_result", params={"id": task}).json()
    conforms(found, "ResultResponse")
    assert (found["status"], found["result"]) == ("Error", None)
    assert found["details"]["code"] == "cancelled"


def test_an_idempotency_key_stands_for_one_task(client: Client) -> None:
    client.http.headers["idempotency-key"] = "once"
    first, second = client.submit(), client.submit()
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    other = client.submit(prompt="a fox on a mint background")
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]


@pytest.mark.parametrize("secret", ["my-secret", None])
def test_a_webhook_is_told_as_bfl_tells_it(client: Client, receiver: Receiver, secret: str | None) -> None:
    path = f"/bfl-{secret}"
    url = receiver.url(path)
    registered = client.http.post("/v1/webhooks", json={"url": url}, headers=bearer(client)).json()
    receiver.answers[path] = [307]
    submitted = client.submit(seed=7, output_format="png", webhook_url=url, webhook_secret=secret)
    conforms(submitted.json(), "AsyncWebhookResponse")
    assert {**submitted.json(), "id": ""} == {
        "id": "", "status": "Pending", "webhook_url": url, "cost": None, "input_mp": None, "output_mp": None,
    }  # fmt: skip
    came = receiver.wait(path, 2)[-1]
    told = json.loads(came.body)
    assert (told["id"], told["status"]) == (submitted.json()["id"], "Ready")
    assert (told["result"]["prompt"], told["result"]["seed"]) == (PROMPT, 7)
    assert told["timestamp"].endswith("Z")
    polled = client.http.get("/v1/get_result", params={"id": told["id"]}).json()
    assert client.sample(told) == client.sample(polled)
    Webhook(registered["secret"]).verify(came.body, came.headers)
    signature = came.headers.get("x-bfl-signature")
    if secret is None:
        assert signature is None
    else:
        assert signature == "sha256=" + hmac.new(secret.encode(), came.body, hashlib.sha256).hexdigest()
    assert receiver.at("/elsewhere") == []


def test_a_webhook_is_told_of_a_task_that_ended_without_a_picture(client: Client, receiver: Receiver) -> None:
    url = receiver.url("/cancelled")
    client.http.post("/v1/webhooks", json={"url": url}, headers=bearer(client)).raise_for_status()
    task = client.submit(steps=200, webhook_url=url, webhook_secret="s").json()["id"]
    client.http.post(f"/v1/jobs/{task}/cancel", headers=bearer(client)).raise_for_status()
    (came,) = receiver.wait("/cancelled")
    told = json.loads(came.body)
    assert (told["id"], told["status"], told["error"]) == (task, "Error", "cancelled")
    assert told["message"]


def test_a_secret_is_kept_sealed(client: Client, server: ServerProcess, receiver: Receiver) -> None:
    url = receiver.url("/sealed")
    client.http.post("/v1/webhooks", json={"url": url}, headers=bearer(client)).raise_for_status()
    client.submit(webhook_url=url, webhook_secret="nobody-may-read-this")
    receiver.wait("/sealed")
    files = [path for path in server.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"nobody-may-read-this" in path.read_bytes()]
