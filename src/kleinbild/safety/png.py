"""PNG files by their own structure: their size, whether they are whole, and what is left of one without all but its pixels.

PNG (third edition), 5: a signature, then chunks of a length, a name, data and a checksum of name and data.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from kleinbild.core.sizes import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIECE = 2**20
MAX_FILTER = 4
_CHUNK, _HEADER = struct.Struct(">I4s"), struct.Struct(">IIBBBBB")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits that each kind of colours may have: grey, RGB, a palette, grey and RGB with alpha."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_SAYS_NOTHING = frozenset({b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"hIST", b"tIME"})
"""Left out, and the picture is the same to us. Whatever else there is may turn it, colour it or move it."""
_MAX_DATA = {b"PLTE": 768, b"tRNS": 256}


class DamagedError(ValueError):
    """A file that is cut short, or not what it says that it is."""


class Header(NamedTuple):
    width: int
    height: int
    depth: int
    colours: int
    compression: int
    filtering: int
    interlaced: int


class Chunk(NamedTuple):
    """`whole` is with its length, name and checksum."""

    name: bytes
    data: memoryview
    whole: memoryview


def is_png(file: bytes) -> bool:
    return file.startswith(SIGNATURE)


def size_of(file: bytes) -> Size:
    """What its header says. Raises DamagedError."""
    header = _header(file)
    return Size(header.width, header.height)


def measured(file: bytes) -> Size:
    """Its size, once all its checksums are known to be right. Raises DamagedError."""
    size, names = size_of(file), {chunk.name for chunk in _chunks(file)}
    if b"IDAT" not in names:
        raise DamagedError("there is no picture in it")
    return size


def bare(file: bytes, max_pixels: int) -> bytes | None:
    """The same compressed pixels and nothing else, once they are known to be a whole picture of at most so many pixels.
    None for what takes a decoder to tell: interlaced, animated, turned, with a profile, with text, or damaged."""
    try:
        header = _header(file)
        chunks = list(_chunks(file))
    except DamagedError:
        return None
    if header.interlaced or header.width * header.height > max_pixels:
        return None
    if any(each.name not in _KEPT | _SAYS_NOTHING or len(each.data) > _most(each.name) for each in chunks):
        return None
    kept = [each for each in chunks if each.name in _KEPT]
    names = [each.name for each in kept]
    if names[0] != b"IHDR" or any(names.count(name) > 1 for name in _KEPT - {b"IDAT"}):
        return None
    if header.colours == 3 and b"PLTE" not in names:
        return None
    if not _is_whole([each.data for each in kept if each.name == b"IDAT"], header):
        return None
    is_bare = len(file) == len(SIGNATURE) + sum(len(each.whole) for each in kept)
    return file if is_bare else b"".join((SIGNATURE, *(each.whole for each in kept)))


def _header(file: bytes) -> Header:
    try:
        length, name = _CHUNK.unpack_from(file, len(SIGNATURE))
        header = Header(*_HEADER.unpack_from(file, len(SIGNATURE) + _CHUNK.size))
    except struct.error as error:
        raise DamagedError("it ends before its header does") from error
    is_known = (length, name) == (_HEADER.size, b"IHDR") and header.depth in _DEPTHS.get(header.colours, ())
    if not (is_known and is_png(file) and header.width and header.height):
        raise DamagedError("its header is of no picture that there is")
    return header


def _chunks(file: bytes) -> Iterator[Chunk]:
    """Up to its end, whatever comes after that. Raises DamagedError."""
    view, position, name = memoryview(file), len(SIGNATURE), b""
    while name != b"IEND":
        try:
            length, name = _CHUNK.unpack_from(file, position)
        except struct.error as error:
            raise DamagedError("it is cut short") from error
        start = position + _CHUNK.size
        position = start + length + 4
        if zlib.crc32(view[start - 4 : start + length]) != int.from_bytes(view[start + length : position]):
            raise DamagedError("a checksum is wrong")
        yield Chunk(name, view[start : start + length], view[start - _CHUNK.size : position])


def _most(name: bytes) -> float:
    """Bytes that a chunk of that name has."""
    return _MAX_DATA.get(name, math.inf)


def _is_whole(parts: list[memoryview], header: Header) -> bool:
    """Whether the compressed data are the picture's rows, all of them and no more, each with a filter that there is."""
    row = 1 + (header.width * _CHANNELS[header.colours] * header.depth + 7) // 8
    inflating, position = zlib.decompressobj(), 0
    for part in parts:
        waiting: bytes | memoryview = part
        while waiting:
            try:
                rows = inflating.decompress(waiting, PIECE)
            except zlib.error:
                return False
            if inflating.eof and inflating.unused_data:
                return False
            if max(rows[-position % row :: row], default=0) > MAX_FILTER:
                return False
            position += len(rows)
            if position > row * header.height:
                return False
            waiting = inflating.unconsumed_tail
    return inflating.eof and position == row * header.height
