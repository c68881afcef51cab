"""An account at a simulated service: its key, prices, speed, faults and outages, and what it is charged.

Every kind sells in these steps: `Account.begin` draws a fault and charges what is taken on, the kind answers, and
`Account.deliver` spoils the answer as the fault says.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from simulator.bills import Asked, Bill, Item, cost_of
from simulator.faults import BEFORE_WORK, OF_TASKS, OF_URLS, Drawn, Script
from simulator.serving import Reply, Request, no_answer

HTML = b"<!doctype html><title>Welcome</title><p>It works."
MARKS = ("x-client-request-id", "idempotency-key")
"""Headers that callers name their request in."""


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """`latency` is the median in seconds and `spread` the sigma of its logarithm. `honours_keys`: a repeated
    Idempotency-Key gets the same answer and is not charged again, which most services do not do. `port` 0 is any."""

    name: str
    kind: str
    key: str = "test-key"
    price: Mapping[str, Any] = field(default_factory=lambda: {"per_image": "0.010"})
    latency: float = 0.003
    spread: float = 0.3
    faults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    honours_keys: bool = False
    port: int = 0


@dataclass(slots=True)
class Purchase:
    id: str
    client_id: str | None
    asked: Asked
    cost: Decimal
    fault: Drawn | None
    charged: bool = False

    def has(self, *names: str) -> bool:
        return self.fault is not None and self.fault.name in names

    @property
    def made(self) -> Asked:
        """What comes of it, which is not always what was asked for."""
        if self.has("wrong_size"):
            return replace(self.asked, width=max(1, self.asked.width // 2), height=max(1, self.asked.height // 2))
        return replace(self.asked, pictures=0) if self.has("empty", "empty_unbilled") else self.asked


class Account:
    def __init__(self, settings: AccountSettings) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """As it was made, but for outages, which are the listener's."""
        settings = self.settings
        self.price, self.latency, self.spread = settings.price, settings.latency, settings.spread
        self.honours_keys = settings.honours_keys
        self.script = Script(settings.faults, settings.seed)
        self.bill = Bill()
        self.counts: Counter[str] = Counter()
        self.tasks: dict[str, Any] = {}
        self.uploads: dict[str, bytes] = {}
        self.answered: dict[str, asyncio.Future[Reply]] = {}
        self._numbers = itertools.count(1)

    def lets_in(self, request: Request, scheme: str = "Bearer ", header: str = "authorization") -> bool:
        return request.headers.get(header) == scheme + self.settings.key

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{self.settings.name}{next(self._numbers):012d}"

    def seconds(self) -> float:
        return self.latency * self.script.random.lognormvariate(0.0, self.spread) if self.latency > 0 else 0.0

    def begin(
        self, request: Request, asked: Asked, prefix: str, *, tasks: bool = False, charges_filtered: bool = False
    ) -> Purchase:
        """Draws what goes wrong. What a task costs is charged when it is done; all else that is taken on, now."""
        impossible = () if tasks else OF_TASKS
        fault = self.script.draw({*impossible, *(() if asked.as_url else OF_URLS)})
        client_id = next((request.headers[mark] for mark in MARKS if mark in request.headers), None)
        purchase = Purchase(self.new_id(prefix), client_id, asked, cost_of(self.price, asked), fault)
        self.counts[fault.name if fault else "fine"] += 1
        if fault is not None and fault.bills is None:
            purchase.fault = replace(fault, billed=charges_filtered)
        if not tasks:
            self.charge(purchase)
        return purchase

    def charge(self, purchase: Purchase) -> None:
        """Once, unless its fault is free."""
        if purchase.charged or (purchase.fault is not None and not purchase.fault.bills):
            return
        purchase.charged = True
        why = purchase.fault.name if purchase.fault else "made"
        self.bill.add(Item(purchase.id, purchase.client_id, purchase.cost, purchase.asked.pictures, why))

    def refused(self, purchase: Purchase) -> tuple[int, dict[str, str]] | None:
        """Status and headers, if it is refused before any work."""
        if purchase.fault is None or (status := BEFORE_WORK.get(purchase.fault.name)) is None:
            return None
        return status, {"retry-after": f"{purchase.fault.retry_after:g}"} if status == 429 else {}

    async def deliver(self, request: Request, purchase: Purchase, reply: Reply) -> Reply:
        """The answer to a request that was taken on, or what its fault makes of it."""
        fault = purchase.fault
        if fault is None:
            return reply
        if fault.name == "hang":
            await request.gone.wait()
        if fault.name in ("hang", "no_answer"):
            return no_answer()
        if fault.name in ("html", "html_unbilled"):
            return Reply(200, HTML, "text/html")
        if fault.name == "half_body":
            reply.ending = "half"
        if fault.name == "slow":
            reply.drip, reply.pause = fault.seconds, fault.seconds / max(1, len(reply.chunks))
        return reply

    def url(self, request: Request, purchase: Purchase, index: int = 0, *, black: bool = False) -> str:
        """Of a result: all that is known of it is in its path, so that nothing is kept for it."""
        made = purchase.made
        mode = "ok"
        if purchase.fault is not None:
            mode = {"url_404": "gone", "url_expired": "expired", "slow": "slow"}.get(purchase.fault.name, mode)
        size = f"{made.width}x{made.height}"
        return f"{request.base}/files/{'black' if black else mode}/{size}/{purchase.id}-{index}.{made.format}"
