"""Which examples a step sees: a function of the seed and the step, so that a run that stops goes on with the same ones.

Samples are numbered through the whole run. Every round shows each example as often as it is to be repeated, in an order
of its own; between them come examples for regularization, evenly, as many as their share says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from kleinbild.train.data.examples import Example


@dataclass(frozen=True, slots=True)
class Order:
    """`learned` and `regularization`: the numbers of the examples of each kind, repeated ones several times."""

    seed: int
    learned: tuple[int, ...]
    regularization: tuple[int, ...] = ()
    share: float = 0.0

    def example(self, sample: int) -> int:
        """The number of the example that sample number `sample` of the run is made from."""
        before, after = int(sample * self.share), int((sample + 1) * self.share)
        if after > before:
            return _at(self.regularization, f"{self.seed}-regularization", before)
        return _at(self.learned, f"{self.seed}-order", sample - before)


def order_of(examples: Sequence[Example], seed: int, share: float) -> Order:
    learned = tuple(i for i, each in enumerate(examples) if not each.regularization for _ in range(each.repeats))
    kept = tuple(i for i, each in enumerate(examples) if each.regularization for _ in range(each.repeats))
    return Order(seed, learned, kept, share if kept else 0.0)


def _at(members: tuple[int, ...], stream: str, position: int) -> int:
    number, place = divmod(position, len(members))
    return members[_shuffled(len(members), f"{stream}-{number}")[place]]


@lru_cache(maxsize=4)  # the present round and the next, of both kinds
def _shuffled(length: int, seed: str) -> tuple[int, ...]:
    order = list(range(length))
    Random(seed).shuffle(order)
    return tuple(order)
