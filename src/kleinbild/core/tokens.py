"""How much of a model a picture takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the transformer saw: tokens of the prompt (without padding), of the references, and of the picture made."""

    text: int = 0
    references: int = 0
    picture: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.text + other.text, self.references + other.references, self.picture + other.picture)


NO_TOKENS = Tokens()
