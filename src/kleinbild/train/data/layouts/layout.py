"""What a layout is: how it is told from others, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import Folder, counted, named
from kleinbild.train.data.stems import Stems


@dataclass(frozen=True, slots=True)
class Asked:
    """`root_caption` is for pictures that have none. Paths in files lead no further than `within`, if that is given."""

    root_caption: str = ""
    within: Path | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """`tree` is an example, `seen` what tells of it in a folder: "" if nothing does."""

    name: str
    tree: str
    seen: Callable[[Folder], str]
    read: Callable[[Folder, Asked], Reading]


def about(examples: Iterable[Example], what: str, stems: Iterable[Stems] = ()) -> tuple[str, ...]:
    """Notes on what was found: how many, with how much beside them, and what was left aside."""
    examples = tuple(examples)
    num_masks = sum(example.mask is not None for example in examples)
    numbers = sorted({len(example.references) for example in examples})
    notes = [f"{counted(len(examples), 'picture')} {what}" + (f", {counted(num_masks, 'mask')}" if num_masks else "")]
    if numbers[-1:] != [0] and numbers:
        notes.append(f"{' or '.join(map(str, numbers))} references a picture")
    if without := [example.name for example in examples if not example.caption]:
        notes.append(f"{counted(len(without), 'picture')} without a caption: {named(without)}")
    if spare := [stem for each in stems for stem in each.spare]:
        notes.append(f"{counted(len(spare), 'text')} without a picture, not used: {named(spare)}")
    return tuple(notes)
