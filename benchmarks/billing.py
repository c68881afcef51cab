"""Compares the ledger with what providers bill, after requests among faults, fallback, hedging and `kill -9`.

    python benchmarks/billing.py [--requests 100000] [--clients 32] [--kills 20] [--gateways 2] [--seed 0] [--json]

Three simulated providers fail in every way; keys have budgets that do not last. In the end attempts of which nobody knew
are settled by the providers' bills. Then ledger and bills must agree to the nanodollar, no budget may be crossed, no
attempt may have ended twice, and every job must have ended.

A gateway keeps one core busy, so several run side by side, each with its own ledger and providers, its part of requests
and kills, and so many clients. Every half minute a line tells how far they are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2

from gatewayed import SECRET, Gateway, Simulated

PRICES = {"alpha": "0.010", "beta": "0.014", "gamma": "0.0235"}
FAULTS = (
    "no_answer half_body status_500_billed status_500 status_502 status_503 rate_limited empty empty_unbilled html "
    "html_unbilled filtered wrong_size slow"
).split()
SHARE = 0.02
ROUTING = 'hedge = true\nhedge_share = 0.05\ncall_seconds = 5\non_unknown = "after_collect"'
KEYS = ("shop", "shop", "shop", "tight", "tiny")
"""By turns: most requests are of the key whose budget lasts."""
TRIES = 6
UNREACHABLE_SECONDS = 60.0
"""For which a client asks again while nobody listens: a gateway that was killed is being started."""
SETTLE_SECONDS = 30.0
PROGRESS_SECONDS = 30.0
COMPARED_AT_ONCE = 32
"""Parts of a statement: what they book is committed together."""
ENDS = ("done", "failed_unbilled", "failed_billed")
ENDED = str(ENDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32, help="of each gateway")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(arguments.seed)
        cells = [
            Cell(Path(folder) / str(number), num_requests, num_kills, rng.randrange(1 << 32))
            for number, (num_requests, num_kills) in enumerate(
                zip(
                    parts(arguments.requests, arguments.gateways),
                    parts(arguments.kills, arguments.gateways),
                    strict=True,
                )
            )
        ]
        found = asyncio.run(run(cells, arguments.clients))
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for name, value in found.items():
        print(f"{name:32}{value}")
    if arguments.json:
        print(json.dumps(found))
    sys.exit(bool(found["violations"]))


def parts(total: int, num: int) -> list[int]:
    """As equal as they can be."""
    return [total // num + (number < total % num) for number in range(num)]


@dataclass(slots=True)
class Cell:
    """A gateway, its providers, and the part of requests and kills that it gets."""

    folder: Path
    num_requests: int
    num_kills: int
    seed: int
    gateway: Gateway = field(init=False)
    simulated: Simulated = field(default_factory=lambda: Simulated(PRICES))
    books: Books = field(init=False)
    answers: Counter[str] = field(default_factory=Counter)
    num_killed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.gateway = Gateway(self.folder / "data")
        self.books = Books(self.gateway, self.simulated)

    async def run(self, num_clients: int) -> dict[str, Any]:
        try:
            await self.start()
            begun = time.monotonic()
            await ask_under_fire(self, KEYS, num_clients)
            self.seconds = time.monotonic() - begun
            await settled(self.gateway)
            await asyncio.to_thread(self.gateway.stop)
            bills = {name: await asyncio.to_thread(self.simulated.bill, name) for name in PRICES}
            await reconcile(self.gateway.database, bills)
            return await asyncio.to_thread(compared, self.gateway.database, bills)
        finally:
            self.gateway.stop()
            self.simulated.stop()

    async def start(self) -> None:
        self.simulated.start()
        for name in PRICES:
            shares: dict[str, Any] = dict.fromkeys(FAULTS, SHARE)
            self.simulated.put(name, "faults", {**shares, "hang": {"share": 0.001}})
        enough = Decimal(self.num_requests) * Decimal("0.03")
        budgets = {"shop": str(enough), "tight": str(enough / 40), "tiny": "0.05"}
        self.gateway.configure(self.simulated, budgets, ROUTING)
        self.gateway.start()
        await self.gateway.wait()


@dataclass(slots=True)
class Books:
    """What ledger and bills say of each attempt so far. Only what is new in them is read."""

    gateway: Gateway
    simulated: Simulated
    booked: dict[str, int] = field(default_factory=dict)
    billed: Counter[str] = field(default_factory=Counter)
    num_attempts: int = 0
    _last_row: int = 0
    _num_items: Counter[str] = field(default_factory=Counter)

    def read(self) -> None:
        """The ledger first: what has ended there is on the bill already."""
        query = (
            f"SELECT rowid, attempt_id, ordinal, state, cost_nanos FROM attempt_states WHERE rowid > {self._last_row}"
        )
        states = list(rows(self.gateway.database, query))
        bills = {name: self.simulated.bill(name, self._num_items[name])["items"] for name in PRICES}
        for row, attempt, ordinal, state, cost in states:  # both are there, or nothing of them counts
            self._last_row = max(self._last_row, row)
            self.num_attempts += ordinal == 0
            if state in ENDS:
                self.booked[attempt] = cost or 0
        for name, items in bills.items():
            self._num_items[name] += len(items)
            for item in items:
                self.billed[item["client_id"]] += int(Decimal(item["cost"]).scaleb(9))

    @property
    def drift_nanos(self) -> int:
        """Of the attempts that have ended."""
        return sum(abs(cost - self.billed[attempt]) for attempt, cost in self.booked.items())


async def run(cells: Sequence[Cell], num_clients: int) -> dict[str, Any]:
    telling = asyncio.create_task(tell(cells))
    try:
        found = await asyncio.gather(*(cell.run(num_clients) for cell in cells))
    finally:
        telling.cancel()
    seconds = max(cell.seconds for cell in cells)
    return {
        "requests": sum(cell.num_requests for cell in cells),
        "gateways": len(cells),
        "answers": dict(sum((cell.answers for cell in cells), Counter[str]())),
        "seconds": round(seconds, 1),
        "requests_per_second": round(sum(cell.num_requests for cell in cells) / seconds, 1),
        "kills": sum(cell.num_killed for cell in cells),
        **together(found),
    }


def together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all gateways: what is wrong with one is wrong."""
    sums = {name: sum(each[name] for each in found) for name, value in found[0].items() if isinstance(value, int)}
    ends = dict(sum((Counter(each["ends"]) for each in found), Counter[str]()))
    violations = [f"gateway {number}: {wrong}" for number, each in enumerate(found) for wrong in each["violations"]]
    return {**sums, "ends": ends, "violations": violations}


