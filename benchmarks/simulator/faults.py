"""What goes wrong, by name, and whether it is billed: drawn at random for each purchase, in an order that a seed settles.

{"no_answer": 0.01, "rate_limited": {"share": 0.2, "retry_after": 0.05}, "hang": {"share": 0.01, "billed": false}}
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Fault:
    """`bills` is None where it is each kind's own custom. Either way `billed` in the script overrules it, but for what is
    refused before any work."""

    bills: bool | None
    means: str


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "status_500": Fault(False, "500 before any work"),
        "status_502": Fault(False, "502 before any work"),
        "status_503": Fault(False, "503 before any work"),
        "rate_limited": Fault(False, "429 with Retry-After (`retry_after` seconds)"),
        "status_500_billed": Fault(True, "500 after the work was done"),
        "no_answer": Fault(True, "taken on, then the connection is closed without an answer"),
        "hang": Fault(True, "taken on, then it never ends"),
        "half_body": Fault(True, "the answer breaks off in the middle"),
        "slow": Fault(True, "the answer, or the picture's file, drips for `seconds`"),
        "empty": Fault(True, "success without a picture"),
        "empty_unbilled": Fault(False, "the same, and not charged"),
        "html": Fault(True, "success, but a page of HTML"),
        "html_unbilled": Fault(False, "the same, and not charged"),
        "wrong_size": Fault(True, "a picture of half the size"),
        "url_404": Fault(True, "the URL of the result leads nowhere"),
        "url_expired": Fault(True, "the result has expired when it is fetched"),
        "filtered": Fault(None, "the safety filter holds the picture back, in the kind's own way"),
        "failed": Fault(False, "taken on, then the work fails (kinds with tasks)"),
        "lost": Fault(True, "taken on, then polls do not know it (kinds with tasks)"),
        "poll_errors": Fault(True, "the first `count` polls get 503 (kinds with tasks)"),
        "late_cancel": Fault(True, "a cancel finds the work done (kinds with tasks)"),
        "webhook_twice": Fault(True, "the webhook comes twice, and a third time `seconds` later (kinds with tasks)"),
    }
)
BEFORE_WORK: Mapping[str, int] = MappingProxyType(
    {"status_500": 500, "status_502": 502, "status_503": 503, "rate_limited": 429}
)
OF_TASKS = frozenset({"failed", "lost", "poll_errors", "late_cancel", "webhook_twice"})
OF_URLS = frozenset({"url_404", "url_expired"})
_OPTIONS = frozenset({"share", "billed", "retry_after", "seconds", "count"})


@dataclass(frozen=True, slots=True)
class Drawn:
    """One fault for one purchase."""

    name: str
    billed: bool | None = None
    retry_after: float = 0.05
    seconds: float = 0.5
    count: int = 2

    @property
    def bills(self) -> bool | None:
        if self.billed is None or self.name in BEFORE_WORK:
            return FAULTS[self.name].bills
        return self.billed


class Script:
    """The shares of faults of an account. Raises ValueError for what is none."""

    def __init__(self, shares: Mapping[str, Any] | None = None, seed: int = 0) -> None:
        self._faults: list[tuple[float, Drawn]] = []
        for name, given in (shares or {}).items():
            options = dict(given) if isinstance(given, Mapping) else {"share": given}
            if name not in FAULTS:
                raise ValueError(f"there is no fault {name!r}; known are {', '.join(FAULTS)}")
            if strange := options.keys() - _OPTIONS:
                raise ValueError(f"{name} has no {', '.join(sorted(strange))}; known are {', '.join(sorted(_OPTIONS))}")
            self._faults.append((float(options.pop("share", 1.0)), Drawn(name, **options)))
        if sum(share for share, _ in self._faults) > 1 + 1e-9:
            raise ValueError("the shares add up to more than 1")
        self.random = random.Random(seed)

    def draw(self, not_possible: Container[str] = ()) -> Drawn | None:
        """One number is drawn each time, whatever is possible, so that a seed gives the same sequence."""
        at = self.random.random()
        for share, drawn in self._faults:
            if at < share:
                return None if drawn.name in not_possible else drawn
            at -= share
        return None
