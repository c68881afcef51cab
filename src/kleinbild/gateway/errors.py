"""Errors as answers: OpenAI's error object, or RFC 9457's problem where the client asks for that.

`ApiError` is raised anywhere in the gateway; what `core.errors` raises and what validation finds become one here, too.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from kleinbild.core import errors
from kleinbild.core.jobs import JobError
from kleinbild.core.prices import UnknownPriceError
from kleinbild.gateway.bodies import BodyError
from kleinbild.storage.ledger import BudgetError

ErrorType = Literal[
    "invalid_request_error",
    "image_generation_user_error",
    "rate_limit_error",
    "idempotency_error",
    "permission_error",
    "insufficient_quota",
    "server_error",
]
CLIENT_CLOSED_REQUEST = 499  # not in the standard; what proxies log for a client that went away
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer that is an error. `param` names the field that is wrong; `headers` go with the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: ErrorType | str = "invalid_request_error",  # noqa: A002 - OpenAI's name
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, str(type), code, param
        self.headers = headers or {}

    def about(self, param: str) -> ApiError:
        """The same, of the field `param`; what is no fault of the request stays as it is."""
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self
        return ApiError(self.status, self.message, type=self.type, code=self.code, param=param, headers=self.headers)

    @classmethod
    def of_job(cls, error: JobError) -> ApiError:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return cls(error.status, error.message, type=error.type, code=error.code, param=error.param, headers=headers)

    @classmethod
    def of(cls, error: errors.KleinbildError) -> ApiError:
        if not isinstance(error, BodyError):
            return cls.of_job(job_error(error))
        code = "request_too_large" if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else "invalid_body"
        return cls(error.status, _sentence(error), code=code, param=error.param)


def client_gone() -> ApiError:
    """Nobody reads it; it is not a bug and not to be logged as one."""
    return ApiError(CLIENT_CLOSED_REQUEST, "the client went away", code="client_closed_request")


def not_found(what: str, name: str) -> ApiError:
    return ApiError(404, f"there is no {what} {name!r}", code="not_found")


def too_many(message: str, retry_after_s: float, code: str = "rate_limit_exceeded") -> ApiError:
    seconds = max(1, round(retry_after_s))
    return ApiError(429, message, type="rate_limit_error", code=code, headers={"Retry-After": str(seconds)})


STATUS_OF: tuple[tuple[type[errors.KleinbildError], int, str], ...] = (
    (errors.PromptError, 400, "invalid_prompt"),
    (errors.SizeError, 400, "invalid_size"),
    (errors.PictureError, 400, "invalid_image"),
    (errors.DestinationError, 400, "invalid_image_url"),
    (errors.FetchError, 400, "invalid_image_url"),
    (errors.RequestError, 400, "invalid_value"),
    (errors.UnknownModelError, 404, "model_not_found"),
    (errors.ModelError, 503, "model_unavailable"),
    (errors.NoPlaceError, 400, "no_deployment"),
    (errors.ModeratedError, 400, "moderation_blocked"),
    (errors.BusyError, 503, "no_deployment"),
    (errors.LateError, 504, "deadline_exceeded"),
    (errors.UnsureError, 502, "outcome_unknown"),
    (errors.PlacesError, 502, "no_deployment_succeeded"),
    (BudgetError, 402, "budget_exceeded"),
    (UnknownPriceError, 400, "unknown_price"),
    (errors.CapacityError, 400, "exceeds_capacity"),
    (errors.DeadlineError, 504, "deadline_exceeded"),
    (errors.CancelledError, 409, "cancelled"),
    (errors.WorkerError, 503, "engine_unavailable"),
    (errors.EngineError, 500, "engine_error"),
)
TYPE_OF: dict[str, ErrorType] = {
    "moderation_blocked": "image_generation_user_error",
    "rate_limit_exceeded": "rate_limit_error",
    "budget_exceeded": "insufficient_quota",
}
PARAM_OF: tuple[tuple[type[errors.KleinbildError], str], ...] = (
    (errors.PromptError, "prompt"),
    (errors.SizeError, "size"),
    (errors.MaskError, "mask"),
    (errors.PictureError, "image"),
    (errors.UnknownModelError, "model"),
    (errors.AdapterError, "adapters"),
)


WORDS = {
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
}
"""Of validation, where its own words are none that a caller knows."""


def job_error(error: errors.KleinbildError) -> JobError:
    """What went wrong with a picture, in OpenAI's terms; what is our fault has the type `server_error`."""
    status, code = next(
        ((status, code) for kind, status, code in STATUS_OF if isinstance(error, kind)), (500, "internal_error")
    )
    param = next((param for kind, param in PARAM_OF if isinstance(error, kind)), None)
    kind = TYPE_OF.get(code) or ("invalid_request_error" if status < 500 else "server_error")
    later = max(1, math.ceil(error.retry_after)) if isinstance(error, errors.BusyError) else None
    return JobError(_sentence(error), kind, code, param, status, later)


