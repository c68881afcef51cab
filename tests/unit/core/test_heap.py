"""Large blocks have pages of their own while that is asked for, and the heap's again afterwards."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from kleinbild.core.heap import large_blocks_apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")


class Statistics(ctypes.Structure):
    """mallinfo2 of malloc.h; `hblks` are the blocks with pages of their own."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def num_apart() -> int:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Statistics
    return libc.mallinfo2().hblks


def test_a_large_block_has_pages_of_its_own() -> None:
    with large_blocks_apart():
        before = num_apart()
        block = torch.empty(4 * 2**20, dtype=torch.uint8)
        assert num_apart() == before + 1
        del block
        assert num_apart() == before


def test_afterwards_the_heap_has_it() -> None:
    with large_blocks_apart():
        pass
    before = num_apart()
    block = torch.empty(4 * 2**20, dtype=torch.uint8)
    assert block.numel()
    assert num_apart() == before
