"""Each kind of the simulated services answers as it should, fails as it is told, and bills what it says that it bills."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from simulator import KINDS, AccountSettings, Simulator, in_background
from simulator.bills import Asked, cost_of
from simulator.faults import FAULTS, Script

PROMPT = "a fox"
SIZE = (64, 48)
AUTHORIZATION = {
    "bfl": {"x-key": "test-key"},
    "fal": {"authorization": "Key test-key"},
}
BEARER = {"authorization": "Bearer test-key"}
IN_THE_REQUEST = ("openai", "together", "stability")
POLLED = ("bfl", "replicate", "fal")


@pytest.fixture(scope="module")
def started() -> Iterator[Simulator]:
    with in_background([AccountSettings(kind, kind, latency=0.001) for kind in KINDS]) as simulator:
        yield simulator


@pytest.fixture
def simulator(started: Simulator) -> Simulator:
    httpx2.post(f"{started.url}/_sim/reset").raise_for_status()
    return started


class Shop:
    """One account, asked for pictures by plain HTTP."""

    def __init__(self, simulator: Simulator, kind: str, **faults: Any) -> None:
        self.kind, self.control = kind, f"{simulator.url}/_sim/{kind}"
        self.url = simulator.listeners[kind].url
        self.headers = AUTHORIZATION.get(kind, BEARER)
        httpx2.put(f"{self.control}/faults", json=faults).raise_for_status()

    def ask(self, *, as_url: bool = False, timeout: float = 5.0, **headers: str) -> httpx2.Response:
        path, arguments = _request(self.kind, as_url=as_url)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx2.post(f"{self.url}{path}", headers={**self.headers, **named}, timeout=timeout, **arguments)

    def get(self, url: str, method: str = "GET") -> httpx2.Response:
        return httpx2.request(method, url if "://" in url else self.url + url, headers=self.headers)

    def bill(self) -> dict[str, Any]:
        return httpx2.get(f"{self.control}/bill").json()

    def settled_bill(self, count: int) -> dict[str, Any]:
        """Once there are so many items in it: what is taken on is billed when it is done."""
        until = time.monotonic() + 2.0
        while (bill := self.bill())["count"] < count and time.monotonic() < until:
            time.sleep(0.005)
        return bill

    def end(self, answer: httpx2.Response) -> dict[str, Any]:
        """Polls what was taken on to its end."""
        told = answer.json()
        url = told.get("polling_url") or told.get("status_url") or told["urls"]["get"]
        for _ in range(200):
            state = self.get(url)
            if state.status_code == 200 and state.json()["status"] not in ("Pending", "starting", "IN_PROGRESS"):
                return state.json() if self.kind != "fal" else self.get(told["response_url"]).json()
            time.sleep(0.005)
        raise TimeoutError(state.text)

    def urls(self, ended: dict[str, Any]) -> list[str]:
        if self.kind == "bfl":
            return [ended["result"]["sample"]]
        return ended["output"] if self.kind == "replicate" else [image["url"] for image in ended["images"]]


def _request(kind: str, *, as_url: bool = False) -> tuple[str, dict[str, Any]]:
    width, height = SIZE
    match kind:
        case "openai":
            form = {"response_format": "url"} if as_url else {}
            body = {"prompt": PROMPT, "model": "gpt-image-2", "size": f"{width}x{height}", **form}
            return "/v1/images/generations", {"json": body}
        case "together":
            form = "url" if as_url else "base64"
            body = {"prompt": PROMPT, "model": "m", "width": width, "height": height, "response_format": form}
            return "/v1/images/generations", {"json": body}
        case "stability":
            return "/v2beta/stable-image/generate/sd3", {"files": {"prompt": (None, PROMPT), "seed": (None, "7")}}
        case "bfl":
            return "/v1/flux-2-klein-4b", {"json": {"prompt": PROMPT, "width": width, "height": height}}
        case "replicate":
            body = {"input": {"prompt": PROMPT, "output_megapixels": "0.25"}}
            return "/v1/models/black-forest-labs/flux-2-klein-4b/predictions", {"json": body}
        case _:
            size = {"width": width, "height": height}
            return "/fal-ai/flux-2/klein/4b", {"json": {"prompt": PROMPT, "image_size": size}}


def _in_text(kind: str, answer: httpx2.Response) -> bytes:
    if kind == "stability":
        return answer.content
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def _size(file: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_delivered_and_billed_once(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind)
    answer = shop.ask()
    file = _in_text(kind, answer) if kind in IN_THE_REQUEST else shop.get(shop.urls(shop.end(answer))[0]).content
    assert _size(file) == {"stability": (1024, 1024), "replicate": (512, 512)}.get(kind, SIZE)
    bill = shop.settled_bill(1)
    assert (bill["count"], bill["pictures"], bill["total"], bill["total_nanos"]) == (1, 1, "0.01", 10_000_000)
    assert bill["items"][0]["why"] == "made"


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_key_nobody_is_let_in(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind)
    shop.headers = dict.fromkeys(shop.headers, "wrong")
    assert shop.ask().status_code in (401, 403)
    assert shop.bill()["count"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["status_500", "status_502", "status_503", "rate_limited"])
def test_what_is_refused_before_work_is_free(simulator: Simulator, kind: str, fault: str) -> None:
    shop = Shop(simulator, kind, **{fault: {"share": 1.0, "billed": True, "retry_after": 1.5}})
    answer = shop.ask()
    assert str(answer.status_code) == {"rate_limited": "429"}.get(fault, fault.removeprefix("status_"))
    assert answer.headers.get("retry-after") == ("1.5" if fault == "rate_limited" else None)
    time.sleep(0.01)
    assert shop.bill()["count"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_never_comes_is_billed(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, no_answer=1.0)
    with pytest.raises(httpx2.RemoteProtocolError):
        shop.ask(X_Client_Request_Id="att_1")
    (item,) = shop.settled_bill(1)["items"]
    assert (item["client_id"], item["cost"], item["why"]) == ("att_1", "0.01", "no_answer")


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_answer_is_billed(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, half_body=1.0)
    with pytest.raises(httpx2.RemoteProtocolError):
        shop.ask()
    assert shop.settled_bill(1)["total"] == "0.01"


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_after_the_work_is_billed(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, status_500_billed=1.0)
    assert shop.ask().status_code == 500
    assert shop.settled_bill(1)["total"] == "0.01"


@pytest.mark.parametrize("kind", IN_THE_REQUEST)
@pytest.mark.parametrize("billed", [True, False])
def test_a_request_hangs_and_is_billed_as_the_script_says(simulator: Simulator, kind: str, billed: bool) -> None:
    shop = Shop(simulator, kind, hang={"share": 1.0, "billed": billed})
    with pytest.raises(httpx2.ReadTimeout):
        shop.ask(timeout=0.1)
    assert shop.bill()["count"] == billed


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("billed", [True, False])
def test_a_task_hangs_and_is_billed_as_the_script_says(simulator: Simulator, kind: str, billed: bool) -> None:
    shop = Shop(simulator, kind, hang={"share": 1.0, "billed": billed})
    told = shop.ask().json()
    url = told.get("polling_url") or told.get("status_url") or told["urls"]["get"]
    time.sleep(0.03)
    assert shop.get(url).json()["status"] in ("Pending", "IN_PROGRESS", "starting")
    assert shop.bill()["count"] == billed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fault", "count"), [("html", 1), ("html_unbilled", 0)])
def test_a_page_instead_of_an_answer(simulator: Simulator, kind: str, fault: str, count: int) -> None:
    shop = Shop(simulator, kind, **{fault: 1.0})
    answer = shop.ask()
    assert answer.status_code == 200
    assert answer.text.startswith("<!doctype html>")
    time.sleep(0.02)
    assert shop.settled_bill(count)["count"] == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fault", "count"), [("empty", 1), ("empty_unbilled", 0)])
def test_success_without_a_picture(simulator: Simulator, kind: str, fault: str, count: int) -> None:
    shop = Shop(simulator, kind, **{fault: 1.0})
    answer = shop.ask()
    if kind in POLLED:
        assert shop.urls(shop.end(answer)) in ([], [None])
    else:
        assert answer.status_code == 200
        assert kind == "stability" or answer.json()["data"] == []
        assert kind != "stability" or answer.content == b""
    assert shop.settled_bill(count)["count"] == count


@pytest.mark.parametrize(
    ("kind", "count"), [("openai", 0), ("together", 0), ("stability", 0), ("bfl", 0), ("replicate", 0), ("fal", 1)]
)
def test_a_filtered_picture_is_billed_as_the_kind_does(simulator: Simulator, kind: str, count: int) -> None:
    shop = Shop(simulator, kind, filtered=1.0)
    answer = shop.ask()
    match kind:
        case "openai":
            assert answer.json()["error"]["code"] == "moderation_blocked"
        case "together":
            assert "NSFW" in answer.json()["error"]["message"]
        case "stability":
            assert answer.headers["finish-reason"] == "CONTENT_FILTERED"
        case "bfl":
            assert shop.end(answer)["status"] == "Content Moderated"
        case "replicate":
            assert "NSFW" in shop.end(answer)["error"]
        case _:
            assert shop.end(answer)["has_nsfw_concepts"] == [True]
    assert shop.settled_bill(count)["count"] == count


@pytest.mark.parametrize("kind", ["openai", "together", *POLLED])
@pytest.mark.parametrize(("fault", "status"), [("url_404", 404), ("url_expired", 410)])
def test_a_result_that_is_not_where_it_should_be_is_billed(
    simulator: Simulator, kind: str, fault: str, status: int
) -> None:
    shop = Shop(simulator, kind, **{fault: 1.0})
    answer = shop.ask(as_url=True)
    url = answer.json()["data"][0]["url"] if kind in IN_THE_REQUEST else shop.urls(shop.end(answer))[0]
    assert shop.get(url).status_code == status
    assert shop.settled_bill(1)["total"] == "0.01"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_the_wrong_size_is_billed_as_asked_for(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, wrong_size=1.0)
    answer = shop.ask()
    file = _in_text(kind, answer) if kind in IN_THE_REQUEST else shop.get(shop.urls(shop.end(answer))[0]).content
    assert _size(file) == {"stability": (512, 512), "replicate": (256, 256)}.get(kind, (32, 24))
    assert shop.settled_bill(1)["total"] == "0.01"


def test_an_answer_drips(simulator: Simulator) -> None:
    shop = Shop(simulator, "openai", slow={"share": 1.0, "seconds": 0.2})
    begun = time.monotonic()
    assert _size(_in_text("openai", shop.ask())) == SIZE
    assert time.monotonic() - begun >= 0.2
    assert shop.bill()["count"] == 1


@pytest.mark.parametrize("kind", POLLED)
def test_polls_fail_and_then_the_work_is_there(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, poll_errors={"share": 1.0, "count": 2})
    answer = shop.ask()
    told = answer.json()
    url = told.get("polling_url") or told.get("status_url") or told["urls"]["get"]
    assert [shop.get(url).status_code for _ in range(2)] == [503, 503]
    assert shop.urls(shop.end(answer))
    assert shop.settled_bill(1)["count"] == 1


@pytest.mark.parametrize("kind", POLLED)
def test_work_that_is_lost_is_billed_and_work_that_fails_is_not(simulator: Simulator, kind: str) -> None:
    shop = Shop(simulator, kind, lost=1.0)
    told = shop.ask().json()
    answer = shop.get(told.get("polling_url") or told.get("status_url") or told["urls"]["get"])
    assert answer.status_code == 404 or answer.json()["status"] == "Task not found"
    assert shop.settled_bill(1)["items"][0]["why"] == "lost"
    failing = Shop(simulator, kind, failed=1.0)
    ended = failing.end(failing.ask())
    assert ended.get("status") in ("Error", "failed") or ended["error_type"] == "internal_server_error"
    assert failing.bill()["count"] == 1


@pytest.mark.parametrize(("kind", "method"), [("replicate", "POST"), ("fal", "PUT")])
def test_a_cancel_in_time_is_free_and_a_late_one_is_not(simulator: Simulator, kind: str, method: str) -> None:
    shop = Shop(simulator, kind)
    httpx2.put(f"{shop.control}/speed", json={"latency": 30.0})
    told = shop.ask().json()
    cancelled = shop.get(told.get("cancel_url") or told["urls"]["cancel"], method).json()
    assert cancelled["status"] in ("canceled", "CANCELLATION_REQUESTED")
    assert shop.bill()["count"] == 0
    late = Shop(simulator, kind, late_cancel=1.0)
    told = late.ask().json()
    cancelled = late.get(told.get("cancel_url") or told["urls"]["cancel"], method).json()
    assert cancelled["status"] in ("succeeded", "ALREADY_COMPLETED")
    assert late.bill()["items"][0]["why"] == "late_cancel"


@pytest.mark.parametrize(("share", "times"), [(0.0, 1), (1.0, 3)])
def test_a_webhook_comes_once_or_twice_and_once_late(simulator: Simulator, share: float, times: int) -> None:
    shop = Shop(simulator, "replicate", webhook_twice={"share": share, "seconds": 0.05})
    came: list[dict[str, Any]] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        came.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(receive, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        path, arguments = _request("replicate")
        arguments["json"]["webhook"] = f"http://127.0.0.1:{port}/hook"
        await asyncio.to_thread(httpx2.post, shop.url + path, headers=shop.headers, **arguments)
        await asyncio.sleep(0.15)
        server.close()

    asyncio.run(listen())
    assert [each["status"] for each in came] == ["succeeded"] * times
    assert shop.bill()["count"] == 1


def test_replicate_holds_a_request_until_the_work_is_done(simulator: Simulator) -> None:
    answer = Shop(simulator, "replicate").ask(Prefer="wait=5")
    assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")


def test_an_idempotency_key_is_honoured_only_where_that_is_so(simulator: Simulator) -> None:
    shop = Shop(simulator, "openai")
    for _ in range(2):
        shop.ask(Idempotency_Key="att_1")
    assert shop.bill()["count"] == 2
    httpx2.put(f"{shop.control}/speed", json={"honours_keys": True})
    assert len({shop.ask(Idempotency_Key="att_2").headers["x-request-id"] for _ in range(2)}) == 1
    assert shop.bill()["count"] == 3


def test_while_it_is_down_connections_are_refused(simulator: Simulator) -> None:
    shop = Shop(simulator, "openai")
    httpx2.put(f"{shop.control}/outage", json={"state": "down"})
    with pytest.raises(httpx2.ConnectError):
        shop.ask()
    httpx2.put(f"{shop.control}/outage", json={"state": "up"})
    assert shop.ask().status_code == 200
    httpx2.put(f"{shop.control}/outage", json={"state": "flapping", "up_seconds": 0.03, "down_seconds": 0.03})
    answered = []
    for _ in range(40):
        try:
            answered.append(shop.ask().status_code == 200)
        except httpx2.TransportError:
            answered.append(False)
        time.sleep(0.005)
    assert {True, False} == set(answered)
    httpx2.put(f"{shop.control}/outage", json={"state": "up"})
    assert shop.bill()["count"] >= 1 + sum(answered)


def test_an_account_is_also_found_below_its_name(simulator: Simulator) -> None:
    below = httpx2.get(f"{simulator.url}/_sim").json()["openai"]["below"]
    path, arguments = _request("openai", as_url=True)
    answer = httpx2.post(below + path, headers=BEARER, **arguments)
    assert _size(httpx2.get(answer.json()["data"][0]["url"]).content) == SIZE


def test_openais_own_client_can_talk_to_it(simulator: Simulator) -> None:
    openai = pytest.importorskip("openai")
    shop = Shop(simulator, "openai")
    with openai.OpenAI(api_key="test-key", base_url=f"{shop.url}/v1", max_retries=0) as client:
        made = client.images.generate(model="gpt-image-2", prompt=PROMPT, size="64x48", n=2)
        assert [_size(base64.b64decode(item.b64_json)) for item in made.data] == [SIZE, SIZE]
        edited = client.images.edit(model="gpt-image-2", prompt=PROMPT, image=("a.png", b"file"), size="64x48")
        assert edited.usage.output_tokens == 196
        with client.images.generate(
            model="gpt-image-2", prompt=PROMPT, size="64x48", stream=True, partial_images=2
        ) as stream:
            kinds = [event.type for event in stream]
        assert kinds == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
        Shop(simulator, "openai", rate_limited=1.0)
        with pytest.raises(openai.RateLimitError):
            client.images.generate(model="gpt-image-2", prompt=PROMPT)
    assert (shop.bill()["count"], shop.bill()["pictures"]) == (3, 4)


def test_a_seed_settles_what_goes_wrong() -> None:
    shares = {"no_answer": 0.2, "status_500": 0.2}

    def drawn(seed: int) -> list[str | None]:
        script = Script(shares, seed)
        return [fault.name if (fault := script.draw()) else None for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 60 < sum(name is not None for name in drawn(1)) < 100


@pytest.mark.parametrize("shares", [{"nonsense": 1.0}, {"hang": {"sahre": 1.0}}, {"hang": 0.6, "slow": 0.6}])
def test_a_script_that_cannot_be_is_refused(simulator: Simulator, shares: dict[str, Any]) -> None:
    answer = httpx2.put(f"{simulator.url}/_sim/openai/faults", json=shares)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_prices_are_of_pictures_and_megapixels() -> None:
    asked = Asked(2, 2000, 1000, quality="low")
    assert str(cost_of({"per_image": "0.01", "per_request": "0.5"}, asked)) == "0.52"
    assert cost_of({"first_megapixel": "0.014", "per_megapixel": "0.001"}, asked) * 1000 == 30
    assert cost_of({"by_quality": {"low": "0.006"}}, asked) * 1000 == 12


def test_every_fault_says_what_it_is() -> None:
    assert all(fault.means for fault in FAULTS.values())
