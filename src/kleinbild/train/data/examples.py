"""What a model is trained on, as values: examples, and the data set that they are found in. No torch, nothing is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One picture to learn, and what it is to be made from.

    `references` are in the order that the model sees them. `mask` is light where the loss counts. `repeats` is how often
    the example is drawn beside others. A `regularization` example shows what shall stay as it is. `name` tells it from
    all others of its data set, in words of the person who made that: the file, seen from the folder. `wordings` are other
    captions of the same: each time the example is drawn, it comes under one of all.
    """

    target: Path
    caption: str
    references: tuple[Path, ...] = ()
    mask: Path | None = None
    repeats: int = 1
    regularization: bool = False
    name: str = ""
    wordings: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        return self.caption, *self.wordings

    @property
    def files(self) -> tuple[Path, ...]:
        """All of its pictures, the target first."""
        return self.target, *self.references, *(() if self.mask is None else (self.mask,))


@dataclass(frozen=True, slots=True)
class Dataset:
    """`layout` is how the data lay there, in words; `notes` are what the person who gave them should know."""

    examples: tuple[Example, ...]
    layout: str
    notes: tuple[str, ...] = ()

    @property
    def num_repeated(self) -> int:
        """How many examples a round of all has."""
        return sum(example.repeats for example in self.examples)
