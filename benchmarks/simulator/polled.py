"""The kinds that take work on and are polled: BFL, Replicate and fal's queue."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from simulator.accounts import Account, Purchase
from simulator.bills import CENT, Asked
from simulator.serving import Reply, Request, told
from simulator.tasks import Task, find, standard_signature, take_on, webhook

BFL_STATES = {"running": "Pending", "done": "Ready", "failed": "Error", "filtered": "Content Moderated"}
REPLICATE_STATES = {
    "running": "starting",
    "done": "succeeded",
    "failed": "failed",
    "filtered": "failed",
    "cancelled": "canceled",
}
SHAPES = {"1:1": (1.0, 1.0), "16:9": (4 / 3, 3 / 4), "9:16": (3 / 4, 4 / 3), "3:2": (1.25, 0.8), "2:3": (0.8, 1.25)}


async def _taken(
    account: Account, request: Request, task: Task, answer: Callable[[], Reply], wait: float = 0.0
) -> Reply:
    """What the three have in common: refused, or taken on and answered."""
    purchase = task.purchase
    if (refused := account.refused(purchase)) is not None:
        reply = told({"detail": "not now"}, refused[0])
        reply.headers |= refused[1]
        return reply
    take_on(account, task)
    if wait > 0 and not purchase.has("no_answer", "html", "html_unbilled", "half_body"):
        with contextlib.suppress(TimeoutError):  # it is polled, then
            await asyncio.wait_for(task.finished.wait(), wait)
    if purchase.has("status_500_billed"):
        return told({"detail": "it broke down over the work"}, 500)
    if purchase.has("hang", "slow"):
        return answer()  # the answer comes; it is the work that does not, or its picture that drips
    return await account.deliver(request, purchase, answer())


async def bfl(account: Account, request: Request) -> Reply:
    if request.path == "/v1/get_result":  # needs no key there, either
        return _bfl_result(account, request)
    if not account.lets_in(request, "", "x-key"):
        return told({"detail": "Not authenticated"}, 403)
    if request.path == "/v1/credits":
        return told({"credits": 1000.0})
    if request.method != "POST" or not request.path.startswith("/v1/"):
        return told({"detail": "Not Found"}, 404)
    body = request.json()
    if not body.get("prompt"):
        detail = {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}
        return told({"detail": [detail]}, 422)
    size = int(body.get("width") or 1024), int(body.get("height") or 1024)
    asked = Asked(1, *size, format=body.get("output_format", "jpeg"), as_url=True, seed=body.get("seed"))
    purchase = account.begin(request, asked, "bfl-", tasks=True)
    secret = str(body.get("webhook_secret") or "")

    def sign(content: bytes) -> dict[str, str]:
        digest = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
        return {"x-bfl-signature": f"sha256={digest}"} if secret else {}

    hook = webhook(body.get("webhook_url"), lambda task: _bfl_state(account, request, task), sign)
    task = Task(purchase, account.seconds(), request.base, hook, body)
    cost = float(purchase.cost / CENT)
    polling_url = f"{request.base}/v1/get_result?id={purchase.id}"
    return await _taken(
        account, request, task, lambda: told({"id": purchase.id, "polling_url": polling_url, "cost": cost})
    )


def _bfl_result(account: Account, request: Request) -> Reply:
    task = find(account, request.query.get("id", ""))
    if task is None:
        return told({"id": request.query.get("id"), "status": "Task not found", "result": None})
    if task.poll_fails:
        return told({"detail": "unavailable"}, 503)
    return told(_bfl_state(account, request, task))


def _bfl_state(account: Account, request: Request, task: Task) -> dict[str, Any]:
    purchase, result = task.purchase, None
    if task.state == "done":
        sample = None if purchase.made.pictures == 0 else account.url(request, purchase)
        result = {
            "sample": sample,
            "prompt": task.input.get("prompt"),
            "seed": purchase.asked.seed,
            "duration": task.seconds,
        }
    details = {"Moderation Reasons": ["a safety filter"]} if task.state == "filtered" else None
    cost = 0.0 if task.state in ("failed", "filtered") and not purchase.charged else float(purchase.cost / CENT)
    status = BFL_STATES[task.state]
    return {"id": purchase.id, "status": status, "result": result, "details": details, "cost": cost}


async def replicate(account: Account, request: Request) -> Reply:
    path = request.path.removeprefix("/v1")
    if not account.lets_in(request):
        return told({"title": "Unauthenticated", "status": 401, "detail": "You did not pass a valid token."}, 401)
    if path == "/account":
        return told({"type": "user", "username": account.settings.name, "name": account.settings.name})
    if path == "/files" and request.method == "POST":
        _, files = request.form()
        name = account.new_id("file-")
        account.uploads[name] = next(iter(files.get("content", [b""])))
        return told({"id": name, "urls": {"get": f"{request.base}/v1/files/{name}"}}, 201)
    if found := re.fullmatch(r"/predictions/([^/]+)(/cancel)?", path):
        return _prediction(account, request, found[1], cancel=bool(found[2]))
    if request.method != "POST" or not path.endswith("/predictions"):
        return told({"title": "Not found", "status": 404, "detail": "There is nothing here."}, 404)
    body = request.json()
    given = body.get("input") or {}
    if not given.get("prompt"):
        return told({"title": "Input validation failed", "status": 422, "detail": "- input: prompt is required"}, 422)
    purchase = account.begin(request, _replicate_asked(given), "pre", tasks=True)
    hook = webhook(
        body.get("webhook"), lambda task: _replicate_state(account, request, task), standard_signature(purchase.id)
    )
    task = Task(purchase, account.seconds(), request.base, hook, given)
    preferred = re.search(r"wait(?:=(\d+))?", request.headers.get("prefer", ""))
    wait = float(preferred[1] or 60) if preferred else 0.0

    def answer() -> Reply:
        return told(_replicate_state(account, request, task), 202 if task.state == "running" else 201)

    return await _taken(account, request, task, answer, wait)


def _replicate_asked(given: dict[str, Any]) -> Asked:
    side = 1024 * float(given.get("output_megapixels", "1")) ** 0.5
    wide, high = SHAPES.get(given.get("aspect_ratio", "1:1"), SHAPES["1:1"])
    kind = given.get("output_format", "jpg")
    return Asked(1, int(side * wide) // 16 * 16, int(side * high) // 16 * 16, format=kind, as_url=True)


def _prediction(account: Account, request: Request, task_id: str, *, cancel: bool) -> Reply:
    task = find(account, task_id)
    if task is None:
        return told({"title": "Not found", "status": 404, "detail": "There is no such prediction."}, 404)
    if cancel:
        task.cancel(account)
    elif task.poll_fails:
        return told({"detail": "unavailable"}, 503)
    return told(_replicate_state(account, request, task))


def _replicate_state(account: Account, request: Request, task: Task) -> dict[str, Any]:
    purchase = task.purchase
    made = [account.url(request, purchase, at) for at in range(purchase.made.pictures)]
    errors = {"failed": "the model broke down", "filtered": "NSFW content detected. Try another prompt."}
    is_over, has_run = task.state != "running", task.state in ("done", "failed", "filtered")
    began = datetime.fromtimestamp(task.began, UTC).isoformat()
    place = f"{request.base}/v1/predictions/{purchase.id}"
    return {
        "id": purchase.id,
        "version": "hidden",
        "input": task.input,
        "output": made if task.state == "done" else None,
        "error": errors.get(task.state),
        "status": REPLICATE_STATES[task.state],
        "data_removed": False,
        "created_at": began,
        "started_at": began if has_run else None,
        "completed_at": began if is_over else None,
        "metrics": {"predict_time": task.seconds} if has_run else {},
        "urls": {"get": place, "cancel": f"{place}/cancel"},
    }


async def fal(account: Account, request: Request) -> Reply:
    if not account.lets_in(request, "Key "):
        return told({"detail": "Authentication is required"}, 401)
    if found := re.fullmatch(r"/(.+)/requests/([^/]+)(/status|/cancel)?", request.path):
        return _fal_request(account, request, found[2], found[3] or "")
    if request.method != "POST":
        return told({"detail": "Path not found"}, 404)
    body = request.json()
    if not body.get("prompt"):
        return told({"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]}, 422)
    size = body.get("image_size")
    size = (int(size["width"]), int(size["height"])) if isinstance(size, dict) else (1024, 768)
    kind, count = body.get("output_format", "png"), int(body.get("num_images", 1))
    asked = Asked(count, *size, format=kind, as_url=True, seed=body.get("seed"))
    purchase = account.begin(request, asked, "fal-", tasks=True, charges_filtered=True)

    def content(task: Task) -> dict[str, Any]:
        reply = _fal_output(account, request, task)
        status = "OK" if task.state in ("done", "filtered") else "ERROR"
        return {"request_id": task.purchase.id, "status": status, "payload": reply}

    hook = webhook(request.query.get("fal_webhook"), content, lambda _: {})
    task = Task(purchase, account.seconds(), request.base, hook, body)
    app = "/".join(request.path.split("/")[1:3])
    place = f"{request.base}/{app}/requests/{purchase.id}"
    urls = {"status_url": f"{place}/status", "response_url": place, "cancel_url": f"{place}/cancel"}
    answer = {"status": "IN_QUEUE", "request_id": purchase.id, "queue_position": 0, **urls}
    return await _taken(account, request, task, lambda: told(answer))


def _fal_request(account: Account, request: Request, task_id: str, what: str) -> Reply:
    task = find(account, task_id)
    if task is None:
        return told({"detail": "Request not found"}, 404)
    if what == "/cancel":
        cancelled = task.cancel(account)
        return told(
            {"status": "CANCELLATION_REQUESTED" if cancelled else "ALREADY_COMPLETED"}, 202 if cancelled else 400
        )
    if task.poll_fails:
        return told({"detail": "unavailable"}, 503)
    if what == "/status":
        return _fal_status(task)
    if task.state == "running":
        return told({"detail": "Request is still in progress"}, 400)
    if task.state in ("failed", "cancelled"):
        kind = "internal_server_error" if task.state == "failed" else "request_cancelled"
        return told({"detail": kind, "error_type": kind}, 500 if task.state == "failed" else 400)
    return told(_fal_output(account, request, task))


def _fal_status(task: Task) -> Reply:
    if task.state == "running":
        return told({"status": "IN_PROGRESS", "logs": None}, 202)
    state: dict[str, Any] = {"status": "COMPLETED", "logs": None, "metrics": {"inference_time": task.seconds}}
    if task.state == "cancelled":
        state |= {"metrics": {}, "error": "cancelled", "error_type": "request_cancelled"}
    if task.state == "failed":
        state |= {"error": "the runner broke down", "error_type": "internal_server_error"}
    return told(state)


def _fal_output(account: Account, request: Request, task: Task) -> dict[str, Any]:
    made, flagged = task.purchase.made, task.state == "filtered"
    images = [
        {"url": _fal_url(account, request, task.purchase, at, flagged), "width": made.width, "height": made.height}
        for at in range(made.pictures)
    ]
    return {"images": images, "seed": made.seed, "has_nsfw_concepts": [flagged] * made.pictures}


def _fal_url(account: Account, request: Request, purchase: Purchase, index: int, flagged: bool) -> str:
    return account.url(request, purchase, index, black=flagged)
