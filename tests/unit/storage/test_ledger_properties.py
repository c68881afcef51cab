"""Whatever is reserved, settled, cut and waited for in whatever order, the ledger agrees with sums on paper."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import text

from kleinbild.core.money import of_nanos
from kleinbild.storage import budgets
from kleinbild.storage.budgets import Budget, window_start
from kleinbild.storage.database import Database, open_database
from kleinbild.storage.ledger import TERMINAL, BudgetError, Ledger
from tests.unit.storage.money import Clock, an_attempt

WINDOWS = {"bud_1": None, "bud_2": "1h", "bud_3": "1d"}
CEILING = 120
TABLES = ("budgets", "budget_windows", "reservations", "open_attempts", "attempt_states", "attempts")
amounts = st.integers(0, 60)
chosen = st.sets(st.sampled_from(sorted(WINDOWS)))
jobs = st.sampled_from(["job_1", "job_2"])


@dataclass
class Store:
    """One database for all examples, emptied before each."""

    runner: asyncio.Runner
    database: Database

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        async def read() -> list[tuple[Any, ...]]:
            async with self.database.read() as connection:
                return [tuple(row) for row in await connection.execute(text(query))]

        return self.run(read())

    async def empty(self) -> None:
        async with self.database.write() as connection:
            for table in TABLES:
                await connection.execute(text(f"DELETE FROM {table}"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with asyncio.Runner() as runner:
        database = runner.run(open_database(url))
        yield Store(runner, database)
        runner.run(database.close())


@dataclass
class OnPaper:
    """What has been set aside and spent, by budget and window, in nanodollars."""

    amounts: dict[str, int] = field(default_factory=lambda: {"bud_1": 150, "bud_2": 100, "bud_3": 80})
    spent: Counter[tuple[str, int]] = field(default_factory=Counter)
    reserved: Counter[tuple[str, int]] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    open: dict[str, tuple[str, int, list[tuple[str, int]]]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)

    def fits(self, job: str, wanted: int, windows: list[tuple[str, int]]) -> bool:
        there = all(
            self.spent[window] + self.reserved[window] + wanted <= self.amounts[window[0]] for window in windows
        )
        return there and self.jobs[job] + wanted <= CEILING

    def reserve(self, attempt: str, job: str, wanted: int, windows: list[tuple[str, int]]) -> None:
        self.jobs[job] += wanted
        for window in windows:
            self.reserved[window] += wanted
        self.open[attempt] = (job, wanted, windows)

    def settle(self, attempt: str, state: str, cost: int) -> None:
        job, reserved, windows = self.open.pop(attempt)
        self.jobs[job] += cost - reserved
        for window in windows:
            self.reserved[window] -= reserved
            self.spent[window] += cost
        self.ended[attempt] = state


class Machine(RuleBasedStateMachine):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.clock, self.paper, self.number = store, Clock(), OnPaper(), 0
        store.run(store.empty())
        self.restart()
        for budget_id, amount in self.paper.amounts.items():
            self.put(budget_id, amount)

    @rule()
    def restart(self) -> None:
        self.ledger = Ledger(self.store.database, self.clock, lambda _: None)

    @rule(budget_id=st.sampled_from(sorted(WINDOWS)), amount=st.integers(0, 200))
    def put(self, budget_id: str, amount: int) -> None:
        async def put() -> None:
            async with self.store.database.write() as connection:
                await budgets.put(connection, self.budget(budget_id, amount))

        self.store.run(put())
        self.paper.amounts[budget_id] = amount

    @rule(seconds=st.sampled_from([600, 3600, 86400]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(wanted=amounts, of=chosen, job=jobs)
    def reserve(self, wanted: int, of: set[str], job: str) -> None:
        fits = self.paper.fits(job, wanted, self.windows(of))
        assert self.reserved([(wanted, of, job)]) == [fits]

    @rule(all_wanted=st.lists(st.tuples(amounts, chosen, jobs), min_size=2, max_size=6))
    def reserve_together(self, all_wanted: list[tuple[int, set[str], str]]) -> None:
        self.reserved(all_wanted)

    def reserved(self, all_wanted: list[tuple[int, set[str], str]]) -> list[bool]:
        """Who was. Who was not would not fit in beside those who were, in whatever order they came."""
        ids = [self.new_id() for _ in all_wanted]

        async def at_once() -> list[BaseException | None]:
            return await asyncio.gather(
                *(
                    self.ledger.reserve(
                        an_attempt(new, str(of_nanos(wanted)), job_id=job),
                        [self.budget(budget_id, 0) for budget_id in of],
                        within=(job, of_nanos(CEILING)),
                    )
                    for new, (wanted, of, job) in zip(ids, all_wanted, strict=True)
                ),
                return_exceptions=True,
            )

        outcomes = self.store.run(at_once())
        for new, (wanted, of, job), outcome in zip(ids, all_wanted, outcomes, strict=True):
            if outcome is None:
                self.paper.reserve(new, job, wanted, self.windows(of))
        for (wanted, of, job), outcome in zip(all_wanted, outcomes, strict=True):
            if outcome is None:
                assert self.paper.fits(job, 0, self.windows(of))
            else:
                assert isinstance(outcome, BudgetError)
                assert not self.paper.fits(job, wanted, self.windows(of))
        return [outcome is None for outcome in outcomes]

    @rule(which=st.integers(0, 99), state=st.sampled_from(sorted(TERMINAL)), cost=amounts, times=st.integers(1, 3))
    def settle(self, which: int, state: str, cost: int, times: int) -> None:
        """Several times at once, be it open or not."""
        if not (known := sorted(self.paper.open) + sorted(self.paper.ended)):
            return
        attempt, cost = known[which % len(known)], 0 if state == "failed_unbilled" else cost

        async def at_once() -> list[bool]:
            return await asyncio.gather(
                *(self.ledger.settle(attempt, state, of_nanos(cost)) for _ in range(times))  # type: ignore[arg-type]
            )

        assert self.store.run(at_once()).count(True) == (1 if attempt in self.paper.open else 0)
        if attempt in self.paper.open:
            self.paper.settle(attempt, state, cost)

    @rule(which=st.integers(0, 99))
    def learn(self, which: int) -> None:
        if self.paper.open:
            attempt = sorted(self.paper.open)[which % len(self.paper.open)]
            self.store.run(self.ledger.accepted(attempt, {"n": which}))
            self.store.run(self.ledger.unknown(attempt, "cut off"))

    @invariant()
    def sums_agree(self) -> None:
        found = self.store.rows("SELECT budget_id, window_start, spent_nanos, reserved_nanos FROM budget_windows")
        there = {(budget, start): (spent, reserved) for budget, start, spent, reserved in found if spent or reserved}
        windows = self.paper.spent.keys() | self.paper.reserved.keys()
        on_paper = {window: (self.paper.spent[window], self.paper.reserved[window]) for window in windows}
        assert there == {window: sums for window, sums in on_paper.items() if any(sums)}

    @invariant()
    def each_has_ended_once_or_not_yet(self) -> None:
        ended = self.store.rows(
            "SELECT attempt_id, state FROM attempt_states WHERE state IN ('done', 'failed_unbilled', 'failed_billed')"
        )
        assert sorted(ended) == sorted(self.paper.ended.items())
        assert {entry.attempt.id for entry in self.store.run(self.ledger.unsettled())} == self.paper.open.keys()

    def budget(self, budget_id: str, amount: int) -> Budget:
        return Budget(budget_id, of_nanos(amount), WINDOWS[budget_id])

    def windows(self, of: set[str]) -> list[tuple[str, int]]:
        return [(budget_id, window_start(WINDOWS[budget_id], self.clock.now)) for budget_id in sorted(of)]

    def new_id(self) -> str:
        self.number += 1
        return f"att_{self.number:04}"


def test_the_ledger_agrees_with_sums_on_paper(store: Store) -> None:
    run_state_machine_as_test(
        lambda: Machine(store),
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
