"""`/v1/models`: what can be asked for here. `/v1/moderations` is not there yet, and says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from kleinbild.core.adapters import Card
from kleinbild.core.callers import Caller
from kleinbild.gateway.api.adapters import remove
from kleinbild.gateway.described import ERRORS, ModelList, ModelObject
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.adapt import TunedModel, tuned_models, visible_cards
from kleinbild.gateway.flow.authenticate import Asking, require_admin, require_member
from kleinbild.gateway.flow.tune import remove_run
from kleinbild.gateway.services import services_of
from kleinbild.gateway.tracing import request_id_of
from kleinbild.storage import tunings

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1", tags=["models"])
CREATED = 1764633600  # 2025-12-02, when the family came out; a model's age is of no use here, but the field must be


Tuned = tuple[TunedModel, Card, str | None]
"""With the adapter, and the project that has made it, if one has."""


class DeletedModel(BaseModel):
    id: str
    object: Literal["model"]
    deleted: bool


@router.get("/models", responses={200: {"model": ModelList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The models that are served here and the key may use, and what fine-tuning has made of them."""
    services = services_of(request)
    tuned = [_tuned_object(*each) for each in await _tuned(services, caller)]
    return JSONResponse({"object": "list", "data": [*(_model(name) for name in _allowed(request, caller)), *tuned]})


@router.get("/models/{model}", responses={200: {"model": ModelObject}, **ERRORS})
async def one(request: Request, model: str, caller: Asking) -> Response:
    """A model that is served here."""
    if model in _allowed(request, caller):
        return JSONResponse(_model(model))
    return JSONResponse(_tuned_object(*await _find(services_of(request), caller, model)))


@router.delete("/models/{model}", responses={200: {"model": DeletedModel}, **ERRORS})
async def delete(request: Request, model: str, caller: Asking) -> Response:
    """Removes a fine-tuned model of the project's own, with its run; an admin removes any."""
    require_member(caller, "delete models")
    services = services_of(request)
    tuned, card, project = await _find(services, caller, model)
    if project != caller.project:
        require_admin(caller, "delete models of others")
    await remove(services, caller, card.name, request_id_of(request))
    async with services.database.read() as connection:
        job = await tunings.of_adapter(connection, card.name)
    if job is not None:
        await asyncio.to_thread(remove_run, services.settings.data, job.id)
    return JSONResponse({"id": str(tuned), "object": "model", "deleted": True})


@router.post("/moderations", responses=ERRORS, status_code=501)
async def moderations(caller: Asking) -> Response:  # noqa: ARG001 - who asks must be known
    """Not there yet."""
    raise ApiError(501, "this server moderates nothing yet", type="server_error", code="not_implemented")


def _allowed(request: Request, caller: Caller) -> list[str]:
    served = services_of(request).fleet.models
    return [name for name in served if caller.models is None or name in caller.models]


async def _tuned(services: Services, caller: Caller) -> list[Tuned]:
    found = (await visible_cards(services, caller)).values()
    all_tuned = [(tuned, card, project) for card, project in found for tuned in tuned_models(services, card)]
    may = caller.models
    return [each for each in all_tuned if may is None or each[0].model in may or str(each[0]) in may]


async def _find(services: Services, caller: Caller, model: str) -> Tuned:
    for each in await _tuned(services, caller):
        if model in (str(each[0]), each[1].name):
            return each
    raise ApiError(404, f"The model {model!r} does not exist.", code="model_not_found", param="model")


def _tuned_object(tuned: TunedModel, card: Card, project: str | None) -> dict[str, Any]:
    return {**_model(str(tuned)), "created": int(card.created_at), "owned_by": project or "kleinbild"}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "kleinbild"}
