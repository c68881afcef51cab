"""`/v1/quote`, `/v1/decisions` and `/v1/jobs/{id}/attempts`: where a request would go and what it would cost, where it went
and why, and what each attempt came to."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from kleinbild.core.ids import new_id
from kleinbild.core.money import written
from kleinbild.gateway.api.openai_images import order_for, read_edit_json
from kleinbild.gateway.described import ERRORS, documented
from kleinbild.gateway.errors import not_found
from kleinbild.gateway.flow.authenticate import Asking, Making
from kleinbild.gateway.flow.make import load_inputs
from kleinbild.gateway.flow.route import route
from kleinbild.gateway.routing.candidates import Candidate
from kleinbild.gateway.routing.decision import Decision
from kleinbild.gateway.services import services_of
from kleinbild.gateway.wanted import WantedEdit
from kleinbild.storage import decisions, jobs
from kleinbild.storage.attempts import Entry

router = APIRouter(prefix="/v1", tags=["routing"])


class CandidateObject(BaseModel):
    deployment: str
    provider: str
    provider_model: str
    price: str | None
    seconds: dict[str, float]
    quality: float | None
    losses: list[str]
    score: float
    reason: str


class ExclusionObject(BaseModel):
    deployment: str
    rule: str
    reason: str


class DecisionObject(BaseModel):
    """`candidates` in the order in which they are asked; `price` is of the whole request, in US dollars."""

    id: str
    object: str
    created_at: int
    model: str | None
    adapters: str
    policy: str
    policy_source: str
    candidates: list[CandidateObject]
    excluded: list[ExclusionObject]
    notes: list[str]


class QuoteObject(DecisionObject):
    """What the first candidate would cost and take. Nothing is kept, and nothing begun."""

    price: str | None
    currency: str
    seconds: dict[str, float]
    deployment: str
    warnings: list[str]


class AttemptObject(BaseModel):
    id: str
    deployment: str
    provider: str
    provider_model: str
    adapters: str
    state: str
    images: int
    reserved: str
    quoted: str | None
    cost: str | None
    reported: str | None
    price_version: str
    hedged: bool
    request_id: str | None
    seconds: float | None
    detail: str
    created_at: float
    ended_at: float | None


class AttemptList(BaseModel):
    object: str
    data: list[AttemptObject]


@router.post("/quote", **documented(WantedEdit, QuoteObject, form=False, stream=False))
async def quote(request: Request, caller: Making) -> Response:
    """Where a request would go just now, what it would cost and how long it would take, without making anything."""
    services = services_of(request)
    order = await order_for(request, services, caller, *await read_edit_json(request, caller))
    inputs = await load_inputs(services, order.work)
    routed = await route(services, caller, order.wish, order.work, inputs, new_id("job"))
    first = routed.decision.candidates[0]
    told = {
        **decision_object(routed.decision),
        "object": "quote",
        "price": _price(first),
        "currency": "USD",
        "seconds": _seconds(first),
        "deployment": first.deployment.name,
        "warnings": [*order.warnings, *routed.warnings],
    }
    return JSONResponse(told)


@router.get("/decisions/{decision}", responses={200: {"model": DecisionObject}, **ERRORS})
async def one(request: Request, decision: str, caller: Asking) -> Response:
    """Why a request went where it went: the candidates with what was expected of them, and what excluded the others."""
    services = services_of(request)
    async with services.database.read() as connection:
        kept = await decisions.find(connection, decision, caller.project)
    if kept is None:
        raise not_found("decision", decision)
    return JSONResponse(decision_object(Decision.from_json(kept.body)))


@router.get("/jobs/{job}/attempts", responses={200: {"model": AttemptList}, **ERRORS})
async def attempts(request: Request, job: str, caller: Asking) -> Response:
    """Every call that was made for a job, and what became of its money."""
    services = services_of(request)
    async with services.database.read() as connection:
        known = await jobs.find(connection, job, caller.project)
    if known is None:
        raise not_found("job", job)
    entries = await services.ledger.of_job(job)
    return JSONResponse({"object": "list", "data": [attempt_object(each) for each in entries]})


def decision_object(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id,
        "object": "decision",
        "created_at": int(decision.at),
        "model": decision.asked.model,
        "adapters": str(decision.asked.parameters.get("adapters", "")),
        "policy": decision.policy.name,
        "policy_source": decision.policy_source,
        "candidates": [_candidate(each) for each in decision.candidates],
        "excluded": [
            {"deployment": each.deployment, "rule": each.rule, "reason": each.reason} for each in decision.excluded
        ],
        "notes": list(decision.notes),
    }


def attempt_object(entry: Entry) -> dict[str, Any]:
    attempt = entry.attempt
    return {
        "id": attempt.id,
        "deployment": attempt.deployment,
        "provider": attempt.provider,
        "provider_model": attempt.provider_model,
        "adapters": attempt.adapters,
        "state": entry.state,
        "images": attempt.count,
        "reserved": written(attempt.reserved),
        "quoted": None if attempt.quoted is None else written(attempt.quoted),
        "cost": None if entry.cost is None else written(entry.cost),
        "reported": None if entry.reported is None else written(entry.reported),
        "price_version": attempt.price_version,
        "hedged": attempt.hedged,
        "request_id": entry.request_id,
        "seconds": entry.seconds,
        "detail": entry.detail,
        "created_at": attempt.created_at,
        "ended_at": entry.ended_at,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    deployment = candidate.deployment
    return {
        "deployment": deployment.name,
        "provider": deployment.provider,
        "provider_model": deployment.provider_model,
        "price": _price(candidate),
        "seconds": _seconds(candidate),
        "quality": candidate.quality,
        "losses": [str(each) for each in candidate.losses],
        "score": round(candidate.score, 4),
        "reason": candidate.reason,
    }


def _price(candidate: Candidate) -> str | None:
    return None if candidate.price is None else written(candidate.price)


def _seconds(candidate: Candidate) -> dict[str, float]:
    expected = candidate.seconds
    return {"p50": round(expected.p50, 3), "low": round(expected.low, 3), "high": round(expected.high, 3)}