def _sentence(error: errors.KleinbildError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def install(app: FastAPI) -> None:
    """Every error that leaves `app` has one of the two shapes."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(errors.KleinbildError)
    async def known(request: Request, error: errors.KleinbildError) -> JSONResponse:
        return answer(request, ApiError.of(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, _: ClientDisconnect) -> JSONResponse:
        return answer(request, client_gone())

    @app.exception_handler(DataError)
    async def unstorable(request: Request, error: DataError) -> JSONResponse:
        """Text that PostgreSQL does not take and SQLite does: with a NUL in it, or too long."""
        message = f"A value cannot be stored or looked for: {str(error.orig).partition(chr(10))[0]}."
        return answer(request, ApiError(400, message, code="invalid_value"))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.NOT_FOUND:
            return answer(
                request, ApiError(404, f"Invalid URL ({request.method} {request.url.path})", code="not_found")
            )
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(request))
            message = f"{request.url.path} takes {allowed}, not {request.method}"
            return answer(request, ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed}))
        return answer(request, ApiError(error.status_code, str(error.detail), headers=headers))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        request_id = request.state.trace.request_id
        log.error("unexpected error in %s", request_id, exc_info=error)
        message = f"an unexpected error; the server's log has it under {request_id}"
        headers = {"x-request-id": request_id}  # this answer does not pass through what usually adds it
        return answer(request, ApiError(500, message, type="server_error", code="internal_error", headers=headers))


def _methods(request: Request) -> list[str]:
    """What the path takes. A path's methods are routes of their own, and each knows only itself."""
    routes = request.app.router.routes
    scopes = [{**request.scope, "method": method} for method in METHODS]
    return [scope["method"] for scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]


def of_validation(found: Any, known: Iterable[str] = ()) -> ApiError:
    """The first of the things that validation (pydantic's list of errors) found, in words, with the field's name. A name
    that is like one of the `known` is told so."""
    first = found[0]
    places = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(places) or None
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(places[-1][:64], known, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        return ApiError(400, f"Unknown parameter: {param!r}.{guess}", code="unknown_parameter", param=param)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: {param!r}.", code="missing_required_parameter", param=param)
    what = f"Invalid value for {param!r}: " if param else "Invalid request: "
    return ApiError(400, what + _in_words(first), code="invalid_value", param=param)


def _in_words(found: Any) -> str:
    """Of JSON, where pydantic speaks of Python."""
    words: str = WORDS.get(found["type"], found["msg"])
    return words.removeprefix("Value error, ").replace("Tuple should", "List should").replace(" after validation", "")


def answer(request: Request, error: ApiError) -> JSONResponse:
    if "application/problem+json" in request.headers.get("accept", ""):
        return JSONResponse(problem(request, error), error.status, error.headers, "application/problem+json")
    return JSONResponse({"error": as_object(error)}, error.status, error.headers)


def as_object(error: ApiError | JobError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def problem(request: Request, error: ApiError) -> dict[str, Any]:
    known = {"param": error.param, "code": error.code}
    return {
        "type": f"urn:kleinbild:error:{error.code or error.type}",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.message,
        "instance": request.url.path,
        **{name: value for name, value in known.items() if value is not None},
    }


def _title(status: int) -> str:
    return "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase
