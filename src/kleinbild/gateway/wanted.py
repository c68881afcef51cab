"""What a request for pictures may say: OpenAI's fields and ours, checked, and made into work for a model.

Nothing is dropped in silence: what a model cannot honour is a warning in the answer, or an error where `strict` is set.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from kleinbild.core.adapters import MAX_ADAPTERS, MAX_STRENGTH, AdapterUse
from kleinbild.core.errors import RequestError, SizeError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import ImageWork, PictureRef, Task
from kleinbild.core.money import dollars
from kleinbild.core.requests import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from kleinbild.core.sizes import Size, parse_size
from kleinbild.gateway.configured import Policy
from kleinbild.gateway.errors import ApiError, of_validation
from kleinbild.providers.base import Capabilities

Body = TypeVar("Body", bound=BaseModel)

MAX_PROMPT = 32_000
MAX_MODEL = 256  # it is kept, in a warning, where another stands in
MAX_REFERENCES = 16
MAX_PINS = 32
MAX_SECONDS = 3600
DRAWN_SEEDS = 2**32  # as the engine draws them: short enough to read aloud
NOWHERE = ("style", "complexity", "frame_count", "frame_duration_ms")
"""Fields of OpenAI's that no place honours, as far as we ask them."""
OF_EDITS: tuple[Literal["input_fidelity", "strength"], ...] = ("input_fidelity", "strength")
HOSTED_MODELS = ("gpt-image-", "dall-e-", "chatgpt-image-", "flux-2-")
"""Beginnings of names that code written for OpenAI or BFL sends. The first model that is served stands in for them."""


def null_is_absent(schema: dict[str, Any]) -> None:
    """Tells the OpenAPI file what `without_nulls` does: each field that may be left out may be null."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            beside = {key: field.pop(key) for key in ("title", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **beside}


class PictureSource(BaseModel):
    """A picture by URL (https, http or data) or by the id of an uploaded file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_url: str | None = Field(None, max_length=20_971_520)
    file_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"image_url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> PictureSource:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("give exactly one of image_url and file_id")
        return self


def _number(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and info.context != FORM):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _flag(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, bool) and info.context != FORM:
        raise PydanticCustomError("flag_type", "Input should be true or false")
    return value


def _money(value: Any) -> Any:
    """Text, or a JSON number, of which the digits count as they were written."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("money_type", 'Input should be an amount of US dollars, such as "0.02"')
    try:
        amount = dollars(str(value))
    except RequestError as error:
        raise PydanticCustomError("money", 'Input should be an amount of US dollars, such as "0.02"') from error
    return amount


FORM = "form"
"""The context of values from a form, which are all text; JSON has numbers and truth values of its own."""
Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Money = Annotated[Decimal, BeforeValidator(_money), Field(ge=0, le=1_000_000)]


class WantedAdapter(BaseModel):
    """An adapter by the name it is registered under; no `scale` is the strength that its card recommends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=MAX_MODEL)
    scale: Number | None = Field(None, ge=-MAX_STRENGTH, le=MAX_STRENGTH)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else without_nulls(value)

    def __str__(self) -> str:
        name = self.name.rpartition("/")[2]
        return name if self.scale is None else f"{name} {self.scale:g}"


class Wanted(BaseModel):
    """The fields of `POST /v1/images/generations`; None is left to the model. `background` and below are OpenAI's, from
    `seed` on they are ours.

    `keep`: the job goes on if the client goes away. `cache_references`: see `core.requests.PictureRequest`. From `policy` on
    they say where the pictures may be made: at the deployments that `pins` names, in that order; for at most `max_price` US dollars, all attempts together, in at most
    `max_seconds`, with `local_only` on this machine alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=null_is_absent)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, examples=["a fox on a mint background"])
    model: str | None = Field(None, max_length=MAX_MODEL)
    n: Whole = Field(1, ge=1, le=10)
    size: str = "auto"
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    response_format: Literal["url", "b64_json"] = "b64_json"
    output_format: PictureFormat = "png"
    output_compression: Whole = Field(100, ge=0, le=100)
    background: Literal["auto", "opaque", "transparent"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    style: str | None = None
    input_fidelity: Literal["low", "high"] | None = None
    complexity: str | None = None
    frame_count: Whole | None = None
    frame_duration_ms: Whole | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    stream: Flag = False
    partial_images: Whole = Field(0, ge=0, le=3)

    seed: Whole | None = Field(None, ge=0, le=MAX_SEED)
    steps: Whole | None = Field(None, ge=1, le=MAX_STEPS)
    guidance: Number | None = Field(None, ge=1, le=MAX_GUIDANCE)
    references: tuple[PictureSource, ...] = Field((), max_length=MAX_REFERENCES)
    adapters: tuple[WantedAdapter, ...] = Field((), max_length=MAX_ADAPTERS)
    strength: Number | None = Field(None, ge=0, le=1)
    cache_references: Flag = False
    strict: Flag = False
    keep: Flag = False

    policy: Policy | None = None
    pins: tuple[str, ...] = Field((), max_length=MAX_PINS)
    max_price: Money | None = None
    max_seconds: Number | None = Field(None, gt=0, le=MAX_SECONDS)
    min_quality: Number | None = Field(None, ge=0, le=1)
    region: str | None = Field(None, max_length=64)
    local_only: Flag = False
    losses: Literal["strict", "warn", "drop"] | None = None
    hedge: Flag | None = None

    @property
    def on_loss(self) -> Literal["strict", "warn", "drop"]:
        """What becomes of a field that a place does not honour."""
        return self.losses or ("strict" if self.strict else "warn")


class WantedEdit(Wanted):
    """The JSON form of `POST /v1/images/edits`."""

    images: tuple[PictureSource, ...] = Field((), max_length=MAX_REFERENCES)
    mask: PictureSource | None = None


class WantedVariation(Wanted):
    """The fields of `POST /v1/images/variations`, which has no prompt: the default names no change, in nano's words."""

    prompt: str = Field("make the picture from the image", min_length=1, max_length=MAX_PROMPT)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a request, in the blob store."""

    references: tuple[PictureRef, ...] = ()
    mask: PictureRef | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A field that is not honoured, and what happens instead."""

    param: str
    message: str


