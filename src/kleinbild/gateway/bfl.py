"""A job as Black Forest Labs' API tells of it: the answer to a poll, and the body that a webhook gets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from kleinbild.core.jobs import FINAL, Job, JobError
from kleinbild.gateway import answers

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services

Status = Literal["Task not found", "Pending", "Request Moderated", "Content Moderated", "Ready", "Error"]
MODERATED = "moderation_blocked"
CANCELLED = JobError("the task was cancelled", code="cancelled")


def status_of(job: Job) -> Status:
    if job.status not in FINAL:
        return "Pending"
    if job.status == "completed":
        return "Ready"
    return "Request Moderated" if _error(job).code == MODERATED else "Error"


def task_object(services: Services, job: Job, base_url: str) -> dict[str, Any]:
    """What a poll is answered."""
    status = status_of(job)
    return {
        "id": job.id,
        "status": status,
        "result": result_object(services, job, base_url) if status == "Ready" else None,
        "progress": _progress(services, job) if status == "Pending" else None,
        "details": _details(job, status),
        "preview": None,
    }


def not_found(task_id: str) -> dict[str, Any]:
    """What a poll for a task that there is not, or not for this caller, is answered."""
    status: Status = "Task not found"
    return {"id": task_id, "status": status, "result": None, "progress": None, "details": None, "preview": None}


def result_object(services: Services, job: Job, base_url: str | None) -> dict[str, Any]:
    """Of a job that has a picture. `sample` is its URL, if it is known how clients reach this server."""
    first = answers.picture_objects(services, job, base_url)[0]
    begun, ended = job.started_at or job.created_at, job.completed_at or job.created_at
    return {
        **({"sample": first["url"]} if base_url else {}),
        "prompt": job.work.prompt,
        "seed": first["seed"],
        "start_time": begun,
        "end_time": ended,
        "duration": ended - begun,
    }


def webhook_object(services: Services, job: Job, base_url: str | None) -> dict[str, Any]:
    """What a webhook is told of a job that has ended."""
    assert job.completed_at is not None
    status = status_of(job)
    at = datetime.fromtimestamp(job.completed_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"id": job.id, "status": status}
    if status == "Ready":
        result = result_object(services, job, base_url)
        shown = {name: result[name] for name in ("sample", "prompt", "seed") if name in result}
        return {**told, "result": shown, "timestamp": at}
    error = _error(job)
    return {**told, "error": error.code or error.type, "message": error.message, "timestamp": at}


def _progress(services: Services, job: Job) -> float:
    """From 0 to 1, by the steps that are done."""
    known = services.hub.progress(job.id)
    return known["step"] / known["num_steps"] if known["num_steps"] else 0.0


def _details(job: Job, status: Status) -> dict[str, Any] | None:
    """Why there is no picture, or what of the request was not honoured."""
    if status == "Request Moderated":
        return {"Moderation Reasons": [_error(job).message]}
    if status == "Error":
        error = _error(job)
        return {"error": error.message, "code": error.code}
    warnings = answers.warnings(job)
    return {"warnings": warnings} if warnings else None


def _error(job: Job) -> JobError:
    assert job.outcome is not None
    return job.outcome.error or CANCELLED
