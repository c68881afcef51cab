"""The shapes of answers and bodies as the OpenAPI file tells them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    error: ErrorFields


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


class PictureObject(BaseModel):
    seed: int
    size: str
    url: str | None = None
    b64_json: str | None = None
    revised_prompt: str | None = None


class UsageDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class UsageObject(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: UsageDetails
    output_tokens_details: UsageDetails


class ResultObject(BaseModel):
    created: int
    data: list[PictureObject]
    background: str
    output_format: str
    size: str
    quality: str
    usage: UsageObject
    timings: dict[str, float]
    fingerprint: str
    cost: str
    currency: Literal["USD"]
    attempts: int
    deployments: list[str]


class ImagesObject(ResultObject):
    id: str
    model: str
    warnings: list[str]


class ProgressObject(BaseModel):
    position: int | None
    image_index: int
    step: int
    num_steps: int


class JobObject(BaseModel):
    id: str
    object: Literal["job"]
    task: Literal["image.generate", "image.edit"]
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    model: str
    created_at: int
    started_at: int | None
    completed_at: int | None
    input: dict[str, Any]
    progress: ProgressObject
    expected_seconds: float | None
    result: ResultObject | None
    error: ErrorFields | None
    warnings: list[str]
    metadata: dict[str, str]
    webhook: str | None


class JobList(BaseModel):
    object: Literal["list"]
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "what went wrong, in words",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ErrorObject"}},
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
        },
    }
}
EVENT_STREAM: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for events


def documented(
    body: type[BaseModel],
    answer: type[BaseModel],
    *,
    form: bool,
    json: bool = True,
    status: int = 200,
    stream: bool = True,
) -> dict[str, Any]:
    """What a route tells of a body that it reads itself, since FastAPI would hold all of it in memory. With `form`, the
    body may come as a form, with files `image` and `mask`; without `json`, it must."""
    schema = inlined(body.model_json_schema())
    content: dict[str, Any] = {"application/json": {"schema": schema}} if json else {}
    if form:
        files = {name: {"type": "string", "format": "binary"} for name in ("image", "mask")}
        fields = {**schema, "properties": {**schema["properties"], **files}, "required": ["image"]}
        content["multipart/form-data"] = {"schema": fields}
    answers = {"model": answer, "description": "done"}
    if stream:
        answers["content"] = EVENT_STREAM
    return {
        "status_code": status,
        "responses": {status: answers, **ERRORS},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its definitions in the places that refer to them: a route's body has no place for definitions."""
    definitions = schema.get("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if name := value.get("$ref"):
                return resolve(definitions[name.rsplit("/", 1)[1]])
            return {key: resolve(item) for key, item in value.items() if key != "$defs"}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    found: dict[str, Any] = resolve(schema)
    return found
