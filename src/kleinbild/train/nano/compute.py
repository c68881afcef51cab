"""What a stage of nano's training computes with: the device, how many pictures a step, and who draws them.

On two cores a step takes a second and drawing its pictures a hundredth of that. On a GPU a step of ten times as many takes a
tenth of a second, and drawing them more than that, so other processes draw ahead.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

AHEAD = 4  # steps that each process draws ahead
GPU_SCALE = 8


@dataclass(frozen=True, slots=True)
class Compute:
    """`scale`: pictures in a step, as a multiple of a stage's own number. `workers`: processes that draw them; with 0 the one
    that trains draws, too. The pictures of a step do not depend on it."""

    device: torch.device
    scale: int = 1
    workers: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Compute:
        """What suits the device: a GPU is fed by all cores."""
        if device.type != "cuda":
            return cls(device)
        return cls(device, GPU_SCALE, max(1, (os.cpu_count() or 1) - 1))

    def scaled(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Numbers of pictures as this takes them."""
        return tuple(self.scale * size for size in sizes)

    def drawn(self, draw: Callable[[int], T], steps: range) -> Iterator[T]:
        """What `draw` gives for each step, in order.

        With workers it must not touch the device, and give what can be pickled (arrays, not tensors).
        """
        if not self.workers:
            return map(draw, steps)
        loader: DataLoader[T] = DataLoader(
            _Steps(draw, steps),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",  # the pool is large, and shared like this
        )
        return iter(loader)


class _Steps(Dataset[T]):
    def __init__(self, draw: Callable[[int], T], steps: range) -> None:
        self._draw, self._steps = draw, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> T:
        return self._draw(self._steps[index])


def _as_it_is(drawn: T) -> T:
    return drawn


def add_compute(parser: argparse.ArgumentParser) -> None:
    """The options that say what a stage computes with."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--scale", type=int, help=f"times the usual pictures in a step; default: 1, on a GPU {GPU_SCALE}"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that draw ahead; default: none, with a GPU as many as cores"
    )


def compute_of(arguments: argparse.Namespace) -> Compute:
    given = {name: value for name in ("scale", "workers") if (value := getattr(arguments, name)) is not None}
    return replace(Compute.on(torch.device(arguments.device)), **given)
