"""The comparison of ledger and bills sees what they differ in, while it runs and in the end."""

from __future__ import annotations

import asyncio
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import billing
from billing import Books, Cell, parts, tell, together

CENT = 10_000_000


class Bills:
    """A simulator's, each item read once."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.asked: list[int] = []

    def charge(self, attempt: str, cost: str = "0.01") -> None:
        self.items.append({"client_id": attempt, "cost": cost})

    def bill(self, name: str, after: int = 0) -> dict[str, Any]:
        if name != "alpha":
            return {"items": []}
        self.asked.append(after)
        return {"items": self.items[after:]}


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    cell = Cell(tmp_path, 10, 1, seed=0, simulated=Bills())
    cell.gateway.folder.mkdir()
    with sqlite3.connect(cell.gateway.database) as ledger:
        ledger.execute("CREATE TABLE attempt_states (attempt_id, ordinal, state, cost_nanos)")
    return cell


def book(books: Books, *states: tuple[str, int, str, int | None]) -> None:
    with sqlite3.connect(books.gateway.database) as ledger:
        ledger.executemany("INSERT INTO attempt_states VALUES (?, ?, ?, ?)", states)


def test_what_has_ended_is_compared_and_read_once(cell: Cell) -> None:
    books = cell.books
    cell.simulated.charge("one")
    cell.simulated.charge("two")
    book(books, ("one", 0, "sending", None), ("one", 1, "done", CENT), ("two", 0, "sending", None))
    books.read()
    assert (books.num_attempts, books.drift_nanos) == (2, 0)
    book(books, ("two", 1, "failed_unbilled", 0))
    books.read()
    assert (books.num_attempts, books.drift_nanos) == (2, CENT)
    cell.simulated.charge("one", "0.02")
    books.read()
    assert books.drift_nanos == 3 * CENT
    assert cell.simulated.asked == [0, 2, 2]


def test_a_line_tells_how_far_they_are(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(billing, "PROGRESS_SECONDS", 0.01)
    cell.answers["200"], cell.num_killed = 7, 1
    book(cell.books, ("one", 0, "sending", None), ("one", 1, "done", CENT))

    async def some() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tell([cell]), 1)

    asyncio.run(some())
    line = capsys.readouterr().out.splitlines()[-1]
    assert "7 requests" in line
    assert "1 attempts, 1 kills" in line
    assert f"by {CENT} nanodollars" in line


def test_what_is_wrong_with_one_gateway_is_wrong() -> None:
    good = {"attempts": 3, "ends": {"done": 3}, "drift_nanos": 0, "violations": []}
    bad = {"attempts": 2, "ends": {"done": 1, "failed_billed": 1}, "drift_nanos": 5, "violations": ["a ended twice"]}
    assert together([good, bad]) == {
        "attempts": 5,
        "ends": {"done": 4, "failed_billed": 1},
        "drift_nanos": 5,
        "violations": ["gateway 1: a ended twice"],
    }


def test_parts_are_all_of_it() -> None:
    assert parts(100_001, 2) == [50_001, 50_000]
    assert parts(1, 3) == [1, 0, 0]


def test_a_bill_can_be_read_on() -> None:
    from simulator.bills import Bill, Item

    bill = Bill()
    for number in range(3):
        bill.add(Item(f"request-{number}", f"attempt-{number}", Decimal("0.01"), 1, "made"))
    shown = bill.shown(2)
    assert [item["client_id"] for item in shown["items"]] == ["attempt-2"]
    assert (shown["count"], shown["total_nanos"]) == (3, 3 * CENT)
