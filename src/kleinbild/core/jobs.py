"""A job: pictures that were asked for, as an object that outlives the connection it came by."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.formats import PictureFormat
from kleinbild.core.money import ZERO
from kleinbild.core.sizes import Size
from kleinbild.core.tokens import NO_TOKENS, Tokens

Task = Literal["image.generate", "image.edit"]
JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
FINAL: frozenset[JobStatus] = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class PictureRef:
    """A picture given: the SHA-256 of its bytes in the blob store, and the file name it came with, if any.

    What is in the blob store was cleaned; `original` is the SHA-256 of the file as it came.
    """

    sha256: str
    name: str = ""
    original: str = ""


@dataclass(frozen=True, slots=True)
class ImageWork:
    """What a job makes: `n` pictures of seeds `seed`, `seed` + 1, …; everything that is random is settled.

    Fields are `core.requests.PictureRequest`'s where they have its names. `compression` is OpenAI's, 0 to 100, of JPEG
    and WebP; `num_previews` of each picture are made on the way. `moderation` and `input_fidelity` are OpenAI's, too;
    `strength` is how far an edit may go from its picture, 0 to 1.
    """

    task: Task
    prompt: str
    model: str
    seed: int
    n: int = 1
    size: Size | None = None
    steps: int | None = None
    guidance: float | None = None
    references: tuple[PictureRef, ...] = ()
    mask: PictureRef | None = None
    cache_references: bool = False
    output_format: PictureFormat = "png"
    compression: int = 100
    quality: str = "auto"
    background: str = "opaque"
    num_previews: int = 0
    moderation: str = "auto"
    input_fidelity: str | None = None
    strength: float | None = None
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True, slots=True)
class MadePicture:
    """One picture of a job, in the blob store. `revised_prompt`: what the model read in place of the prompt, "" if it read that."""

    sha256: str
    seed: int
    size: Size
    num_bytes: int
    revised_prompt: str = ""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why there is no picture, in the fields of OpenAI's error object; `status` is the HTTP status of its answer, and
    `retry_after` the seconds after which asking again may help, where that is known."""

    message: str
    type: str = "server_error"
    code: str | None = None
    param: str | None = None
    status: int = 500
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: with `pictures` or with an `error`; both are empty if it was cancelled.

    `timings` are seconds by stage and `tokens` what the model took, summed over the pictures; `fingerprint` is the
    weights'. `cost` is in US dollars, of all `attempts`, those that made nothing included; `deployments` are those that
    made the pictures.
    """

    status: JobStatus
    pictures: tuple[MadePicture, ...] = ()
    error: JobError | None = None
    timings: dict[str, float] | None = None
    tokens: Tokens = NO_TOKENS
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    cost: Decimal = ZERO
    attempts: int = 0
    deployments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """`project` owns it; times are seconds since 1970. `warnings` say what was asked for and is not done. `server` is the
    number of the one that makes it."""

    id: str
    caller: str
    project: str
    work: ImageWork
    created_at: float
    status: JobStatus = "queued"
    started_at: float | None = None
    completed_at: float | None = None
    outcome: Outcome | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None
    webhook: str | None = None
    server: int = 0


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. Ids increase with time, over all jobs and across restarts.

    Types: `job.queued`, `job.started`, `job.step`, `job.preview`, `job.completed`, `job.failed`, `job.cancelled`.
    """

    id: int
    job_id: str
    project: str
    type: str
    data: dict[str, Any]
    created_at: float
