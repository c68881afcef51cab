"""Endpoints that callers registered, and what became of each event that was to be delivered to them.

Secrets come and go sealed (`kleinbild.gateway.webhooks`). Every function works within the caller's transaction.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from sqlalchemy import ColumnElement, RowMapping, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kleinbild.storage.dialects import insert_into
from kleinbild.storage.schema import bfl_webhooks, deliveries, webhooks


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`events` are the types that it wants; None is all. Until `previous_until` the previous secret signs, too."""

    id: str
    project: str
    url: str
    secret: str = field(repr=False)  # sealed
    created_at: float
    events: tuple[str, ...] | None = None
    previous_secret: str | None = field(default=None, repr=False)  # sealed
    previous_until: float | None = None
    disabled_at: float | None = None

    def wants(self, type_: str) -> bool:
        return self.disabled_at is None and (self.events is None or type_ in self.events)


@dataclass(frozen=True, slots=True)
class Delivery:
    """`id` is the `webhook-id` of every attempt, by which a receiver knows an event that comes twice. `server` is the number
    of the one that sends it."""

    id: str
    webhook_id: str
    job_id: str
    type: str
    created_at: float
    attempts: int = 0
    last_status: int | None = None
    delivered_at: float | None = None
    given_up_at: float | None = None
    server: int = 0
    attempted_at: float | None = None


@dataclass(frozen=True, slots=True)
class BflWebhook:
    """A job whose end is told as BFL tells it, signed with the client's own `secret` beside the endpoint's."""

    job_id: str
    secret: str | None = field(default=None, repr=False)  # sealed


async def add(connection: AsyncConnection, endpoint: Endpoint) -> None:
    await connection.execute(insert(webhooks).values(asdict(endpoint)))


async def find(connection: AsyncConnection, webhook_id: str, project: str | None = None) -> Endpoint | None:
    """The endpoint, if it is there and belongs to `project` (None: to whomever)."""
    row = (await connection.execute(select(webhooks).where(_is(webhook_id, project)))).mappings().first()
    return None if row is None else _endpoint(row)


async def of_project(connection: AsyncConnection, project: str) -> list[Endpoint]:
    """Newest first."""
    query = select(webhooks).where(webhooks.c.project == project).order_by(webhooks.c.id.desc())
    return [_endpoint(row) for row in (await connection.execute(query)).mappings()]


async def count(connection: AsyncConnection, project: str) -> int:
    query = select(func.count()).select_from(webhooks).where(webhooks.c.project == project)
    return int((await connection.execute(query)).scalar_one())


async def any_exist(connection: AsyncConnection) -> bool:
    return bool((await connection.execute(select(exists().select_from(webhooks)))).scalar())


async def remove(connection: AsyncConnection, webhook_id: str, project: str) -> bool:
    """With its deliveries. False if there is none."""
    return (await connection.execute(delete(webhooks).where(_is(webhook_id, project)))).rowcount > 0


async def rotate(connection: AsyncConnection, webhook_id: str, project: str, secret: str, until: float) -> bool:
    """Makes `secret` the endpoint's; the one before it signs beside it `until` then. False if there is none."""
    change = update(webhooks).where(_is(webhook_id, project))
    values = {"previous_secret": webhooks.c.secret, "previous_until": until, "secret": secret}
    return (await connection.execute(change.values(values))).rowcount > 0


async def disable(connection: AsyncConnection, webhook_id: str, now: float) -> None:
    """Nothing more is delivered to it."""
    enabled = (webhooks.c.id == webhook_id) & webhooks.c.disabled_at.is_(None)
    await connection.execute(update(webhooks).where(enabled).values(disabled_at=now))


async def enable(connection: AsyncConnection, webhook_id: str) -> None:
    await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(disabled_at=None))


async def add_delivery(connection: AsyncConnection, delivery: Delivery) -> None:
    """Once: a delivery that is there already stays as it is."""
    await connection.execute(insert_into(connection, deliveries).values(asdict(delivery)).on_conflict_do_nothing())


async def find_delivery(connection: AsyncConnection, delivery_id: str) -> Delivery | None:
    query = select(deliveries).where(deliveries.c.id == delivery_id)
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else Delivery(**row)


async def add_bfl(connection: AsyncConnection, webhook: BflWebhook) -> None:
    """In the transaction that adds its job, after it."""
    await connection.execute(insert(bfl_webhooks).values(asdict(webhook)))


async def find_bfl(connection: AsyncConnection, job_id: str) -> BflWebhook | None:
    row = (await connection.execute(select(bfl_webhooks).where(bfl_webhooks.c.job_id == job_id))).mappings().first()
    return None if row is None else BflWebhook(**row)


async def undelivered(connection: AsyncConnection) -> list[str]:
    """The ids of those that are neither delivered nor given up, oldest first."""
    waiting = deliveries.c.delivered_at.is_(None) & deliveries.c.given_up_at.is_(None)
    return list((await connection.execute(select(deliveries.c.id).where(waiting).order_by(deliveries.c.id))).scalars())


async def deliveries_to(
    connection: AsyncConnection, webhook_id: str, *, limit: int, after: str | None = None
) -> list[Delivery]:
    """Newest first, from the one that follows `after`."""
    query = select(deliveries).where(deliveries.c.webhook_id == webhook_id).order_by(deliveries.c.id.desc())
    if after is not None:
        query = query.where(deliveries.c.id < after)
    return [Delivery(**row) for row in (await connection.execute(query.limit(limit))).mappings()]


async def attempted(
    connection: AsyncConnection, delivery_id: str, status: int | None, now: float, *, delivered: bool = False
) -> None:
    """Counts an attempt: `status` is the receiver's answer, None if there was none."""
    values = {
        "attempts": deliveries.c.attempts + 1,
        "attempted_at": now,
        "last_status": status,
        "delivered_at": now if delivered else None,
    }
    await connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(values))


async def given_up(connection: AsyncConnection, delivery_id: str, now: float) -> None:
    await connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(given_up_at=now))


def _is(webhook_id: str, project: str | None) -> ColumnElement[bool]:
    same = webhooks.c.id == webhook_id
    return same if project is None else same & (webhooks.c.project == project)


def _endpoint(row: RowMapping) -> Endpoint:
    return Endpoint(**{**row, "events": None if row["events"] is None else tuple(row["events"])})
