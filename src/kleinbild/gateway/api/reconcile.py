"""`/v1/admin/reconcile`: a provider's own statement beside the ledger. For admins."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from kleinbild.core.money import written
from kleinbild.gateway.administer import acting
from kleinbild.gateway.bodies import read_json
from kleinbild.gateway.described import documented
from kleinbild.gateway.flow.authenticate import Asking, require_admin
from kleinbild.gateway.services import services_of
from kleinbild.gateway.tracing import request_id_of
from kleinbild.gateway.wanted import read
from kleinbild.storage.statements import Difference, Reconciliation

router = APIRouter(prefix="/v1/admin", tags=["admin"])
MAX_LINES = 30_000


class Line(BaseModel):
    """`id` is an attempt's, or the one that the provider gave its request; `cost` in US dollars, less than 0 for a credit."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=256)
    cost: Annotated[str, Field(pattern=r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$")]


class Statement(BaseModel):
    """All that is known of an attempt must be in one statement: its lines are added up."""

    model_config = ConfigDict(extra="forbid")

    provider: str = Field(min_length=1, max_length=128)
    lines: list[Line] = Field(min_length=1, max_length=MAX_LINES)


class DifferenceObject(BaseModel):
    attempt: str
    booked: str
    stated: str
    difference: str


class ReconciliationObject(BaseModel):
    """Ids of attempts. `settled`: nobody knew of them, and they have ended now. `corrected`: they had ended at another cost.
    `under_way`: they have yet to end. `unmatched` are ids of the statement that lead to no attempt, or to more than one."""

    object: Literal["reconciliation"]
    provider: str
    currency: Literal["USD"]
    settled: list[str]
    corrected: list[DifferenceObject]
    under_way: list[str]
    unmatched: list[str]


@router.post("/reconcile", **documented(Statement, ReconciliationObject, form=False, stream=False))
async def reconcile(request: Request, caller: Asking) -> Response:
    """Compares what was booked with a provider's statement. What nobody knew of ends as it says, and what had ended at
    another cost is corrected. For admins."""
    require_admin(caller, "reconcile the ledger")
    services = services_of(request)
    statement = read(Statement, await read_json(request))
    lines = [(line.id, Decimal(line.cost)) for line in statement.lines]
    # The ledger has transactions of its own, so that is written down first: nothing is done that the log does not tell.
    async with acting(services.database, caller.id, "ledger.reconcile", request_id_of(request)) as action:
        total = written(sum((cost for _, cost in lines), Decimal(0)))
        action.tell(statement.provider, {"lines": len(lines), "total": total})
    found = await services.ledger.reconcile(statement.provider, lines)
    return JSONResponse(reconciliation_object(statement.provider, found))


def reconciliation_object(provider: str, found: Reconciliation) -> dict[str, Any]:
    return {
        "object": "reconciliation",
        "provider": provider,
        "currency": "USD",
        "settled": list(found.settled),
        "corrected": [_difference_object(each) for each in found.corrected],
        "under_way": list(found.under_way),
        "unmatched": list(found.unmatched),
    }


def _difference_object(difference: Difference) -> dict[str, str]:
    return {
        "attempt": difference.attempt_id,
        "booked": written(difference.booked),
        "stated": written(difference.stated),
        "difference": written(difference.stated - difference.booked),
    }
