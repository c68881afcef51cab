"""The C library's heap on Linux: whether large blocks get pages of their own.

glibc takes blocks of up to 32 MiB from one heap, once it has seen such blocks freed. Blocks of a few MiB that live for
long, short and medium times then leave gaps that fit nothing: a decode in strips held 430 to 930 MB in one and the same
case, where 360 suffice. Pages of their own go back to the system with the block; their price is that the system hands
out every page anew, zeroed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
LARGE_BLOCK = 2**20
HEAP_BLOCK = 32 * 2**20  # what glibc's threshold grows to by itself


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Within, a block of a MiB or more that fits no hole in the heap has pages of its own. For the whole process; nothing
    happens without glibc."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)


def give_back_freed_memory(num_arenas: int = 2) -> None:
    """For a process of many threads that handle large bodies, at its start: blocks of a MiB or more go back to the system
    when they are freed, and what is smaller comes from `num_arenas` heaps rather than from several per core."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_ARENA_MAX, num_arenas)


def give_back_holes() -> None:
    """What is free between blocks in use goes back to the system, too. Takes some milliseconds: not on an event loop."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
