"""Money: US dollars as Decimal, never float. Kept in databases as whole nanodollars, so that sums are exact everywhere."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal, InvalidOperation

from kleinbild.core.errors import RequestError

NANO = Decimal("1e-9")
ZERO = Decimal(0)
MAX_DOLLARS = Decimal(1_000_000_000)
"""What fits eight times into a database's 64-bit nanodollars."""


def dollars(value: str | int | Decimal) -> Decimal:
    """An amount as somebody wrote it: "0.014". Raises RequestError for what is none, and for a float, which is not exact."""
    if isinstance(value, bool | float):
        raise RequestError(f"an amount of money must not be the number {value!r}", 'write it as text, such as "0.014"')
    try:
        amount = Decimal(value)
    except (InvalidOperation, TypeError, ValueError) as error:
        raise RequestError(f"{value!r} is no amount of money", 'write US dollars, such as "0.014"') from error
    if not amount.is_finite() or amount.copy_abs() > MAX_DOLLARS:
        raise RequestError(f"{value!r} is no amount of money", f"write at most {MAX_DOLLARS} US dollars")
    return amount


def nanos(amount: Decimal, *, up: bool = False) -> int:
    """Whole nanodollars; `up` for what is set aside, which must never be too little."""
    return int((amount / NANO).to_integral_value(ROUND_CEILING if up else ROUND_HALF_EVEN))


def of_nanos(number: int) -> Decimal:
    return Decimal(number) * NANO


def written(amount: Decimal) -> str:
    """Without an exponent and trailing zeros: `0.014`, `12`, `0`."""
    text = f"{amount:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
