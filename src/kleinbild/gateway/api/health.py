"""`/healthz`: the process is alive. `/readyz`: it can make pictures."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import text

from kleinbild.gateway.services import services_of

router = APIRouter(tags=["health"])
DATABASE_SECONDS = 2.0


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """The process lives. `worst_stall_ms`: the longest that the event loop was held up within the last minute or two."""
    return JSONResponse({"status": "ok", "worst_stall_ms": round(services_of(request).pulse.worst_seconds * 1000, 1)})


@router.get("/readyz", responses={503: {"description": "not yet, or not any more; the answer says what is missing"}})
async def readyz(request: Request) -> Response:
    """Pictures can be made. `catalog` says which one is in force, and why a newer one is not."""
    services = services_of(request)
    found = {
        "engine": services.provider.ready,
        "database": await _reachable(request),
        "accepting": not services.draining,
    }
    ready, known = all(found.values()), services.known
    catalog = {"version": known.version, "error": known.last and known.last.error}
    return JSONResponse(
        {"status": "ready" if ready else "not ready", "checks": found, "catalog": catalog}, 200 if ready else 503
    )


async def _reachable(request: Request) -> bool:
    """The database answers; its migrations were done before the server took its first request."""
    try:
        async with asyncio.timeout(DATABASE_SECONDS), services_of(request).database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except Exception:  # noqa: BLE001 - whatever it is, requests would fail by it, too
        return False
    return True