async def tell(cells: Sequence[Cell]) -> None:
    """How far they are, now and then."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        for cell in cells:
            with contextlib.suppress(sqlite3.Error, httpx2.TransportError):  # not there yet, or not any more
                await asyncio.to_thread(cell.books.read)
        num_done = sum(cell.answers.total() for cell in cells)
        num_attempts = sum(cell.books.num_attempts for cell in cells)
        num_killed = sum(cell.num_killed for cell in cells)
        drift = sum(cell.books.drift_nanos for cell in cells)
        seconds = time.monotonic() - begun
        print(
            f"{seconds:6.0f} s: {num_done} requests ({num_done / seconds:.1f}/s), {num_attempts} attempts, "
            f"{num_killed} kills; attempts that have ended differ from their bills by {drift} nanodollars",
            flush=True,
        )


async def ask_under_fire(cell: Cell, keys: Sequence[str], num_clients: int) -> None:
    gateway, numbers, rng = cell.gateway, iter(range(cell.num_requests)), random.Random(cell.seed)

    async def client() -> None:
        async with httpx2.AsyncClient(timeout=60.0) as http:
            for number in numbers:
                cell.answers[await ask(http, gateway, keys[number % len(keys)], number)] += 1

    async def killer() -> None:
        for at in sorted(rng.uniform(0.05, 0.9) for _ in range(cell.num_kills)):
            while cell.answers.total() < at * cell.num_requests:  # noqa: ASYNC110 - a count, not an event
                await asyncio.sleep(0.01)
            gateway.kill()
            cell.num_killed += 1
            gateway.start()
            await gateway.wait()

    await asyncio.gather(killer(), *(client() for _ in range(num_clients)))


async def ask(http: httpx2.AsyncClient, gateway: Gateway, key: str, number: int) -> str:
    """The last status, with the same key for each try."""
    headers = {"authorization": f"Bearer {SECRET}{key}", "idempotency-key": f"request-{number}"}
    body = {"model": "sketch", "prompt": f"fox {number}", "size": "256x256"}
    told, tries, until = "unreachable", 0, time.monotonic() + UNREACHABLE_SECONDS
    while tries < TRIES and time.monotonic() < until:
        try:
            answer = await http.post(f"{gateway.url}/v1/images/generations", json=body, headers=headers)
        except httpx2.TransportError:
            await asyncio.sleep(0.1)
            continue
        told, tries = str(answer.status_code), tries + 1
        if answer.status_code not in (409, 429, 503):
            break
        await asyncio.sleep(0.2)
    return told


async def settled(gateway: Gateway) -> None:
    """Until nothing is under way: all has ended, or waits for the providers' bills."""
    until = time.monotonic() + SETTLE_SECONDS
    query = (
        f"SELECT (SELECT COUNT(*) FROM ({_last()}) WHERE state IN ('sending', 'accepted')) + "
        "(SELECT COUNT(*) FROM jobs WHERE status IN ('queued', 'running'))"
    )
    under_way = await asyncio.to_thread(rows, gateway.database, query)
    while time.monotonic() < until and under_way[0][0]:
        await asyncio.sleep(0.2)
        under_way = await asyncio.to_thread(rows, gateway.database, query)


