"""Fine-tuning as OpenAI's API has it: what a request for it may say, and its jobs, events and checkpoints as objects."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from kleinbild.core.errors import RequestError
from kleinbild.core.training import (
    Checkpointed,
    Failed,
    Finished,
    Paused,
    Prepared,
    Previewed,
    Progressed,
    Started,
    TrainingEvent,
    Validated,
    Warned,
)
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.adapt import TunedModel
from kleinbild.gateway.wanted import Whole, null_is_absent, without_nulls
from kleinbild.storage.tunings import FINAL, Checkpoint, Happening, Hyperparameters, Tuning
from kleinbild.train import recipe as recipes

MAX_SUFFIX = 64
MAX_EPOCHS, MAX_BATCH, MAX_MULTIPLIER = 10_000, 4096, 100
MAX_SEED = 2**31 - 1
NAMED_CHARS = 48  # of a suffix in an adapter's name
OURS = {
    "model": "the request has a field for it",
    "data": "the request has a field for it",
    "seed": "the request has a field for it",
    "validation_data": "the request has a field for it, validation_file",
    "wandb": "nothing is told to other services; the job's events have all metrics",
    "regularization_data": "put the pictures into a folder reg of the training file",
}
"""What a request's recipe may not say, and what to do instead: no path on this machine, for one."""

Auto = Literal["auto"]


class WantedHyperparameters(BaseModel):
    """OpenAI's three; "auto" is left to the recipe. `learning_rate_multiplier` is of the recipe's rate."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=null_is_absent)

    n_epochs: Auto | Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=MAX_BATCH)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=MAX_MULTIPLIER)] = "auto"

    @field_validator("n_epochs", "batch_size", mode="before")
    @classmethod
    def _count(cls, value: Any, info: ValidationInfo) -> Any:
        most = MAX_EPOCHS if info.field_name == "n_epochs" else MAX_BATCH
        if value != "auto" and not (type(value) is int and 1 <= value <= most):
            raise ValueError(f'Input should be "auto" or a whole number from 1 to {most}')
        return value

    @field_validator("learning_rate_multiplier", mode="before")
    @classmethod
    def _factor(cls, value: Any) -> Any:
        if value != "auto" and not (type(value) in (int, float) and 0 < value <= MAX_MULTIPLIER):
            raise ValueError(f'Input should be "auto" or a number above 0, up to {MAX_MULTIPLIER}')
        return value

    @property
    def values(self) -> Hyperparameters:
        return Hyperparameters(self.n_epochs, self.batch_size, self.learning_rate_multiplier)


Given = Annotated[WantedHyperparameters, BeforeValidator(without_nulls)]


class WantedSupervised(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: Given = WantedHyperparameters()


class WantedMethod(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["supervised"]
    supervised: Annotated[WantedSupervised, BeforeValidator(without_nulls)] = WantedSupervised()


class WantedTuning(BaseModel):
    """The fields of `POST /v1/fine_tuning/jobs`, which are OpenAI's but for `recipe`.

    `training_file` is the id of a zip of pictures with their captions, `validation_file` that of one to measure on, which is
    never trained on; without it a run measures itself on some of its own. `recipe` is the name of one (`kleinbild train
    --help`), or values as they stand in one; with `name` among them, they override those of the recipe of that name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=null_is_absent)

    model: str = Field(min_length=1, max_length=128, examples=["nano"])
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(None, min_length=1, max_length=64)
    suffix: str | None = Field(None, min_length=1, max_length=MAX_SUFFIX)
    seed: Whole | None = Field(None, ge=0, le=MAX_SEED)
    hyperparameters: Given | None = None
    method: WantedMethod | None = None
    integrations: tuple[Any, ...] = ()
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )
    recipe: str | dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> WantedTuning:
        inner = None if self.method is None else self.method.supervised.hyperparameters
        if inner is not None and self.hyperparameters is not None and inner != self.hyperparameters:
            raise ValueError("hyperparameters and method.supervised.hyperparameters differ; give one of them")
        return self

    @property
    def chosen(self) -> Hyperparameters:
        if self.hyperparameters is not None:
            return self.hyperparameters.values
        return (WantedHyperparameters() if self.method is None else self.method.supervised.hyperparameters).values


def require_done_here(wanted: WantedTuning) -> None:
    """Raises ApiError for what OpenAI has and this server has not: nothing is dropped in silence."""
    if wanted.integrations:
        message = "nothing is told to other services; the job's events have all metrics"
        raise ApiError(400, message, code="unsupported_parameter", param="integrations")


def recipe_of(wanted: WantedTuning) -> dict[str, Any]:
    """The values that the run's recipe begins with. Raises ApiError in the trainer's words."""
    given: Mapping[str, Any] = {"name": wanted.recipe} if isinstance(wanted.recipe, str) else wanted.recipe or {}
    for key, instead in OURS.items():
        if key in given:
            message = f"{key} is not the recipe's to say here; {instead}"
            raise ApiError(400, message, code="invalid_value", param=f"recipe.{key}")
    try:
        values = {
            **_named(given.get("name")),
            **recipes.checked({key: value for key, value in given.items() if key != "name"}),
        }
    except RequestError as error:
        raise ApiError(400, f"{error.message}; {error.hint}", code="invalid_value", param="recipe") from error
    if values.get("method") == "full":
        message = "method full gives a whole model, and this server serves adapters; use lora, lokr or dora, or kleinbild train"
        raise ApiError(400, message, code="invalid_value", param="recipe.method")
    return values


