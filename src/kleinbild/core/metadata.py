"""The record inside a picture: everything that is needed to make the same picture again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from kleinbild.core.sizes import Size


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """One picture given, reference or mask: its file name ("" if it had none) and the SHA-256 of its file."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """An adapter that a picture was made with: its name, how strongly it was applied, and the SHA-256 of its file."""

    name: str
    scale: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """How a picture was made. `version` is Kleinbild's, `fingerprint` the weights', `device` "cpu", "cuda" or "mps".

    `input_size`: the size is not one asked for but the first reference's own (or the canvas's), for which that was
    padded or scaled, or had a mask. `canvas` and `place` (left, top) say where the first reference was put.
    `cache_references`: that was asked for, of a model which does not do it by itself. `revised_prompt`: what the model read
    where that is more than the prompt; it follows from prompt and seed.
    """

    version: str
    model: str
    fingerprint: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    size: Size
    dtype: str
    device: str
    references: tuple[ReferenceRecord, ...] = ()
    input_size: bool = False
    mask: ReferenceRecord | None = None
    canvas: Size | None = None
    place: tuple[int, int] | None = None
    cache_references: bool = False
    adapters: tuple[AdapterRecord, ...] = ()
    revised_prompt: str = ""

    def to_json(self) -> str:
        """One line of ASCII: it must survive every place where a picture format keeps text.

        What only some pictures have is left out of all others: versions that know nothing of it read those, too.
        """
        values = asdict(self)
        return json.dumps({name: value for name, value in values.items() if value or name not in _OF_SOME})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Reads what `to_json` wrote. Raises ValueError for anything else, unknown and absent fields included."""
        try:
            values: dict[str, Any] = json.loads(text)
            size = Size(**values.pop("size"))
            references = tuple(ReferenceRecord(**reference) for reference in values.pop("references"))
            for name, read in _OF_SOME.items():
                if name in values:
                    values[name] = read(values[name])
            record = cls(**values, size=size, references=references)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a record of a picture: {error}") from error
        record._check_types()
        return record

    def _check_types(self) -> None:
        texts = [self.version, self.model, self.fingerprint, self.prompt, self.dtype, self.device]
        files = [*self.references, *([self.mask] if self.mask else [])]
        texts += [text for file in files for text in (file.name, file.sha256)]
        texts += [text for used in self.adapters for text in (used.name, used.sha256)]
        counts = [self.seed, self.steps, self.size.width, self.size.height, *(self.place or ())]
        counts += [self.canvas.width, self.canvas.height] if self.canvas else []
        numbers = [self.guidance, *(used.scale for used in self.adapters)]
        is_right = all(type(number) in (int, float) for number in numbers) and all(
            type(count) is int for count in counts
        )
        if not is_right or not all(isinstance(text, str) for text in texts):
            raise ValueError("not a record of a picture: a field has a value of another type")


def _true(value: Any) -> bool:
    if value is not True:
        raise ValueError("a field has a value of another type")
    return True


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a field has a value of another type")
    return value


def _pair(values: Any) -> tuple[int, int]:
    left, top = values
    return left, top


def _adapters(values: Any) -> tuple[AdapterRecord, ...]:
    """Their names are names here, too: a record may come from anyone, and no path in it leads elsewhere."""
    used = tuple(AdapterRecord(**each) for each in values)
    if not used or any("/" in each.name or "\\" in each.name for each in used):
        raise ValueError("not a list of adapters")
    return used


_OF_SOME: dict[str, Callable[[Any], Any]] = {
    "input_size": _true,
    "mask": lambda values: ReferenceRecord(**values),
    "canvas": lambda values: Size(**values),
    "place": _pair,
    "cache_references": _true,
    "adapters": _adapters,
    "revised_prompt": _text,
}
"""The fields that stand only in the records that need them, and how each is read."""
