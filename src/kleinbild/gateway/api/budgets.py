"""`/v1/budgets`: what may be spent, and what is left of it."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from kleinbild.core.callers import Caller
from kleinbild.gateway.allowances import BudgetObject, budget_object
from kleinbild.gateway.described import ERRORS
from kleinbild.gateway.flow.authenticate import Asking
from kleinbild.gateway.flow.make import payers_of
from kleinbild.gateway.services import services_of
from kleinbild.storage import budgets, keys
from kleinbild.storage.budgets import Budget

router = APIRouter(prefix="/v1", tags=["usage"])


class BudgetList(BaseModel):
    object: Literal["list"]
    currency: Literal["USD"]
    data: list[BudgetObject]


@router.get("/budgets", responses={200: {"model": BudgetList}, **ERRORS})
async def listing(request: Request, caller: Asking) -> Response:
    """The budgets that count what the caller asks for, and those of keys below his, as they stand now. An admin sees all."""
    async with services_of(request).database.read() as connection:
        found = await budgets.listed(connection)
        if not caller.may("admin"):
            below = (
                {key.id for key in await keys.listed(connection, below=caller.id)} if caller.may("member") else set()
            )
            found = [each for each in found if concerns(each, caller, below)]
        standings = await budgets.standing(connection, found, time.time())
    data = [budget_object(each) for each in standings]
    return JSONResponse({"object": "list", "currency": "USD", "data": data})


def concerns(budget: Budget, caller: Caller, below: set[str]) -> bool:
    """Whether it counts what he asks for, with one model or another, or what keys `below` his do."""
    is_his = budget.project in (None, caller.project) and (
        caller.models is None or budget.model is None or budget.model in caller.models
    )
    return is_his and (budget.key is None or budget.key in payers_of(caller) or budget.key in below)
