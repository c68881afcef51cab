"""`/v1/providers`: the places that make pictures, and how they do. For admins."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from kleinbild.core.deployments import Deployment, ProviderKind
from kleinbild.core.prices import Measure
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.authenticate import Asking
from kleinbild.gateway.flow.circuits import CircuitState
from kleinbild.gateway.services import services_of
from kleinbild.providers.hosted import Cause

if TYPE_CHECKING:
    from kleinbild.gateway.fleet import Fleet
    from kleinbild.gateway.health import Probe

router = APIRouter(prefix="/v1/providers", tags=["providers"])
USUAL = Measure(images=1)
"""What p50 and p95 are told of: one picture of a megapixel."""


class ProbeObject(BaseModel):
    """A check that bought no picture."""

    at: int
    seconds: float
    cause: Cause | None
    message: str | None


class ProviderLimitObject(BaseModel):
    max_active: int | None
    requests_per_minute: int | None
    images_per_minute: int | None


class DeploymentObject(BaseModel):
    """`success_share` is of the last minute. `p50_seconds` and `p95_seconds` are of one picture of a megapixel."""

    name: str
    model: str
    provider_model: str
    circuit: CircuitState
    retry_seconds: float | None
    success_share: float | None
    cause: Cause | None
    message: str | None
    p50_seconds: float | None
    p95_seconds: float | None


class ProviderObject(BaseModel):
    id: str
    object: Literal["provider"]
    kind: ProviderKind
    active: int
    waiting: int
    limits: ProviderLimitObject
    last_probe: ProbeObject | None
    deployments: list[DeploymentObject]


class ProviderList(BaseModel):
    object: Literal["list"]
    data: list[ProviderObject]


@router.get("", responses={200: {"model": ProviderList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The places that make pictures, and how they do. For admins."""
    if not caller.may("admin"):
        raise ApiError(403, "Only an admin may see the providers.", type="permission_error", code="role_not_allowed")
    services = services_of(request)
    fleet, checks = services.fleet, services.checks
    data = [provider_object(fleet, name, checks.last(name)) for name in fleet.places]
    return JSONResponse({"object": "list", "data": data})


def provider_object(fleet: Fleet, name: str, probe: Probe | None) -> dict[str, Any]:
    own = [each for each in fleet.listed if each.provider == name]
    return {
        "id": name,
        "object": "provider",
        "kind": own[0].kind,
        "active": fleet.limits.active(name),
        "waiting": fleet.limits.waiting(name),
        "limits": asdict(fleet.limits.limit(name)),
        "last_probe": None if probe is None else _probe_object(probe),
        "deployments": [deployment_object(fleet, each) for each in own],
    }


def deployment_object(fleet: Fleet, deployment: Deployment) -> dict[str, Any]:
    standing = fleet.circuits.standing(deployment.name)
    prediction = fleet.predictor.predict(deployment, USUAL, time.time())
    seen = prediction.samples > 0
    return {
        "name": deployment.name,
        "model": deployment.model,
        "provider_model": deployment.provider_model,
        "circuit": standing.state,
        "retry_seconds": round(standing.retry_seconds, 1) if standing.state == "open" else None,
        "success_share": standing.success_share,
        "cause": standing.cause,
        "message": standing.message or None,
        "p50_seconds": round(prediction.p50, 2) if seen else None,
        "p95_seconds": round(prediction.high, 2) if seen else None,
    }


def _probe_object(probe: Probe) -> dict[str, Any]:
    return {
        "at": int(probe.at),
        "seconds": round(probe.seconds, 3),
        "cause": probe.error and probe.error.cause,
        "message": probe.error and probe.error.message,
    }
