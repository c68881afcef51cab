"""The ledger: every attempt to have a picture made for money, from before its first byte leaves until its end.

1. `reserve` sets the most that an attempt may cost aside, in every budget that it counts against, or refuses it.
2. `accepted` and `unknown` keep what became of it, so that another process can go on where this one was killed.
3. `settle` ends it, once: what was set aside is free, and what it cost is spent, in the windows it was set aside in.

Each is one transaction: it is all there, or nothing of it. Rows are added and never changed, but for the sums of budgets'
windows and `open_attempts`, whose rows are the locks: of many processes that end an attempt, one does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import Select, Table, exists

from kleinbild.core.errors import KleinbildError
from kleinbild.core.money import nanos, of_nanos, written
from kleinbild.storage.attempts import QUERY, TERMINAL, Attempt, Ended, Entry, State, columns, entries
from kleinbild.storage.budgets import Budget, alerts_of, window_end, window_start
from kleinbild.storage.commits import Commits, Run
from kleinbild.storage.database import Database
from kleinbild.storage.schema import attempt_states, attempts, open_attempts
from kleinbild.storage.statements import Difference, Reconciliation, correct, last_state, matched

__all__ = ["TERMINAL", "Alert", "Attempt", "AttemptError", "BudgetError", "Ended", "Entry", "Ledger", "State"]

BY_STATEMENT = "told by the provider's statement"
log = logging.getLogger(__name__)


class BudgetError(KleinbildError):
    """`wanted` is more than `remaining` of `budget`, or, if that is None, of what the request may cost."""

    exit_code = 2

    def __init__(
        self, budget: Budget | None, remaining: Decimal, wanted: Decimal, resets_at: float | None = None
    ) -> None:
        of = "what the request may cost" if budget is None else f"the budget {budget.id} ({budget.scope})"
        hint = "allow it to cost more" if budget is None else "wait for its next window, or raise it"
        super().__init__(f"this costs up to ${written(wanted)}, and of {of} ${written(remaining)} are left", hint)
        self.budget, self.remaining, self.wanted, self.resets_at = budget, remaining, wanted, resets_at


class AttemptError(KleinbildError):
    """There is no such attempt, or there is one already."""


@dataclass(frozen=True, slots=True)
class Alert:
    """For the first time in its window, `fraction` of `amount` is spent."""

    budget_id: str
    fraction: Decimal
    spent: Decimal
    amount: Decimal


def warn(alert: Alert) -> None:
    log.warning(
        "of the budget %s %s%% are spent: $%s of $%s",
        alert.budget_id,
        written(alert.fraction * 100),
        written(alert.spent),
        written(alert.amount),
    )


class Ledger:
    """`on_alert` is told of budgets, after the transaction that spent of them. `server` is the number of the one whose
    attempts these are."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        on_alert: Callable[[Alert], None] = warn,
        commits: Commits | None = None,
        server: int = 0,
    ) -> None:
        self._database, self._clock, self._on_alert, self._server = database, clock, on_alert, server
        self._commits = commits or Commits(database)

    async def reserve(
        self, attempt: Attempt, budgets: Sequence[Budget], *, within: tuple[str, Decimal] | None = None
    ) -> None:
        """Sets aside what `attempt` may cost. `within` is a job and what all of its attempts together may cost.

        Raises BudgetError, and then nothing is kept; AttemptError if there is one of that id. If it is cancelled, so is
        the reservation.
        """
        now, server = self._clock(), self._server
        limits = sorted({budget.id: budget for budget in budgets}.values(), key=lambda budget: budget.id)
        dialect = self._commits.dialect
        costs = attempt.reserved > 0  # what is free need not outlive the machine
        kept = self._commits.begin(
            lambda run: _reserve(run, dialect, attempt, limits, within, now, server), durable=costs
        )
        try:
            await asyncio.shield(kept)
        except KleinbildError:
            raise
        except BaseException:
            self._commits.start(self._take_back(attempt.id, kept))
            raise

    async def accepted(
        self,
        attempt_id: str,
        handle: dict[str, Any],
        *,
        reported: Decimal | None = None,
        request_id: str | None = None,
    ) -> None:
        """The provider has taken it on; `handle` finds it there. One that has ended stays so. Raises AttemptError."""
        state = _State("accepted", self._clock(), handle=handle, reported=reported, request_id=request_id)
        await self._commits.make(lambda run: _go_on(run, attempt_id, state))

    async def unknown(self, attempt_id: str, detail: str) -> None:
        """Nobody knows whether it is made and billed: what it may cost stays set aside. Raises AttemptError."""
        state = _State("unknown", self._clock(), detail=detail)
        await self._commits.make(lambda run: _go_on(run, attempt_id, state))

    async def settle(
        self,
        attempt_id: str,
        state: Ended,
        cost: Decimal,
        *,
        reported: Decimal | None = None,
        request_id: str | None = None,
        seconds: float | None = None,
        detail: str = "",
        result: dict[str, Any] | None = None,
    ) -> bool:
        """Ends it; `cost` is booked even if it is more than was set aside. False: it had ended, and nothing changes.
        `result` tells what came of it, in JSON: it takes the handle's place.

        Runs to its end even if it is cancelled. Raises AttemptError.
        """
        alerts = await asyncio.shield(
            self.settling(
                attempt_id,
                state,
                cost,
                reported=reported,
                request_id=request_id,
                seconds=seconds,
                detail=detail,
                result=result,
            )
        )
        return alerts is not None

    def settling(
        self,
        attempt_id: str,
        state: Ended,
        cost: Decimal,
        *,
        reported: Decimal | None = None,
        request_id: str | None = None,
        seconds: float | None = None,
        detail: str = "",
        result: dict[str, Any] | None = None,
        alone: bool = True,
    ) -> asyncio.Future[list[Alert] | None]:
        """`settle` for whoever has more to be committed with it, if it is not `alone`: `Commits.begin` says when that is.
        None comes of it if it had ended."""
        if cost < 0 or (state == "failed_unbilled" and cost):
            raise ValueError(f"{state} cannot cost {cost}")
        last = _State(
            state,
            self._clock(),
            cost=cost,
            reported=reported,
            request_id=request_id,
            seconds=seconds,
            detail=detail,
            handle=result,
        )
        # If the machine dies right after, it is as if the end had not been heard of: unknown, with its money set aside.
        settling = self._commits.begin(lambda run: _settle(run, attempt_id, last), durable=False, alone=alone)
        settling.add_done_callback(self._tell_alerts)
        return settling

    async def of_job(self, job_id: str) -> list[Entry]:
        """Its attempts, oldest first."""
        return await self._entries(QUERY.where(attempts.c.job_id == job_id))

    async def find(self, attempt_id: str) -> Entry | None:
        return next(iter(await self._entries(QUERY.where(attempts.c.id == attempt_id))), None)

    async def unsettled(self) -> list[Entry]:
        """Those of this server that have yet to end, oldest first: after a restart, what another process has left."""
        ours = (open_attempts.c.attempt_id == attempts.c.id) & (open_attempts.c.server == self._server)
        return await self._entries(QUERY.where(exists().where(ours)))

    async def reconcile(self, provider: str, lines: Iterable[tuple[str, Decimal]]) -> Reconciliation:
        """Compares what was booked with the provider's statement: lines of an id, the attempt's or the one of the
        provider's that was kept with it, and what it cost.

        An attempt of which nobody knew ends as the statement says. One that has ended stays as it is; the difference is
        added to `adjustments`, and not to budgets, whose windows may be long over.
        """
        async with self._database.read() as connection:
            stated, unmatched = await matched(connection, provider, lines)
        settled: list[str] = []
        corrected: list[Difference] = []
        under_way: list[str] = []
        for attempt_id, cost in stated.items():
            match await self._compare(attempt_id, cost):
                case Difference() as difference:
                    corrected.append(difference)
                case "settled":
                    settled.append(attempt_id)
                case "under way":
                    under_way.append(attempt_id)
        return Reconciliation(tuple(settled), tuple(corrected), tuple(under_way), unmatched)

    async def drain(self) -> None:
        """Waits for what is under way, before the database is closed."""
        await self._commits.drain()

    async def _entries(self, query: Select[Any]) -> list[Entry]:
        async with self._database.read() as connection:
            return entries((await connection.execute(query)).mappings())

    def _tell_alerts(self, settling: asyncio.Future[list[Alert] | None]) -> None:
        if settling.cancelled() or settling.exception() is not None:
            return
        for alert in settling.result() or ():
            try:
                self._on_alert(alert)
            except Exception:  # it is settled all the same
                log.exception("an alert could not be told")

    async def _compare(self, attempt_id: str, stated: Decimal) -> Difference | Literal["settled", "under way"] | None:
        """One attempt with the provider's statement; None if they agree."""
        now, dialect = self._clock(), self._commits.dialect

        def compared(run: Run) -> Difference | State | None:
            state, cost = last_state(run, dialect, attempt_id)
            return state if cost is None else correct(run, attempt_id, cost, stated, now)

        found = await self._commits.make(compared)
        if found == "unknown":
            ended: Ended = "failed_billed" if stated > 0 else "failed_unbilled"
            if await self.settle(attempt_id, ended, max(stated, Decimal(0)), reported=stated, detail=BY_STATEMENT):
                return "settled"
            return await self._compare(attempt_id, stated)  # as it has ended meanwhile
        return found if found is None or isinstance(found, Difference) else "under way"

    async def _take_back(self, attempt_id: str, kept: asyncio.Future[None]) -> None:
        """A reservation whose asker does not know of it, as he was cancelled or its commit failed: nothing was sent."""
        await asyncio.wait([kept])
        if isinstance(kept.exception(), KleinbildError):
            return
        try:
            await self.settle(attempt_id, "failed_unbilled", Decimal(0), detail="cancelled before it was sent")
        except AttemptError:
            pass  # it was not kept
        except Exception:
            log.exception("what was set aside for the attempt %s stays so until it is settled", attempt_id)


