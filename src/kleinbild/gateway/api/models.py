"""`/v1/models`: what can be asked for here. `/v1/moderations` is not there yet, and says so."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kleinbild.core.callers import Caller
from kleinbild.gateway.described import ERRORS, ModelList, ModelObject
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.authenticate import Asking
from kleinbild.gateway.services import services_of

router = APIRouter(prefix="/v1", tags=["models"])
CREATED = 1764633600  # 2025-12-02, when the family came out; a model's age is of no use here, but the field must be


@router.get("/models", responses={200: {"model": ModelList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The models that are served here and the key may use."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in _allowed(request, caller)]})


@router.get("/models/{model}", responses={200: {"model": ModelObject}, **ERRORS})
async def one(request: Request, model: str, caller: Asking) -> Response:
    """A model that is served here."""
    if model not in _allowed(request, caller):
        raise ApiError(404, f"The model {model!r} does not exist.", code="model_not_found", param="model")
    return JSONResponse(_model(model))


@router.post("/moderations", responses=ERRORS, status_code=501)
async def moderations(caller: Asking) -> Response:  # noqa: ARG001 - who asks must be known
    """Not there yet."""
    raise ApiError(501, "this server moderates nothing yet", type="server_error", code="not_implemented")


def _allowed(request: Request, caller: Caller) -> list[str]:
    served = services_of(request).fleet.models
    return [name for name in served if caller.models is None or name in caller.models]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "kleinbild"}
