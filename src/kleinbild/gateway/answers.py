"""Jobs as answers: our job object, OpenAI's answer with pictures, and the events of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pybase64

from kleinbild.core.jobs import ImageWork, Job, JobEvent, MadePicture, Outcome, PictureRef
from kleinbild.core.money import written
from kleinbild.core.sizes import Size
from kleinbild.core.tokens import Tokens
from kleinbild.gateway.errors import as_object
from kleinbild.gateway.flow.route import decision_id
from kleinbild.gateway.spliced import InBase64, in_base64, spliced

if TYPE_CHECKING:
    from kleinbild.gateway.services import Services


def job_object(services: Services, job: Job, base_url: str) -> dict[str, Any]:
    outcome = job.outcome
    return {
        "id": job.id,
        "object": "job",
        "task": job.work.task,
        "status": job.status,
        "model": job.work.model,
        "created_at": int(job.created_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "input": work_object(job.work),
        "progress": services.hub.progress(job.id),
        "expected_seconds": None if outcome else round(services.admission.expected_seconds(), 2),
        "result": result_object(services, job, base_url),
        "error": as_object(outcome.error) if outcome and outcome.error else None,
        "warnings": warnings(job),
        "metadata": job.metadata or {},
        "webhook": job.webhook,
    }


def work_object(work: ImageWork) -> dict[str, Any]:
    return {
        "prompt": work.prompt,
        "model": work.model,
        "n": work.n,
        "size": str(work.size or "auto"),
        "seed": work.seed,
        "steps": work.steps,
        "guidance": work.guidance,
        "references": [_given(each) for each in work.references],
        "mask": _given(work.mask) if work.mask else None,
        "output_format": work.output_format,
        "output_compression": work.compression,
        "quality": work.quality,
        "background": work.background,
        "moderation": work.moderation,
        "input_fidelity": work.input_fidelity,
        "strength": work.strength,
        "adapters": [{"name": each.label, "scale": each.scale} for each in work.adapters],
    }


def result_object(services: Services, job: Job, base_url: str) -> dict[str, Any] | None:
    """With URLs of the pictures; None unless there are any."""
    outcome = job.outcome
    if outcome is None or not outcome.pictures:
        return None
    return {
        "created": int(job.completed_at or job.created_at),
        "data": picture_objects(services, job, base_url),
        **_about(job, outcome),
    }


def picture_objects(services: Services, job: Job, base_url: str | None) -> list[dict[str, Any]]:
    """Seeds, sizes and, if it is known how clients reach this server, URLs of a job's pictures, if it has any."""
    pictures = job.outcome.pictures if job.outcome else ()
    return [_with_url(services, job.work, each, base_url) if base_url else _beside(each) for each in pictures]


async def images_object(services: Services, job: Job, base_url: str, *, urls: bool) -> dict[str, Any]:
    """OpenAI's `ImagesResponse`, and our fields beside its own, for `spliced`. The job must have pictures."""
    outcome = job.outcome
    assert outcome is not None
    if urls:
        data = picture_objects(services, job, base_url)
    else:
        files = [await services.blobs.get(picture.sha256) for picture in outcome.pictures]
        data = [
            {"b64_json": await in_base64(file), **_beside(picture)}
            for file, picture in zip(files, outcome.pictures, strict=True)
        ]
    return {
        "created": int(job.completed_at or job.created_at),
        "data": data,
        **_about(job, outcome),
        "id": job.id,
        "model": job.work.model,
        "warnings": warnings(job),
    }


def place_headers(job: Job) -> dict[str, str]:
    """Where the pictures were made, and what they cost, once that is known."""
    found = {"x-kleinbild-decision": decision_id(job.id)}
    if (outcome := job.outcome) is not None and outcome.attempts:
        found["x-kleinbild-attempts"] = str(outcome.attempts)
        found["x-kleinbild-cost"] = written(outcome.cost)
        if outcome.deployments:
            found["x-kleinbild-deployment"] = ", ".join(outcome.deployments)
    return found


def warnings(job: Job) -> list[str]:
    return [*job.warnings, *(job.outcome.notes if job.outcome else ())]


def usage_object(tokens: Tokens) -> dict[str, Any]:
    """OpenAI's usage, in tokens that the transformer saw."""
    return {
        "input_tokens": tokens.text + tokens.references,
        "output_tokens": tokens.picture,
        "total_tokens": tokens.text + tokens.references + tokens.picture,
        "input_tokens_details": {"text_tokens": tokens.text, "image_tokens": tokens.references},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": tokens.picture},
    }


def quality_of(work: ImageWork) -> str:
    """As asked, in the words of OpenAI's answers; a model here has one quality, which is its best."""
    return "high" if work.quality in ("auto", "standard", "hd") else work.quality


def size_of(job: Job) -> Size:
    """The pictures'; all of a job have the same."""
    assert job.outcome is not None
    return job.outcome.pictures[0].size


def event_data(event: JobEvent, job: dict[str, Any] | None) -> dict[str, Any]:
    """`job`: the object that goes with a last event."""
    data = {"type": event.type, "job_id": event.job_id, "created_at": int(event.created_at), **event.data}
    if png := data.pop("png", None):
        data["b64_json"] = InBase64(pybase64.b64encode(png))
    return data if job is None else {**data, "job": job}


def server_sent(kind: str, data: dict[str, Any], event_id: int | None = None) -> bytes:
    head = "" if event_id is None else f"id: {event_id}\n"
    return b"".join((f"{head}event: {kind}\ndata: ".encode(), *spliced(data), b"\n\n"))


def _given(picture: PictureRef) -> dict[str, str]:
    return {"sha256": picture.original or picture.sha256, "name": picture.name}


def _with_url(services: Services, work: ImageWork, picture: MadePicture, base_url: str) -> dict[str, Any]:
    return {"url": services.media.url(picture.sha256, work.output_format, base_url), **_beside(picture)}


def _beside(picture: MadePicture) -> dict[str, Any]:
    revised = {"revised_prompt": picture.revised_prompt} if picture.revised_prompt else {}
    return {"seed": picture.seed, "size": str(picture.size), **revised}


def _about(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "background": job.work.background,
        "output_format": job.work.output_format,
        "size": str(size_of(job)),
        "quality": quality_of(job.work),
        "usage": usage_object(outcome.tokens),
        "timings": outcome.timings,
        "fingerprint": outcome.fingerprint,
        "cost": written(outcome.cost),
        "currency": "USD",
        "attempts": outcome.attempts,
        "deployments": list(outcome.deployments),
    }