@dataclass(frozen=True, slots=True)
class _State:
    state: State
    at: float
    handle: dict[str, Any] | None = None
    cost: Decimal | None = None
    reported: Decimal | None = None
    request_id: str | None = None
    seconds: float | None = None
    detail: str = ""


def _insert_into(table: Table) -> str:
    names = [column.name for column in table.c]
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"  # noqa: S608


_ADD_ATTEMPT = f"{_insert_into(attempts)} ON CONFLICT DO NOTHING"
_ADD_STATE = _insert_into(attempt_states)
_OPEN = "INSERT INTO open_attempts (attempt_id, ordinal, server) VALUES (:id, 0, :server)"
_NEXT = "UPDATE open_attempts SET ordinal = ordinal + 1 WHERE attempt_id = :id RETURNING ordinal"
_CLOSE = "DELETE FROM open_attempts WHERE attempt_id = :id RETURNING ordinal + 1"
_IS_THERE = "SELECT 1 FROM attempts WHERE id = :id"
_LOCK_JOB = "SELECT pg_advisory_xact_lock(hashtextextended(:job, 0))"
_OF_JOB = """
SELECT COALESCE(SUM(COALESCE(ended.cost_nanos, attempts.reserved_nanos)), 0) FROM attempts
LEFT JOIN attempt_states AS ended ON ended.attempt_id = attempts.id
AND ended.state IN ('done', 'failed_unbilled', 'failed_billed')
WHERE attempts.job_id = :job
"""
_RESERVE = """
UPDATE budget_windows SET reserved_nanos = reserved_nanos + :nanos
WHERE budget_id = :budget AND window_start = :start
AND spent_nanos + reserved_nanos + :nanos <= (SELECT amount_nanos FROM budgets WHERE id = :budget)
"""
_ADD_WINDOW = """
INSERT INTO budget_windows (budget_id, window_start, spent_nanos, reserved_nanos)
SELECT id, :start, 0, 0 FROM budgets WHERE id = :budget ON CONFLICT DO NOTHING
"""
_LEFT = """
SELECT amount_nanos - COALESCE(spent_nanos, 0) - COALESCE(reserved_nanos, 0) FROM budgets
LEFT JOIN budget_windows ON budget_id = id AND window_start = :start WHERE id = :budget
"""
_ADD_RESERVATION = """
INSERT INTO reservations (attempt_id, budget_id, window_start, nanos) VALUES (:id, :budget, :start, :nanos)
"""
_RELEASE = "DELETE FROM reservations WHERE attempt_id = :id RETURNING budget_id, window_start, nanos"
_SPEND = """
UPDATE budget_windows SET spent_nanos = spent_nanos + :cost, reserved_nanos = reserved_nanos - :nanos
WHERE budget_id = :budget AND window_start = :start
RETURNING spent_nanos, (SELECT amount_nanos FROM budgets WHERE id = :budget), (SELECT alerts FROM budgets WHERE id = :budget)
"""