def read(kind: type[Body], values: Any, *, form: bool = False) -> Body:
    """`values`, of JSON or a form, as `kind`; null is the same as absent. Raises ApiError that names the field."""
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(without_nulls(values), context=FORM if form else None)
    except ValidationError as error:
        raise of_validation(error.errors(), kind.model_fields) from error


def without_nulls(values: Any) -> Any:
    """A field that is null is one that is absent."""
    return {name: value for name, value in values.items() if value is not None} if isinstance(values, dict) else values


def work_for(wanted: Wanted, pictures: Pictures, can: Capabilities) -> tuple[ImageWork, tuple[str, ...]]:
    """The work, with everything random settled, and warnings. Raises ApiError for what `strict` does not allow."""
    losses = list(_losses(wanted, pictures, can))
    size = _size(wanted, pictures, can, losses)
    told = _told(wanted, losses)
    return _work(wanted, pictures, can.model, size, wanted.guidance if can.guidance else None), told


def work_anywhere(wanted: Wanted, pictures: Pictures, model: str) -> tuple[ImageWork, tuple[str, ...]]:
    """The work for whoever will do it, and warnings of what nobody does; what a place does otherwise is told once it is
    known which. Raises ApiError as `work_for` does."""
    losses = [
        *_lost_anywhere(wanted, pictures),
        *(Loss(name, "no place has such a setting") for name in NOWHERE if getattr(wanted, name) is not None),
    ]
    told = _told(wanted, losses)
    work = _work(wanted, pictures, model, _wanted_size(wanted), wanted.guidance)
    return (replace(work, background="transparent") if wanted.background == "transparent" else work), told


def _told(wanted: Wanted, losses: list[Loss]) -> tuple[str, ...]:
    if wanted.on_loss == "strict" and losses:
        raise ApiError(400, losses[0].message, code="unsupported_parameter", param=losses[0].param)
    return () if wanted.on_loss == "drop" else tuple(f"{loss.param}: {loss.message}" for loss in losses)


def _work(wanted: Wanted, pictures: Pictures, model: str, size: Size | None, guidance: float | None) -> ImageWork:
    task: Task = "image.edit" if pictures.references else "image.generate"
    return ImageWork(
        task=task,
        prompt=wanted.prompt,
        model=model,
        seed=secrets.randbelow(DRAWN_SEEDS) if wanted.seed is None else wanted.seed,
        n=wanted.n,
        size=size,
        steps=wanted.steps,
        guidance=guidance,
        references=pictures.references,
        mask=pictures.mask,
        cache_references=wanted.cache_references,
        output_format=wanted.output_format,
        compression=wanted.output_compression,
        quality=wanted.quality,
        num_previews=wanted.partial_images if wanted.stream else 0,
        moderation=wanted.moderation,
        input_fidelity=wanted.input_fidelity,
        strength=wanted.strength,
        adapters=tuple(AdapterUse(each.name, each.scale) for each in wanted.adapters),
    )


def _losses(wanted: Wanted, pictures: Pictures, can: Capabilities) -> Iterator[Loss]:
    model = can.model
    if wanted.quality not in ("auto", "standard"):
        yield Loss("quality", f"{wanted.quality!r} makes no difference with {model}")
    if wanted.background == "transparent":
        yield Loss("background", f"{model} makes opaque pictures only")
    yield from _lost_anywhere(wanted, pictures)
    if not can.guidance and wanted.guidance not in (None, 1):
        yield Loss("guidance", f"{model} is distilled and works without")
    for name in (*NOWHERE, *(OF_EDITS if pictures.references else ())):
        if getattr(wanted, name) is not None:
            yield Loss(name, f"{model} has no such setting")


def _lost_anywhere(wanted: Wanted, pictures: Pictures) -> Iterator[Loss]:
    if wanted.output_compression < 100 and wanted.output_format == "png":
        yield Loss("output_compression", "a PNG has none")
    if wanted.partial_images and not wanted.stream:
        yield Loss("partial_images", "only streamed answers have them; set stream")
    if not pictures.references:
        for name in OF_EDITS:
            if getattr(wanted, name) is not None:
                yield Loss(name, "it is of a picture that is given, and there is none")


def _size(wanted: Wanted, pictures: Pictures, can: Capabilities, losses: list[Loss]) -> Size | None:
    size = _wanted_size(wanted)
    if size is None:
        return None
    if pictures.mask is not None:
        losses.append(Loss("size", "with a mask the picture keeps its own size"))
        return None
    if can.sizes.allows(size):
        return size
    nearest = can.sizes.nearest(size)
    losses.append(Loss("size", f"{can.model} does not make {size} ({can.sizes}), it made {nearest}"))
    return nearest


def _wanted_size(wanted: Wanted) -> Size | None:
    """None is left to the model. Raises ApiError."""
    if wanted.size == "auto":
        return None
    try:
        size = parse_size(wanted.size)
    except SizeError as error:
        raise ApiError(400, f"{error.message}; {error.hint}, or auto", code="invalid_value", param="size") from error
    if size.width <= 0 or size.height <= 0:
        raise ApiError(400, f"{size} is not a size of a picture", code="invalid_value", param="size")
    return size
