"""The kinds that answer in the request: OpenAI's images API, Together's and Stability's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from simulator.accounts import Account, Purchase
from simulator.bills import Asked
from simulator.pictures import as_text, picture
from simulator.serving import Reply, Request, told

RATIOS = {"1:1": (1024, 1024), "16:9": (1344, 768), "9:16": (768, 1344), "3:2": (1216, 832), "2:3": (832, 1216)}
SQUARE = (1024, 1024)


async def _sold(
    account: Account,
    request: Request,
    purchase: Purchase,
    made: Callable[[], Reply],
    filtered: Callable[[], Reply],
    error: Callable[[int, str], Reply],
) -> Reply:
    """What the three have in common."""
    if (refused := account.refused(purchase)) is not None:
        reply = error(refused[0], "not now")
        reply.headers |= refused[1]
        return reply
    await asyncio.sleep(account.seconds())
    if purchase.has("status_500_billed"):  # by what stands before the service: its own errors may promise to be free
        return Reply(500, b"<h1>Internal Server Error</h1>", "text/html")
    reply = filtered() if purchase.has("filtered") else made()
    reply.headers["x-request-id"] = purchase.id
    return await account.deliver(request, purchase, reply)


def _items(account: Account, request: Request, purchase: Purchase) -> list[dict[str, Any]]:
    made = purchase.made
    if made.as_url:
        return [{"index": at, "url": account.url(request, purchase, at)} for at in range(made.pictures)]
    text = as_text(made.width, made.height, made.format)
    return [{"index": at, "b64_json": text} for at in range(made.pictures)]


async def openai(account: Account, request: Request) -> Reply:
    path = request.path.removeprefix("/v1")
    if not account.lets_in(request):
        return _error(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
    if path == "/models":
        return told(
            {"object": "list", "data": [{"id": "gpt-image-2", "object": "model", "created": 0, "owned_by": "us"}]}
        )
    if request.method != "POST" or path not in ("/images/generations", "/images/edits"):
        return _error(404, "There is nothing here.", "invalid_request_error", "not_found")
    fields: dict[str, Any] = request.json()
    if request.headers.get("content-type", "").startswith("multipart/"):
        form, files = request.form()
        fields = {**form, "stream": form.get("stream") == "true"}
        if path == "/images/edits" and not (files.get("image") or files.get("image[]")):
            return _error(400, "A picture is missing.", "invalid_request_error", "missing_required_parameter")
    if not fields.get("prompt"):
        return _error(400, "A prompt is missing.", "invalid_request_error", "missing_required_parameter")
    asked = _asked(fields, as_url=fields.get("response_format") == "url")
    purchase = account.begin(request, asked, "req_")
    return await _sold(
        account,
        request,
        purchase,
        lambda: _stream(path, fields, purchase) if fields.get("stream") else _answer(account, request, purchase),
        lambda: _error(
            400,
            "Your request was rejected by the safety system.",
            "image_generation_user_error",
            "moderation_blocked",
            moderation_details={"moderation_stage": "output" if purchase.charged else "input", "categories": []},
        ),
        _broken,
    )


def _asked(fields: dict[str, Any], *, as_url: bool) -> Asked:
    width, _, height = str(fields.get("size", "")).partition("x")
    size = (int(width), int(height)) if width.isdecimal() and height.isdecimal() else SQUARE
    kind, quality = str(fields.get("output_format", "png")), str(fields.get("quality", "auto"))
    return Asked(int(fields.get("n", 1)), *size, format=kind, quality=quality, as_url=as_url)


def _answer(account: Account, request: Request, purchase: Purchase) -> Reply:
    items = [{name: item[name] for name in item if name != "index"} for item in _items(account, request, purchase)]
    return told({"created": int(time.time()), "data": items, "usage": _usage(purchase)}, openai_processing_ms="3")


def _usage(purchase: Purchase) -> dict[str, Any]:
    made = 196 * purchase.asked.pictures
    return {
        "input_tokens": 10,
        "output_tokens": made,
        "total_tokens": 10 + made,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
        "output_tokens_details": {"image_tokens": made, "text_tokens": 0},
    }


def _stream(path: str, fields: dict[str, Any], purchase: Purchase) -> Reply:
    made = purchase.made
    name = "image_edit" if path.endswith("edits") else "image_generation"
    common = {
        "b64_json": as_text(made.width, made.height, made.format),
        "created_at": int(time.time()),
        "size": f"{made.width}x{made.height}",
        "quality": made.quality,
        "background": "opaque",
        "output_format": made.format,
    }
    events: list[dict[str, Any]] = [
        {"type": f"{name}.partial_image", **common, "partial_image_index": at}
        for at in range(int(fields.get("partial_images", 0)))
    ]
    if made.pictures:
        events.append({"type": f"{name}.completed", **common, "usage": _usage(purchase)})
    chunks = tuple(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
    return Reply(media_type="text/event-stream", chunks=chunks or (b": nothing\n\n",))


def _error(status: int, message: str, kind: str, code: str | None, **more: Any) -> Reply:
    return told({"error": {"message": message, "type": kind, "param": None, "code": code, **more}}, status)


def _broken(status: int, message: str) -> Reply:
    if status == 429:
        return _error(status, message, "requests", "rate_limit_exceeded")
    return _error(status, message, "server_error", None)


async def together(account: Account, request: Request) -> Reply:
    path = request.path.removeprefix("/v1")
    if not account.lets_in(request):
        return _error(401, "Invalid API key provided.", "invalid_request_error", "invalid_api_key")
    if path == "/models":
        return told([{"id": "black-forest-labs/FLUX.2-dev", "type": "image", "created": 0}])
    if request.method != "POST" or path != "/images/generations":
        return _error(404, "There is nothing here.", "invalid_request_error", None)
    fields = request.json()
    if not fields.get("prompt") or not fields.get("model"):
        return _error(400, "A model and a prompt are needed.", "invalid_request_error", None)
    asked = Asked(
        int(fields.get("n", 1)),
        int(fields.get("width", 1024)),
        int(fields.get("height", 1024)),
        format=fields.get("output_format", "jpeg"),
        as_url=fields.get("response_format", "url") != "base64",
    )
    purchase = account.begin(request, asked, "tog_")

    def made() -> Reply:
        items = [{"type": "url" if asked.as_url else "b64_json", **item} for item in _items(account, request, purchase)]
        return told({"id": purchase.id, "model": fields["model"], "object": "list", "data": items})

    def filtered() -> Reply:
        return _error(422, "The picture was flagged as NSFW.", "invalid_request_error", "nsfw_content")

    return await _sold(account, request, purchase, made, filtered, _broken)


async def stability(account: Account, request: Request) -> Reply:
    if not account.lets_in(request):
        return _named(401, "unauthorized", "missing or invalid key")
    if request.path == "/v1/user/balance":
        return told({"credits": 1000.0})
    if request.method != "POST" or request.path != "/v2beta/stable-image/generate/sd3":
        return _named(404, "not_found", "there is nothing here")
    fields, _ = request.form()
    if not fields.get("prompt"):
        return _named(400, "bad_request", "prompt: is required")
    ratio = RATIOS.get(fields.get("aspect_ratio", "1:1"), SQUARE)
    purchase = account.begin(request, Asked(1, *ratio, format=fields.get("output_format", "png")), "sta_")
    as_json = "json" in request.headers.get("accept", "")
    seed = fields.get("seed", "1")

    def image(finish: str) -> Reply:
        asked, black = purchase.made, finish != "SUCCESS"
        if not as_json:
            file = picture(asked.width, asked.height, asked.format, black=black) if asked.pictures else b""
            return Reply(200, file, f"image/{asked.format}", {"finish-reason": finish, "seed": seed})
        text = as_text(asked.width, asked.height, asked.format, black=black) if asked.pictures else ""
        return told({"image": text, "finish_reason": finish, "seed": int(seed)})

    return await _sold(
        account,
        request,
        purchase,
        lambda: image("SUCCESS"),
        lambda: image("CONTENT_FILTERED"),
        lambda status, message: _named(status, "internal_error" if status >= 500 else "rate_limit_exceeded", message),
    )


def _named(status: int, name: str, message: str) -> Reply:
    return told({"id": "0", "name": name, "errors": [message]}, status)
