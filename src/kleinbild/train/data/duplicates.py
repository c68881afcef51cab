"""Pictures that are there twice: the same to the last pixel, or nearly so. Duplicates weigh double in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kleinbild.train.data.findings import Finding
from kleinbild.train.data.folders import counted
from kleinbild.train.data.pictures import Seen

MAX_BITS = 6  # of the 64 of two gradient hashes may differ
MAX_COLOUR, MEAN_COLOUR = 16, 5  # and colours (0 to 255) on the grid of 8 by 8, at most and on average
ROWS_AT_ONCE = 512


def duplicates(seen: Mapping[str, Seen]) -> Iterator[Finding]:
    """`seen` by example. Near ones are told by hash and by colours both: simple pictures share a hash easily."""
    by_pixels = defaultdict(list)
    for name, one in seen.items():
        by_pixels[one.pixels].append(name)
    same = [names for names in by_pixels.values() if len(names) > 1]
    if same:
        yield Finding(
            "warning",
            "duplicates",
            f"{counted(sum(map(len, same)), 'picture')} are there more than once: {_groups(same)}",
            "keep one of each, or make it come more often by repeats",
            tuple(name for names in same for name in names),
        )
    firsts = [names[0] for names in by_pixels.values()]
    if near := _near([(name, seen[name]) for name in firsts]):
        yield Finding(
            "warning",
            "near duplicates",
            f"{counted(len(near), 'pair')} of pictures are nearly the same: {_groups(near)}",
            "keep the better one of each, unless the difference is what shall be learned",
            tuple(dict.fromkeys(name for names in near for name in names)),
        )


def _near(named: Sequence[tuple[str, Seen]]) -> list[list[str]]:
    if len(named) < 2:
        return []
    hashes = np.array([int(one.gradients, 16) for _, one in named], np.uint64)
    thumbs = np.array([np.frombuffer(bytes.fromhex(one.thumb), np.uint8) for _, one in named])
    shapes = np.array([one.width / one.height for _, one in named])
    found = []
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        bits = np.bitwise_count(hashes[start : start + ROWS_AT_ONCE, None] ^ hashes[None, :])
        rows, columns = np.nonzero(bits <= MAX_BITS)
        later = columns > rows + start
        for row, column in zip((rows[later] + start).tolist(), columns[later].tolist(), strict=True):
            if abs(np.log(shapes[row] / shapes[column])) < 0.1 and _alike(thumbs[row], thumbs[column]):
                found.append([named[row][0], named[column][0]])
    return found


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    difference = np.abs(one.astype(np.int16) - other)
    return bool(difference.max() <= MAX_COLOUR and difference.mean() <= MEAN_COLOUR)


def _groups(groups: Sequence[Sequence[str]], most: int = 4) -> str:
    more = f" and {len(groups) - most:,} more" if len(groups) > most else ""
    return "; ".join(" = ".join(names[:4]) for names in groups[:most]) + more
