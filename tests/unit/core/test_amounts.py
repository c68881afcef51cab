"""Bytes for reading."""

from __future__ import annotations

import pytest

from kleinbild.core.amounts import gigabytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "unknown"),
        (0, "0.00 MB"),
        (1_234_567, "1.23 MB"),
        (345_000_000, "345.0 MB"),
        (1_000_000_000, "1.00 GB"),
        (1_524_000_000, "1.52 GB"),
        (34_720_000_000, "34.7 GB"),
    ],
)
def test_bytes(num_bytes: int | None, text: str) -> None:
    assert gigabytes(num_bytes) == text