def _reserve(
    run: Run,
    dialect: str,
    attempt: Attempt,
    budgets: Sequence[Budget],
    within: tuple[str, Decimal] | None,
    now: float,
    server: int,
) -> None:
    wanted = nanos(attempt.reserved, up=True)
    if within is not None:
        _require_within(run, dialect, *within, wanted)
    if run(_ADD_ATTEMPT, columns(attempt)).rowcount != 1:
        raise AttemptError(f"there is an attempt {attempt.id} already", "give each attempt an id of its own")
    run(_OPEN, {"id": attempt.id, "server": server})
    _add_state(run, attempt.id, 0, _State("sending", now))
    for budget in budgets:  # last, since others wait for these rows; sorted, so that no two wait for each other
        _reserve_of(run, attempt.id, budget, wanted, now)


def _require_within(run: Run, dialect: str, job_id: str, most: Decimal, wanted: int) -> None:
    if dialect == "postgresql":  # SQLite has one writer anyway
        run(_LOCK_JOB, {"job": job_id})
    left = nanos(most) - int(run(_OF_JOB, {"job": job_id}).fetchall()[0][0])
    if wanted > left:
        raise BudgetError(None, of_nanos(left), of_nanos(wanted))


def _reserve_of(run: Run, attempt_id: str, budget: Budget, wanted: int, now: float) -> None:
    """The condition holds for the sums as they are when the row is ours, however long others had it."""
    start = window_start(budget.window, now)
    window = {"budget": budget.id, "start": start}
    values = {**window, "nanos": wanted}
    if run(_RESERVE, values).rowcount != 1:
        run(_ADD_WINDOW, window)  # the first of its window
        if run(_RESERVE, values).rowcount != 1:
            left = run(_LEFT, window).fetchall()
            if not left:
                return  # the budget was removed a moment ago
            raise BudgetError(budget, of_nanos(left[0][0]), of_nanos(wanted), window_end(budget.window, start))
    run(_ADD_RESERVATION, {**values, "id": attempt_id})


