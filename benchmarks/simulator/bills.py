"""What a service charges: prices as it states them, and the list of all that it has charged for.

This is the other side of the gateway's ledger and shares no code with it, so that the two can be wrong apart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any

MILLION = Decimal(1_000_000)
CENT = Decimal("0.01")
PARTS = ("per_request", "per_image", "first_megapixel", "per_megapixel", "by_quality", "whole_megapixels")


@dataclass(frozen=True, slots=True)
class Asked:
    """The pictures that somebody wants. `as_url`: the answer says where they are."""

    pictures: int = 1
    width: int = 1024
    height: int = 1024
    format: str = "png"
    quality: str = "auto"
    as_url: bool = False
    seed: int | None = None


def cost_of(price: Mapping[str, Any], asked: Asked) -> Decimal:
    """In dollars. `price` has amounts as text, under the names in PARTS."""
    if strange := price.keys() - set(PARTS):
        raise ValueError(f"a price has no {', '.join(sorted(strange))}; known are {', '.join(PARTS)}")
    megapixels = asked.width * asked.height / MILLION
    if price.get("whole_megapixels"):
        megapixels = megapixels.to_integral_value(ROUND_CEILING)
    each = Decimal(price.get("per_image", 0)) + Decimal(price.get("by_quality", {}).get(asked.quality, 0))
    if "first_megapixel" in price:
        each += Decimal(price["first_megapixel"])
        megapixels = max(Decimal(0), megapixels - 1)
    each += Decimal(price.get("per_megapixel", 0)) * megapixels
    return Decimal(price.get("per_request", 0)) + each * asked.pictures


def _written(amount: Decimal) -> str:
    """Without trailing zeros."""
    return f"{amount.normalize():f}"


@dataclass(slots=True)
class Item:
    request_id: str
    client_id: str | None
    cost: Decimal
    pictures: int
    why: str
    at: float = field(default_factory=time.time)

    @property
    def shown(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "client_id": self.client_id,
            "cost": _written(self.cost),
            "pictures": self.pictures,
            "at": self.at,
            "why": self.why,
        }


@dataclass(slots=True)
class Bill:
    """Added up in whole nanodollars, as what is compared with it is."""

    items: list[Item] = field(default_factory=list)

    def add(self, item: Item) -> None:
        self.items.append(item)

    def shown(self, after: int = 0) -> dict[str, Any]:
        """Without the first `after` items, which the sums count all the same."""
        total = sum((item.cost for item in self.items), Decimal(0))
        return {
            "items": [item.shown for item in self.items[after:]],
            "count": len(self.items),
            "pictures": sum(item.pictures for item in self.items),
            "total": _written(total),
            "total_nanos": int(total.scaleb(9).to_integral_value()),
        }
