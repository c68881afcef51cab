"""`/v1/files`, OpenAI's: what a project uploads once and refers to by id."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from kleinbild.core.callers import Caller
from kleinbild.core.ids import new_id
from kleinbild.gateway.bodies import FormLimits, read_form
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.errors import ApiError, not_found, of_validation
from kleinbild.gateway.flow.authenticate import Asking, require_member
from kleinbild.gateway.services import services_of
from kleinbild.storage import files
from kleinbild.storage.blobs import MissingBlobError
from kleinbild.storage.files import File

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

router = APIRouter(prefix="/v1/files", tags=["files"])

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
DAY = 24 * 3600
MAX_BYTES = 512 * 1024**2
MAX_BATCH_BYTES = 200 * 1024**2
MAX_PROJECT_BYTES = int(2.5e12)
BATCH_KEPT_S = 30 * DAY
MAX_NAME = 255
"""OpenAI's limits."""


class WantedFile(BaseModel):
    """Beside `file`, which is the file."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=3600, le=30 * DAY)


class FileObject(BaseModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = None


class FileList(BaseModel):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"]
    deleted: bool


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 30 * DAY},
    },
}


@router.post(
    "",
    responses={200: {"model": FileObject}, **ERRORS},
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def upload(request: Request, caller: Asking) -> Response:
    """A file of up to 512 MB (200 MB for `batch`), which is kept until it is deleted or expires."""
    require_member(caller, "upload files")
    services = services_of(request)
    async with read_form(request, FormLimits("file", max_files=1, max_file_bytes=MAX_BYTES, max_fields=8)) as form:
        wanted, given = _read(form)
        file = await _keep(services, caller, wanted, given)
    return JSONResponse(_object(file))


@router.get("", responses={200: {"model": FileList}, **ERRORS})
async def listing(
    request: Request,
    caller: Asking,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The project's files."""
    async with services_of(request).database.read() as connection:
        found = await files.listed(
            connection, caller.project, time.time(), limit=limit + 1, order=order, purpose=purpose, after=after
        )
    page = [_object(file) for file in found[:limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(found) > limit})


@router.get("/{file_id}", responses={200: {"model": FileObject}, **ERRORS})
async def one(request: Request, file_id: str, caller: Asking) -> Response:
    """What is known of a file."""
    return JSONResponse(_object(await _find(services_of(request), caller, file_id)))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"description": "the file", "content": {"application/octet-stream": {}}}, **ERRORS},
)
async def content(request: Request, file_id: str, caller: Asking) -> Response:
    """The bytes, as bytes: a browser is to save them and not to show them, whatever they are."""
    services = services_of(request)
    file = await _find(services, caller, file_id)
    try:
        blob = await services.blobs.stream(file.sha256)
    except MissingBlobError as error:
        raise not_found("file", file_id) from error
    headers = {
        "Content-Length": str(blob.num_bytes),
        "Content-Disposition": f'attachment; filename="{file.id}"',
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(blob.chunks, 200, headers, "application/octet-stream")


@router.delete("/{file_id}", responses={200: {"model": DeletedFile}, **ERRORS})
async def delete(request: Request, file_id: str, caller: Asking) -> Response:
    """Deletes a file. The bytes go at the next sweep, unless another file or a job has the same."""
    require_member(caller, "delete files")
    async with services_of(request).database.write() as connection:
        if not await files.remove(connection, file_id, caller.project):
            raise not_found("file", file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _read(form: FormData) -> tuple[WantedFile, UploadFile]:
    given = form.get("file")
    if not isinstance(given, UploadFile):
        raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
    try:
        wanted = WantedFile.model_validate({name: value for name, value in form.multi_items() if name != "file"})
    except ValidationError as error:
        raise of_validation(error.errors()) from error
    if (wanted.anchor is None) != (wanted.seconds is None):
        raise ApiError(400, "expires_after needs both anchor and seconds", code="invalid_value", param="expires_after")
    if wanted.purpose == "batch" and (given.size or 0) > MAX_BATCH_BYTES:
        raise ApiError(413, "a batch file may have 200 MB at most; split it", code="invalid_value", param="file")
    return wanted, given


async def _keep(services: Services, caller: Caller, wanted: WantedFile, given: UploadFile) -> File:
    """First the bytes, with a day's grace; then the row, which keeps them from then on."""
    now = time.time()
    async with services.database.read() as connection:
        if await files.num_bytes(connection, caller.project) + (given.size or 0) > MAX_PROJECT_BYTES:
            raise ApiError(400, "the project's files have 2.5 TB; delete some", code="storage_limit_exceeded")
    # A small file is in memory, a large one on disk: it is never whole in memory.
    sha256 = await services.blobs.put(given.file, "application/octet-stream", now + DAY)
    seconds = wanted.seconds or (BATCH_KEPT_S if wanted.purpose == "batch" else None)
    name = Path((given.filename or "file").replace("\\", "/")).name[-MAX_NAME:] or "file"
    file = File(
        new_id("file"),
        caller.project,
        name,
        wanted.purpose,
        sha256,
        given.size or 0,
        now,
        None if seconds is None else now + seconds,
    )
    async with services.database.write() as connection:
        await files.add(connection, file)
    return file


async def _find(services: Services, caller: Caller, file_id: str) -> File:
    async with services.database.read() as connection:
        file = await files.find(connection, file_id, caller.project, time.time())
    if file is None:
        raise not_found("file", file_id)
    return file


def _object(file: File) -> dict[str, Any]:
    expires = {} if file.expires_at is None else {"expires_at": int(file.expires_at)}
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        **expires,
    }
