"""From the server's JSON to values and errors. What is absent is tolerated where nothing depends on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import Any, cast, get_args

from kleinbild.client.calls import Reply
from kleinbild.client.errors import AnswerError, Reason, ServerError, answer_error, job_error
from kleinbild.client.picture import RemotePicture
from kleinbild.core.errors import CancelledError, SizeError
from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import FINAL, JobStatus, Task
from kleinbild.core.sizes import Size, parse_size

_STATUSES: dict[str, JobStatus] = {status: status for status in get_args(JobStatus)}


@dataclass(frozen=True, slots=True)
class Progress:
    """`position` in the queue, 0 is next; `step` of `num_steps` of picture `image_index`."""

    position: int | None = None
    image_index: int = 0
    step: int = 0
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as the server tells it, at one moment. Times are seconds since 1970; `raw` is all that it said."""

    id: str
    status: JobStatus
    task: Task
    model: str
    created_at: float
    started_at: float | None
    completed_at: float | None
    progress: Progress
    expected_seconds: float | None
    error: Reason | None
    warnings: tuple[str, ...]
    metadata: dict[str, str]
    raw: dict[str, Any] = field(repr=False)

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def require_completed(self) -> None:
        """Raises what the job ended with, if that is not pictures."""
        if self.status == "cancelled":
            raise CancelledError(f"{self.id} was cancelled", "submit it again")
        if self.status == "failed":
            raise job_error(self.error or Reason("the job failed and does not say why"))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the server has; `raw` is all that it says."""

    id: str
    raw: dict[str, Any] = field(repr=False)


def read_job(value: Any) -> JobState:
    """A job object. Raises ServerError if it is none."""
    try:
        return JobState(
            id=str(value["id"]),
            status=_STATUSES[value["status"]],
            task=value["task"],
            model=value.get("model") or "",
            created_at=value.get("created_at") or 0,
            started_at=value.get("started_at"),
            completed_at=value.get("completed_at"),
            progress=_progress(value.get("progress")),
            expected_seconds=value.get("expected_seconds"),
            error=None if value.get("error") is None else read_reason(value),
            warnings=tuple(map(str, value.get("warnings") or ())),
            metadata=value.get("metadata") or {},
            raw=value,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _unexpected("a job", error) from error


def read_jobs(value: Any) -> tuple[list[JobState], str | None]:
    """A page of jobs, and the id after which the next begins, if there is one."""
    try:
        jobs = [read_job(one) for one in value["data"]]
        return jobs, (value.get("last_id") or jobs[-1].id) if value.get("has_more") and jobs else None
    except (KeyError, TypeError, AttributeError) as error:
        raise _unexpected("a list of jobs", error) from error


def read_models(value: Any) -> list[ModelInfo]:
    try:
        return [ModelInfo(str(one["id"]), dict(one)) for one in value["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected("a list of models", error) from error


def read_file_id(value: Any) -> str:
    try:
        return str(value["id"])
    except (KeyError, TypeError) as error:
        raise _unexpected("a file", error) from error


def picture_urls(job: JobState) -> list[str]:
    """Where a completed job's pictures are, in order."""
    try:
        return [str(one["url"]) for one in job.raw["result"]["data"]]
    except (KeyError, TypeError) as error:
        raise _unexpected("a job's result", error) from error


def read_picture(job: JobState, index: int, url: str, file: bytes) -> RemotePicture:
    """Picture `index` of a completed job, whose file has come."""
    result: dict[str, Any] = job.raw["result"]
    about: dict[str, Any] = result["data"][index]
    return RemotePicture(
        bytes=file,
        format=_format(file, result),
        seed=about.get("seed"),
        size=_size(about.get("size") or result.get("size")),
        url=url,
        job_id=job.id,
        usage=result.get("usage"),
        timings=result.get("timings") or {},
        warnings=job.warnings,
        cost=_cost(result.get("cost")),
        deployments=tuple(result.get("deployments") or ()),
    )


def _cost(told: object) -> Decimal | None:
    try:
        return Decimal(told) if isinstance(told, str) else None
    except InvalidOperation:
        return None


def read_json(reply: Reply) -> Any:
    """The value of an answer without error. Raises ServerError for what is no JSON: it is no Kleinbild server."""
    try:
        return reply.json()
    except ValueError as error:
        raise _unexpected("JSON", error) from error


def read_error(reply: Reply) -> AnswerError:
    """The error that an answer with a status from 400 on stands for."""
    try:
        value = reply.json()
    except ValueError:
        value = None
    return answer_error(
        reply.status, read_reason(value, reply.status), reply.headers.get("x-request-id"), retry_after(reply)
    )


def read_reason(value: Any, status: int = 0) -> Reason:
    """OpenAI's error object, a problem of RFC 9457, or, where neither came, at least the status."""
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        return Reason(
            str(error.get("message") or "no reason given"),
            error.get("type") or "",
            error.get("code"),
            error.get("param"),
        )
    detail = (value.get("detail") or value.get("title")) if isinstance(value, dict) else None
    return Reason(str(detail or f"the server answered {status}, and nothing that says why"))


def retry_after(reply: Reply, now: datetime | None = None) -> float | None:
    """Seconds to wait, as the header says it: in seconds or as a date."""
    said = reply.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None


def _progress(value: Any) -> Progress:
    said = value if isinstance(value, Mapping) else {}
    return Progress(
        said.get("position"), said.get("image_index") or 0, said.get("step") or 0, said.get("num_steps") or 0
    )


def _format(file: bytes, result: Mapping[str, Any]) -> PictureFormat:
    """What the file is; what it shall be does not count."""
    if file.startswith(b"\x89PNG"):
        return "png"
    if file.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return "webp"
    raise _unexpected(f"a picture ({result.get('output_format')})", ValueError(f"{len(file)} other bytes"))


def _size(text: Any) -> Size | None:
    try:
        return parse_size(cast("str", text))
    except (SizeError, TypeError):
        return None


def _unexpected(wanted: str, error: Exception) -> ServerError:
    what = f"{type(error).__name__} {error}" if not isinstance(error, json.JSONDecodeError) else str(error)
    return ServerError(Reason(f"the answer is not {wanted}: {what}; is it a Kleinbild server?"))