def _go_on(run: Run, attempt_id: str, state: _State) -> None:
    found = run(_NEXT, {"id": attempt_id}).fetchall()
    if found:
        _add_state(run, attempt_id, found[0][0], state)
    else:
        _require_there(run, attempt_id)


def _settle(run: Run, attempt_id: str, state: _State) -> list[Alert] | None:
    """None if it had ended."""
    found = run(_CLOSE, {"id": attempt_id}).fetchall()
    if not found:
        _require_there(run, attempt_id)
        return None
    _add_state(run, attempt_id, found[0][0], state)
    cost = nanos(state.cost or Decimal(0))
    alerts: list[Alert] = []
    for budget_id, start, reserved in sorted(tuple(row) for row in run(_RELEASE, {"id": attempt_id}).fetchall()):
        values = {"budget": budget_id, "start": start, "nanos": reserved, "cost": cost}
        for spent, amount, fractions in run(_SPEND, values).fetchall():
            alerts += _crossed(budget_id, spent - cost, spent, amount, alerts_of(fractions))
    return alerts


def _crossed(budget_id: str, before: int, after: int, amount: int, fractions: Sequence[Decimal]) -> list[Alert]:
    return [
        Alert(budget_id, fraction, of_nanos(after), of_nanos(amount))
        for fraction in sorted(fractions)
        if before < amount * fraction <= after
    ]


def _require_there(run: Run, attempt_id: str) -> None:
    if not run(_IS_THERE, {"id": attempt_id}).fetchall():
        raise AttemptError(f"there is no attempt {attempt_id}", "reserve what it may cost first")


def _add_state(run: Run, attempt_id: str, ordinal: int, state: _State) -> None:
    run(
        _ADD_STATE,
        {
            "attempt_id": attempt_id,
            "ordinal": ordinal,
            "state": state.state,
            "at": state.at,
            "handle": None if state.handle is None else json.dumps(state.handle),
            "cost_nanos": None if state.cost is None else nanos(state.cost),
            "reported_nanos": None if state.reported is None else nanos(state.reported),
            "request_id": state.request_id,
            "seconds": state.seconds,
            "detail": state.detail,
        },
    )
