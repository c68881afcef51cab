"""Amounts of bytes, for reading."""

from __future__ import annotations


def gigabytes(num_bytes: int | None) -> str:
    """`16.1 GB`, `1.52 GB` or `30.9 MB`: powers of ten, two decimals below ten. None is `unknown`."""
    if num_bytes is None:
        return "unknown"
    amount, unit = (num_bytes / 1e9, "GB") if num_bytes >= 1e9 else (num_bytes / 1e6, "MB")
    return f"{amount:.{1 if amount >= 10 else 2}f} {unit}"
