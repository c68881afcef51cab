"""Compares the ledger with what providers bill, after requests among faults, fallback, hedging and `kill -9`.

    python benchmarks/billing.py [--requests 100000] [--clients 32] [--kills 20] [--seed 0] [--json]

Three simulated providers fail in every way; keys have budgets that do not last. In the end attempts of which nobody knew
are settled by the providers' bills. Then ledger and bills must agree to the nanodollar, no budget may be crossed, no
attempt may have ended twice, and every job must have ended.
"""

from __future__ import annotations

import argparse
import asyncio
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
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2

from gatewayed import SECRET, Gateway, Simulated

PRICES = {"alpha": "0.010", "beta": "0.014", "gamma": "0.0235"}
FAULTS = (
    "no_answer half_body status_500_billed status_500 status_502 status_503 rate_limited empty empty_unbilled html "
    "html_unbilled filtered wrong_size"
).split()
SHARE = 0.02
ROUTING = 'hedge = true\nhedge_share = 0.05\ncall_seconds = 5\non_unknown = "after_collect"'
KEYS = ("shop", "shop", "shop", "tight", "tiny")
"""By turns: most requests are of the key whose budget lasts."""
TRIES = 6
SETTLE_SECONDS = 30.0
ENDED = "('done', 'failed_unbilled', 'failed_billed')"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            run(Path(folder), arguments.requests, arguments.clients, arguments.kills, random.Random(arguments.seed))
        )
    print(f"{platform.platform()}, {os.cpu_count()} cores")
    for name, value in found.items():
        print(f"{name:32}{value}")
    if arguments.json:
        print(json.dumps(found))
    sys.exit(bool(found["violations"]))


async def run(folder: Path, num_requests: int, num_clients: int, num_kills: int, rng: random.Random) -> dict[str, Any]:
    simulated, gateway = Simulated(PRICES), Gateway(folder / "data")
    try:
        simulated.start()
        for name in PRICES:
            shares: dict[str, Any] = dict.fromkeys(FAULTS, SHARE)
            simulated.put(name, "faults", {**shares, "hang": {"share": 0.001}})
        enough = Decimal(num_requests) * Decimal("0.03")
        budgets = {"shop": str(enough), "tight": str(enough / 40), "tiny": "0.05"}
        gateway.configure(simulated, budgets, ROUTING)
        gateway.start()
        await gateway.wait()
        begun = time.monotonic()
        answers = await ask_under_fire(gateway, KEYS, num_requests, num_clients, num_kills, rng)
        seconds = time.monotonic() - begun
        await settled(gateway)
        gateway.stop()
        bills = {name: simulated.bill(name) for name in PRICES}
        await reconcile(gateway.database, bills)
        return {
            "requests": num_requests,
            "answers": dict(answers),
            "seconds": round(seconds, 1),
            "kills": num_kills,
            **compared(gateway.database, bills),
        }
    finally:
        gateway.stop()
        simulated.stop()


async def ask_under_fire(
    gateway: Gateway, keys: Sequence[str], num_requests: int, num_clients: int, num_kills: int, rng: random.Random
) -> Counter[str]:
    numbers, answers, num_done = iter(range(num_requests)), Counter[str](), 0

    async def client() -> None:
        nonlocal num_done
        async with httpx2.AsyncClient(timeout=60.0) as http:
            for number in numbers:
                answers[await ask(http, gateway, keys[number % len(keys)], number)] += 1
                num_done += 1

    async def killer() -> None:
        for at in sorted(rng.uniform(0.05, 0.9) for _ in range(num_kills)):
            while num_done < at * num_requests:  # noqa: ASYNC110 - a count, not an event
                await asyncio.sleep(0.01)
            gateway.kill()
            gateway.start()
            await gateway.wait()

    await asyncio.gather(killer(), *(client() for _ in range(num_clients)))
    return answers


async def ask(http: httpx2.AsyncClient, gateway: Gateway, key: str, number: int) -> str:
    """The last status, with the same key for each try."""
    headers = {"authorization": f"Bearer {SECRET}{key}", "idempotency-key": f"request-{number}"}
    body = {"model": "sketch", "prompt": f"fox {number}", "size": "256x256"}
    told = "unreachable"
    for _ in range(TRIES):
        try:
            answer = await http.post(f"{gateway.url}/v1/images/generations", json=body, headers=headers)
        except httpx2.TransportError:
            await asyncio.sleep(0.5)
            continue
        told = str(answer.status_code)
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
    while time.monotonic() < until and rows(gateway.database, query)[0][0]:  # noqa: ASYNC110 - another process's
        await asyncio.sleep(0.2)


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
        await ledger.reconcile(provider, lines)
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
