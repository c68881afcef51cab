"""What nano is asked: samples of every task, each with its reference scenes, its target scene and its wordings.

Samples come in groups that share scenes, because a trainer encodes each scene once: four pictures of two objects give
four samples of text-to-image and eight edits. Combinations that `held_out` names never stand in a training scene, as
reference or target; evaluation asks for nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from kleinbild.nano.scenes import phrases
from kleinbild.nano.scenes.lexicon import BACKGROUNDS, NOUNS, Noun
from kleinbild.nano.scenes.phrases import CENTER
from kleinbild.nano.scenes.render import Placed, Scene

Task = Literal[
    "one", "two", "count", "background", "remove", "add", "replace", "object on background", "object into scene"
]
Place = tuple[int, int]

PAIRS: tuple[tuple[Place, Place], ...] = (((2, 0), (2, 4)), ((0, 2), (4, 2)))  # side by side; one above the other
COUNTS: dict[int, tuple[Place, ...]] = {
    2: ((2, 0), (2, 4)),
    3: ((0, 2), (4, 0), (4, 4)),
    4: ((0, 0), (0, 4), (4, 0), (4, 4)),
}
SINGLES: tuple[Place, ...] = (CENTER, (2, 0), (2, 4), (0, 2), (4, 2), (0, 0), (0, 4), (4, 0), (4, 4))
HELD_OUT_SHARE = 10  # one combination in ten


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to ask. `wording` draws one of the sentences that ask for it."""

    task: Task
    wording: Callable[[Random], str]
    target: Scene
    references: tuple[Scene, ...] = ()


def held_out(*names: str) -> bool:
    """Whether this combination (two nouns' codes, or a noun's code and a background) is kept from training."""
    return zlib.crc32("|".join(sorted(names)).encode()) % HELD_OUT_SHARE == 0


def scene(background: str, *placed: tuple[str, Place]) -> Scene:
    return Scene(background, tuple(Placed(code, *place) for code, place in placed))


@dataclass(frozen=True, slots=True)
class Draw:
    """Draws nouns and backgrounds: either only combinations kept for evaluation, or none of them."""

    random: Random
    evaluation: bool
    codes: tuple[str, ...]  # sprites that may be "the object of image 1": named and unnamed

    def nouns(self, count: int) -> list[Noun]:
        """`count` different nouns; the first with each of the others is an allowed pair."""
        while True:
            nouns = self.random.sample(NOUNS, count)
            if all(self._allowed(nouns[0].code, other.code) for other in nouns[1:]):
                return nouns

    def backgrounds(self, count: int) -> list[str]:
        return [background.name for background in self.random.sample(BACKGROUNDS, count)]

    def noun_on_background(self) -> tuple[Noun, str]:
        while True:
            noun, background = self.random.choice(NOUNS), self.random.choice(BACKGROUNDS).name
            if self._allowed(noun.code, background):
                return noun, background

    def objects_on_backgrounds(self) -> tuple[str, str, str, str]:
        """Two sprites and two backgrounds, every combination allowed (in training) or the first (in evaluation)."""
        while True:
            (a, b), (ground, other) = self.random.sample(self.codes, 2), self.backgrounds(2)
            if self.evaluation or not any(held_out(code, name) for code in (a, b) for name in (ground, other)):
                return a, b, ground, other

    def _allowed(self, *names: str) -> bool:
        return held_out(*names) == self.evaluation


def pair_group(draw: Draw) -> Iterator[Sample]:
    """Two objects, the same on another background, one alone, and one with another: made and edited."""
    random = draw.random
    a, b, c = draw.nouns(3)
    ground, other = draw.backgrounds(2)
    while not draw.evaluation and held_out(a.code, ground):  # `a` stands alone there
        ground, other = draw.backgrounds(2)
    first, second = random.choice(PAIRS)
    beside = first[0] == second[0]
    at_a, at_b = (first, second) if random.random() < 0.5 else (second, first)

    def pair(partner: Noun, background: str) -> Scene:
        return scene(background, (a.code, at_a), (partner.code, at_b))

    def two(partner: Noun, background: str) -> Callable[[Random], str]:
        ordered = (a, partner) if at_a == first else (partner, a)
        return partial(phrases.two_objects, *ordered, beside, background)

    alone = scene(ground, (a.code, at_a))
    yield Sample("two", two(b, ground), pair(b, ground))
    yield Sample("two", two(b, other), pair(b, other))
    yield Sample("two", two(c, ground), pair(c, ground))
    yield Sample("one", partial(phrases.one_object, a, at_a, ground), alone)
    yield Sample("background", partial(phrases.change_background, other), pair(b, other), (pair(b, ground),))
    yield Sample("background", partial(phrases.change_background, ground), pair(b, ground), (pair(b, other),))
    for kept, gone in ((b, c), (c, b)):
        yield Sample("remove", partial(phrases.remove, gone, at_b), alone, (pair(gone, ground),))
        yield Sample("add", partial(phrases.add, gone, at_b), pair(gone, ground), (alone,))
        yield Sample("replace", partial(phrases.replace, kept, gone), pair(gone, ground), (pair(kept, ground),))


