"""Large blocks have pages of their own while that is asked for, and the heap's again afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")

PROGRAM = """
import ctypes
import torch
from kleinbild.core.heap import large_blocks_apart

class Statistics(ctypes.Structure):  # mallinfo2 of malloc.h; hblks are the blocks with pages of their own
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Statistics

def num_apart_of_a_block():
    before = libc.mallinfo2().hblks
    block = torch.empty(4 * 2**20, dtype=torch.uint8)
    return libc.mallinfo2().hblks - before

with large_blocks_apart():
    during = num_apart_of_a_block(), num_apart_of_a_block()
print(*during, num_apart_of_a_block())
"""


def test_large_blocks_have_pages_of_their_own_while_that_is_asked_for() -> None:
    """In a process of its own: where others have left holes in the heap, a block may fit into one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "0"]
