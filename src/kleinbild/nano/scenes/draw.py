"""What the samples of a task are drawn from: nouns, backgrounds, places and sizes of pictures.

Combinations that `held_out` names are kept from training: its `Draw` gives none of them, that of evaluation nothing else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import combinations
from random import Random

from kleinbild.nano.scenes.lexicon import BACKGROUNDS, COLORS, NOUNS, PAINTABLE, Noun, in_color
from kleinbild.nano.scenes.phrases import CENTER, CORNERS, Place
from kleinbild.nano.scenes.render import NATIVE, Grid
from kleinbild.nano.scenes.sprites import NUM_TURNS, turned_code

ROW: tuple[Place, Place] = ((1, 0), (1, 2))  # side by side
COLUMN: tuple[Place, Place] = ((0, 1), (2, 1))  # one above the other
PAIRS = (ROW, COLUMN)
OPEN_PLACES: tuple[Place, ...] = (CENTER, *ROW, *COLUMN)  # where one thing may be if nothing is said
SINGLES: tuple[Place, ...] = (*OPEN_PLACES, *CORNERS)
WIDE, TALL, SMALL = (8, 12), (12, 8), (6, 6)
HELD_OUT_SHARE = 10  # one combination in ten


def held_out(*names: str) -> bool:
    """Whether this combination (two nouns' codes, or a noun's code and a background) is kept from training."""
    return zlib.crc32("|".join(sorted(names)).encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws nouns and backgrounds: either only combinations kept for evaluation, or none of them."""

    random: Random
    evaluation: bool
    codes: tuple[str, ...]  # sprites that may be "the object of image 1": named and unnamed
    vocabulary: tuple[Noun, ...] = NOUNS  # with repetitions: what stands there twice is drawn twice as often
    grids: tuple[Grid, ...] = (NATIVE,)  # likewise
    strange: float = 0.0  # share of the objects that are turned and in other hues: as none that can be named

    def grid(self, *, several: bool) -> Grid:
        """A picture's size, of those with room for several things or of all."""
        return self.random.choice([grid for grid in self.grids if not several or grid != SMALL])

    def nouns(self, count: int) -> list[Noun]:
        """`count` different nouns; the first with each of the others is an allowed pair."""
        while True:
            nouns = self._different(count)
            if all(self._allowed(nouns[0].code, other.code) for other in nouns[1:]):
                return nouns

    def trio(self) -> list[Noun]:
        """Three different nouns: no pair of them is kept for evaluation (in training), or one is (in evaluation)."""
        while True:
            nouns = self._different(3)
            if any(held_out(a.code, b.code) for a, b in combinations(nouns, 2)) == self.evaluation:
                return nouns

    def backgrounds(self, count: int) -> list[str]:
        return [background.name for background in self.random.sample(BACKGROUNDS, count)]

    def free_background(self, *nouns: Noun) -> str:
        """A background; in training one on which each of the nouns may stand alone."""
        while True:
            (background,) = self.backgrounds(1)
            if self.evaluation or not any(held_out(noun.code, background) for noun in nouns):
                return background

    def noun_on_background(self) -> tuple[Noun, str]:
        while True:
            noun, background = self.random.choice(self.vocabulary), self.random.choice(BACKGROUNDS).name
            if self._allowed(noun.code, background):
                return noun, background

    def painted_on_background(self) -> tuple[Noun, str, str]:
        """A noun that can be painted, a colour, a background."""
        while True:
            noun, color = self.random.choice(PAINTABLE), self.random.choice(tuple(COLORS))
            background = self.random.choice(BACKGROUNDS).name
            if self._allowed(in_color(noun, color).code, background):
                return noun, color, background

    def objects_on_backgrounds(self) -> tuple[str, str, str, str]:
        """Two sprites and two backgrounds, every combination allowed (in training) or the first (in evaluation)."""
        while True:
            a, b = map(self._strange, self.random.sample(self.codes, 2))
            ground, other = self.backgrounds(2)
            if self.evaluation or not any(held_out(code, name) for code in (a, b) for name in (ground, other)):
                return a, b, ground, other

    def pair_of_objects(self) -> tuple[str, str, str, str]:
        """The same of two sprites that may stand together."""
        while True:
            a, b, ground, other = self.objects_on_backgrounds()
            if self.evaluation or not held_out(a, b):
                return a, b, ground, other

    def _strange(self, code: str) -> str:
        if self.random.random() >= self.strange:
            return code
        return turned_code(code, self.random.randrange(NUM_TURNS), self.random.randrange(0, 360, 15))

    def single_place(self) -> Place:
        """Where a picture's only thing stands: most are in the middle."""
        return CENTER if self.random.random() < 0.6 else self.random.choice(SINGLES[1:])

    def two_places(self) -> tuple[Place, Place]:
        """Where two things stand, side by side or one above the other, in either order."""
        first, second = self.random.choice(PAIRS)
        return (first, second) if self.random.random() < 0.5 else (second, first)

    def _different(self, count: int) -> list[Noun]:
        while len(set(nouns := self.random.sample(self.vocabulary, count))) < count:
            pass
        return nouns

    def _allowed(self, *names: str) -> bool:
        return held_out(*names) == self.evaluation
