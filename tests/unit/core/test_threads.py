"""Few bytes are worked on at once, many in a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kleinbild.core.threads import FEW_BYTES, MANY_BYTES, on_bytes


@pytest.mark.parametrize(("num_bytes", "here"), [(0, True), (FEW_BYTES, True), (MANY_BYTES, False)])
def test_where_it_is_done(num_bytes: int, here: bool) -> None:
    assert (asyncio.run(on_bytes(num_bytes, threading.get_ident)) == threading.get_ident()) is here