async def reconcile(database: Path, bills: dict[str, dict[str, Any]]) -> None:
    """As an operator does with statements: what is not on them costs nothing."""
    from kleinbild.storage.database import open_database, sqlite_url
    from kleinbild.storage.ledger import Ledger

    opened = await open_database(sqlite_url(database))
    ledger = Ledger(opened)
    for provider, bill in bills.items():
        lines = [(item["client_id"], Decimal(item["cost"])) for item in bill["items"]]
        named = {name for name, _ in lines}
        query = f"SELECT id FROM ({_last()}) WHERE state = 'unknown' AND provider = '{provider}'"
        lines += [(found, Decimal(0)) for (found,) in rows(database, query) if found not in named]
        statements: dict[int, list[tuple[str, Decimal]]] = {}
        for name, cost in lines:  # all lines of an attempt in one
            statements.setdefault(hash(name) % COMPARED_AT_ONCE, []).append((name, cost))
        await asyncio.gather(*(ledger.reconcile(provider, each) for each in statements.values()))
    await ledger.drain()
    await opened.close()


def compared(database: Path, bills: dict[str, dict[str, Any]]) -> dict[str, Any]:
    booked = dict(rows(database, f"SELECT provider, SUM(cost_nanos) FROM ({_last()}) GROUP BY provider"))
    corrections = dict(
        rows(
            database,
            "SELECT provider, SUM(nanos) FROM adjustments JOIN attempts ON attempts.id = attempt_id GROUP BY provider",
        )
    )
    violations = list(wrong(database))
    drift, blind = 0, 0
    for provider, bill in bills.items():
        ours, added = booked.get(provider) or 0, corrections.get(provider) or 0
        drift += abs(ours + added - bill["total_nanos"])
        blind += abs(added)
    if drift:
        violations.append(f"ledger and bills differ by {drift} nanodollars")
    return {
        "attempts": rows(database, "SELECT COUNT(*) FROM attempts")[0][0],
        "ends": dict(rows(database, f"SELECT state, COUNT(*) FROM ({_last()}) GROUP BY state")),
        "billed_nanos": sum(bill["total_nanos"] for bill in bills.values()),
        "drift_nanos": drift,
        "corrected_nanos": blind,
        "violations": violations,
    }


def wrong(database: Path) -> Iterator[str]:
    """All that must not be."""
    twice = rows(
        database,
        f"SELECT attempt_id FROM attempt_states WHERE state IN {ENDED} GROUP BY attempt_id HAVING COUNT(*) > 1",
    )
    yield from (f"{attempt} ended twice" for (attempt,) in twice)
    for attempt, state in rows(database, f"SELECT id, state FROM ({_last()}) WHERE state NOT IN {ENDED}"):
        yield f"{attempt} is still {state}"
    crossed = rows(
        database,
        "SELECT budget_id, spent_nanos, reserved_nanos, amount_nanos FROM budget_windows "
        "JOIN budgets ON budgets.id = budget_id WHERE spent_nanos + reserved_nanos > amount_nanos",
    )
    yield from (f"the budget {budget} of {amount} holds {spent} + {held}" for budget, spent, held, amount in crossed)
    for job, status in rows(database, "SELECT id, status FROM jobs WHERE status IN ('queued', 'running')"):
        yield f"{job} is still {status}"


def rows(database: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", timeout=30, uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _last() -> str:
    return (
        "SELECT attempts.id AS id, provider, state, cost_nanos FROM attempts JOIN attempt_states AS s "
        "ON s.attempt_id = attempts.id WHERE ordinal = "
        "(SELECT MAX(ordinal) FROM attempt_states WHERE attempt_id = attempts.id)"
    )


if __name__ == "__main__":
    main()