def _named(name: object) -> dict[str, Any]:
    """Of a recipe that comes with us, never of a path on this machine. Raises RequestError."""
    if name is None:
        return {}
    if name not in recipes.names():
        raise RequestError(f"there is no recipe {name!r}", f"ours are {', '.join(recipes.names())}")
    return recipes.read(str(name))


def adapter_name(wanted: WantedTuning, job_id: str) -> str:
    """What the adapter will be registered under: what the caller calls it, and the job's last characters."""
    told = re.sub(r"[^a-z0-9._-]+", "-", (wanted.suffix or wanted.model).lower()).strip("-._")[:NAMED_CHARS]
    return f"{told or 'adapter'}-{job_id[-8:]}"


def drawn_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)


def job_object(tuning: Tuning) -> dict[str, Any]:
    """OpenAI's, and which values the recipe began with."""
    wanted, result, chosen = tuning.wanted, tuning.result, tuning.wanted.hyperparameters
    hyperparameters = {
        "n_epochs": chosen.n_epochs,
        "batch_size": chosen.batch_size,
        "learning_rate_multiplier": chosen.learning_rate_multiplier,
    }
    is_running = tuning.status == "running" and tuning.estimated_finish is not None
    return {
        "id": tuning.id,
        "object": "fine_tuning.job",
        "created_at": int(tuning.created_at),
        "error": None if result is None else result.error,
        "fine_tuned_model": tuning.fine_tuned_model if tuning.status == "succeeded" else None,
        "finished_at": None if tuning.finished_at is None else int(tuning.finished_at),
        "hyperparameters": hyperparameters,
        "model": tuning.model,
        "organization_id": tuning.project,
        "result_files": [] if result is None else list(result.result_files),
        "seed": wanted.seed,
        "status": tuning.status,
        "trained_tokens": None if result is None else result.trained_tokens,
        "training_file": wanted.training_file,
        "validation_file": wanted.validation_file,
        "estimated_finish": int(tuning.estimated_finish or 0) if is_running else None,
        "integrations": [],
        "metadata": wanted.metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "recipe": wanted.recipe,
    }


def event_id(job_id: str, number: int) -> str:
    return f"ftevent_{job_id.partition('_')[2]}_{number:06d}"


def event_object(job_id: str, event: Happening) -> dict[str, Any]:
    return {
        "id": event_id(job_id, event.number),
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data or {},
    }


def checkpoint_id(checkpoint: Checkpoint) -> str:
    return f"ftckpt_{checkpoint.job_id.partition('_')[2]}_{checkpoint.step:06d}"


def checkpoint_object(tuning: Tuning, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint_id(checkpoint),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created_at),
        "fine_tuned_model_checkpoint": str(TunedModel(tuning.model, tuning.adapter, checkpoint.step)),
        "fine_tuning_job_id": tuning.id,
        "metrics": {"step": checkpoint.step, **checkpoint.metrics},
        "step_number": checkpoint.step,
    }


def number_in(kind: Literal["ftevent", "ftckpt"], job_id: str, written: str | None) -> int | None:
    """The number in the id of an event or a checkpoint of the job, to go on after it. Raises ApiError for another id."""
    if written is None:
        return None
    number = written.removeprefix(f"{kind}_{job_id.partition('_')[2]}_")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise ApiError(400, f"{written!r} is none of the job's ids", code="invalid_value", param="after")
    return int(number)


def happening(tuning: Tuning, event: TrainingEvent, at: float) -> Happening:
    """What the trainer says, as an event of the job, in OpenAI's words where it has some."""
    match event:
        case Prepared():
            return Happening(f"Before training: {event.what}, {event.done} of {event.total}", at)
        case Started(step=0):
            return Happening("Fine-tuning job started", at, data={"total_steps": event.num_steps})
        case Started():
            return Happening(f"Fine-tuning job goes on at step {event.step}", at)
        case Progressed():
            data = {
                "step": event.step,
                "total_steps": event.num_steps,
                "train_loss": event.loss,
                "learning_rate": event.learning_rate,
            }
            return Happening(f"Step {event.step}/{event.num_steps}: training loss={event.loss:.4f}", at, data=data)
        case Validated():
            by_time, metrics = dict(event.by_time), dict(event.metrics)
            measured: dict[str, Any] = {
                "step": event.step,
                "valid_loss": event.loss,
                "by_time": by_time,
                "metrics": metrics,
            }
            return Happening(f"Step {event.step}: validation loss={event.loss:.4f}", at, data=measured)
        case Previewed():
            return Happening(f"Step {event.step}: previews by {event.model}", at)
        case Checkpointed():
            snapshot = TunedModel(tuning.model, tuning.adapter, event.step)
            return Happening(f"Checkpoint created at step {event.step} with Snapshot ID: {snapshot}", at)
        case Warned():
            return Happening(event.message, at, "warn")
        case Paused():
            return Happening(f"Fine-tuning job paused at step {event.step}", at)
        case Finished():
            return Happening(f"New fine-tuned model created: {tuning.fine_tuned_model}", at)
        case Failed():
            return Happening(f"{event.message}; {event.hint}" if event.hint else event.message, at, "error")


def is_final(tuning: Tuning) -> bool:
    return tuning.status in FINAL