def single_group(draw: Draw) -> Iterator[Sample]:
    """One object: made anywhere, moved to another background, removed, added to an empty one, replaced."""
    random = draw.random
    noun, ground = draw.noun_on_background()
    place = CENTER if random.random() < 0.5 else random.choice(SINGLES[1:])
    alone, empty = scene(ground, (noun.code, place)), scene(ground)
    yield Sample("one", partial(phrases.one_object, noun, place, ground), alone)
    (other,) = draw.backgrounds(1)
    if other != ground and not held_out(noun.code, other):
        moved = scene(other, (noun.code, place))
        yield Sample("one", partial(phrases.one_object, noun, place, other), moved)
        yield Sample("background", partial(phrases.change_background, ground), alone, (moved,))
        yield Sample("background", partial(phrases.change_background, other), moved, (alone,))
    yield Sample("remove", partial(phrases.remove, noun, place), empty, (alone,))
    yield Sample("add", partial(phrases.add, noun, place), alone, (empty,))
    rival = random.choice(NOUNS)
    if rival != noun and not held_out(rival.code, ground):
        swapped = scene(ground, (rival.code, place))
        yield Sample("replace", partial(phrases.replace, noun, rival), swapped, (alone,))
        yield Sample("replace", partial(phrases.replace, rival, noun), alone, (swapped,))


def count_group(draw: Draw) -> Iterator[Sample]:
    """Two, three and four of a kind."""
    noun, ground = draw.noun_on_background()
    for count, places in COUNTS.items():
        target = scene(ground, *((noun.code, place) for place in places))
        yield Sample("count", partial(phrases.several, noun, count, ground), target)


def swap_group(draw: Draw) -> Iterator[Sample]:
    """The object of image 1 on the background of image 2; both pictures show an object of their own."""
    a, b, ground, other = draw.objects_on_backgrounds()
    place = CENTER if draw.random.random() < 0.7 else draw.random.choice(SINGLES[1:])
    for code, rival in ((a, b), (b, a)):
        for here, there in ((ground, other), (other, ground)):
            references = scene(here, (code, place)), scene(there, (rival, place))
            yield Sample("object on background", phrases.object_on_background, scene(there, (code, place)), references)


def insert_group(draw: Draw) -> Iterator[Sample]:
    """The object of image 1, alone in the middle, added to the scene of image 2 at the free place."""
    random = draw.random
    while True:
        a, b, ground, other = draw.objects_on_backgrounds()
        if draw.evaluation or not held_out(a, b):
            break
    for code, rival in ((a, b), (b, a)):
        first, second = random.choice(PAIRS)
        free, taken = (first, second) if random.random() < 0.5 else (second, first)
        target = scene(other, (rival, taken), (code, free))
        references = scene(ground, (code, CENTER)), scene(other, (rival, taken))
        yield Sample("object into scene", partial(phrases.object_into_scene, free), target, references)


GROUPS: tuple[tuple[float, Callable[[Draw], Iterator[Sample]]], ...] = (
    (0.32, pair_group),
    (0.20, single_group),
    (0.14, count_group),
    (0.14, swap_group),
    (0.20, insert_group),
)


def samples(draw: Draw) -> Iterator[Sample]:
    """An endless stream of samples, group by group."""
    weights, groups = zip(*GROUPS, strict=True)
    while True:
        (group,) = draw.random.choices(groups, weights)
        yield from group(draw)


def is_held_out(sample: Sample) -> bool:
    """Whether the sample shows a combination that training never does."""
    return any(_scene_held_out(each) for each in (sample.target, *sample.references))


def _scene_held_out(each: Scene) -> bool:
    codes = sorted({item.code for item in each.placed})
    return held_out(*codes) if len(codes) == 2 else held_out(*codes, each.background) if codes else False
