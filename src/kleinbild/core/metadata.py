"""The record inside a picture: everything that is needed to make the same picture again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from kleinbild.core.sizes import Size


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """One reference picture: its file name ("" if it had none) and the SHA-256 of its file."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """How a picture was made. `version` is Kleinbild's, `fingerprint` the weights', `device` "cpu", "cuda" or "mps"."""

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

    def to_json(self) -> str:
        """One line of ASCII: it must survive every place where a picture format keeps text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Reads what `to_json` wrote. Raises ValueError for anything else, unknown and absent fields included."""
        try:
            values: dict[str, Any] = json.loads(text)
            size = Size(**values.pop("size"))
            references = tuple(ReferenceRecord(**reference) for reference in values.pop("references"))
            record = cls(**values, size=size, references=references)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a record of a picture: {error}") from error
        record._check_types()
        return record

    def _check_types(self) -> None:
        texts = [self.version, self.model, self.fingerprint, self.prompt, self.dtype, self.device]
        texts += [text for reference in self.references for text in (reference.name, reference.sha256)]
        counts = [self.seed, self.steps, self.size.width, self.size.height]
        numbers = type(self.guidance) in (int, float) and all(type(count) is int for count in counts)
        if not numbers or not all(isinstance(text, str) for text in texts):
            raise ValueError("not a record of a picture: a field has a value of another type")
