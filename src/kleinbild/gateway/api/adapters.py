"""`/v1/adapters`: what can be asked for beside a model, and, for admins, what is added to them and removed."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from kleinbild.core.adapters import MAX_STRENGTH, Card
from kleinbild.core.callers import Caller
from kleinbild.core.errors import KleinbildError, ModelError
from kleinbild.gateway.administer import acting
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import ERRORS, documented
from kleinbild.gateway.errors import ApiError, not_found
from kleinbild.gateway.flow.adapt import tuned_models, visible_cards
from kleinbild.gateway.flow.authenticate import Asking, require_admin
from kleinbild.gateway.services import services_of
from kleinbild.gateway.tracing import request_id_of
from kleinbild.gateway.wanted import Number, null_is_absent, read
from kleinbild.model.adapters import registry
from kleinbild.model.adapters.families import family_of, read_adapter_header, shapes_of, specs
from kleinbild.model.adapters.plan import plan
from kleinbild.storage import files
from kleinbild.storage.blobs import MissingBlobError

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
Strength = Annotated[Number, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]
MAX_WORDS = 16


class WantedStrengths(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Strength = 1.0
    distilled: Strength = 1.0


class WantedUpload(BaseModel):
    """`file` is the id of an uploaded .safetensors; which models it is for, its shapes say."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=null_is_absent)

    name: str = Field(min_length=1, max_length=64, examples=["fuchur"])
    file: str = Field(min_length=1, max_length=64)
    trigger_words: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field((), max_length=MAX_WORDS)
    licence: str = Field("", max_length=256)
    strengths: WantedStrengths = WantedStrengths()


class AdapterObject(BaseModel):
    """`models` are the names by which it can be asked for as a fine-tuned model. `project` has made it; null is nobody's."""

    id: str
    object: Literal["adapter"]
    created_at: int
    family: str
    base: str
    bytes: int
    sha256: str
    trigger_words: list[str]
    licence: str
    strengths: dict[str, float]
    models: list[str]
    project: str | None


class AdapterList(BaseModel):
    object: Literal["list"]
    data: list[AdapterObject]


class DeletedAdapter(BaseModel):
    id: str
    object: Literal["adapter"]
    deleted: bool


@router.get("", responses={200: {"model": AdapterList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The adapters that the key may use: everybody's, and those of its own project."""
    services = services_of(request)
    found = (await visible_cards(services, caller)).values()
    return JSONResponse({"object": "list", "data": [_object(services, *each) for each in found]})


@router.get("/{name}", responses={200: {"model": AdapterObject}, **ERRORS})
async def one(request: Request, name: str, caller: Asking) -> Response:
    """What is known of an adapter."""
    services = services_of(request)
    return JSONResponse(_object(services, *await _find(services, caller, name)))


@router.post("", **documented(WantedUpload, AdapterObject, form=False, status=201, stream=False))
async def add(request: Request, caller: Asking) -> Response:
    """Registers an uploaded file as everybody's adapter. Its header and shapes are checked before."""
    require_admin(caller, "add adapters")
    services = services_of(request)
    wanted = read(WantedUpload, await read_json(request))
    name = _name(wanted.name)
    if name in await visible_cards(services, caller):
        message = f"there is an adapter {name!r} already; delete it first, or choose another name"
        raise ApiError(409, message, code="adapter_exists", param="name")
    with tempfile.TemporaryDirectory(dir=services.settings.data) as folder:
        path = await _file(services, caller, wanted.file, Path(folder) / registry.FILE)
        family = await asyncio.to_thread(_family_of, path)
        card = Card(
            name=name,
            family=family,
            sha256=await asyncio.to_thread(registry.digest, path),
            size_bytes=path.stat().st_size,
            created_at=time.time(),
            trigger_words=wanted.trigger_words,
            licence=wanted.licence,
            strengths={"base": wanted.strengths.base, "distilled": wanted.strengths.distilled},
        )
        await asyncio.to_thread(registry.register, path, card)
    async with acting(services.database, caller.id, "adapter.add", request_id_of(request)) as action:
        action.tell(name, {"sha256": card.sha256, "file": wanted.file})
    return JSONResponse(_object(services, card, None), 201)


@router.delete("/{name}", responses={200: {"model": DeletedAdapter}, **ERRORS})
async def delete(request: Request, name: str, caller: Asking) -> Response:
    """Removes an adapter, also one that a project has made."""
    require_admin(caller, "delete adapters")
    services = services_of(request)
    await _find(services, caller, name)
    await remove(services, caller, name, request_id_of(request))
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


async def remove(services: Services, caller: Caller, name: str, request_id: str) -> None:
    """With its entry in the audit log. Raises ApiError, 404."""
    try:
        await asyncio.to_thread(registry.remove, name)
    except ModelError as error:
        raise not_found("adapter", name) from error
    async with acting(services.database, caller.id, "adapter.delete", request_id) as action:
        action.tell(name, {})


async def _find(services: Services, caller: Caller, name: str) -> tuple[Card, str | None]:
    found = (await visible_cards(services, caller)).get(name)
    if found is None:
        raise not_found("adapter", name)
    return found


def _name(name: str) -> str:
    try:
        return registry.check_name(name)
    except KleinbildError as error:
        raise ApiError(400, f"{error.message}; {error.hint}", code="invalid_value", param="name") from error


def _family_of(path: Path) -> str:
    """The family of models that the file is an adapter for, by its header alone: no tensor is read. Raises ApiError."""
    try:
        stored = read_adapter_header(path)
        family = family_of(stored)
        planned = None if family is None else plan(shapes_of(stored), specs()[family])
    except KleinbildError as error:
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        raise _invalid(message.replace(str(path), "the file")) from error
    if family is None or planned is None:
        raise _invalid(
            "the file is no adapter that fits FLUX.2 [klein] or nano; give a LoRA, LoKr or LoHa for one of them"
        )
    if planned.unmatched:
        key, why = next(iter(planned.unmatched.items()))
        raise _invalid(f"{len(planned.unmatched)} of {len(stored.tensors)} tensors do not match: {key} ({why}), …")
    return family


def _invalid(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_adapter", param="file")


async def _file(services: Services, caller: Caller, file_id: str, path: Path) -> Path:
    async with services.database.read() as connection:
        file = await files.find(connection, file_id, caller.project, time.time())
    if file is None:
        raise not_found("file", file_id)
    try:
        blob = await services.blobs.stream(file.sha256)
        with path.open("wb") as stored:
            async for chunk in blob.chunks:
                await asyncio.to_thread(stored.write, chunk)
    except MissingBlobError as error:
        raise not_found("file", file_id) from error
    return path


def _object(services: Services, card: Card, project: str | None) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "adapter",
        "created_at": int(card.created_at),
        "family": card.family,
        "base": card.base,
        "bytes": card.size_bytes,
        "sha256": card.sha256,
        "trigger_words": list(card.trigger_words),
        "licence": card.licence,
        "strengths": dict(card.strengths),
        "models": [str(each) for each in tuned_models(services, card)],
        "project": project,
    }
