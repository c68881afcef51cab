"""What nano is asked: samples of every task, each with its reference scenes, its target scene and its wordings.

Samples come in groups that share scenes, because a trainer encodes each scene once: pictures of two objects give samples
of text-to-image and edits. Combinations that `held_out` names never stand in a training scene, as reference or target;
evaluation asks for nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from random import Random
from typing import Literal

from kleinbild.nano.scenes import phrases
from kleinbild.nano.scenes.lexicon import BACKGROUNDS, COLORS, NOUNS, PAINTABLE, Noun, in_color
from kleinbild.nano.scenes.phrases import CENTER, CORNERS
from kleinbild.nano.scenes.render import Placed, Scene

Task = Literal[
    "one", "colored", "two", "three", "count",
    "background", "remove", "add", "replace", "move", "recolor",
    "object on background", "object into scene", "both objects",
]  # fmt: skip
Place = tuple[int, int]

ROW: tuple[Place, Place] = ((2, 0), (2, 4))  # side by side
COLUMN: tuple[Place, Place] = ((0, 2), (4, 2))  # one above the other
PAIRS = (ROW, COLUMN)
COUNTS: dict[int, tuple[Place, ...]] = {
    2: ROW,
    3: ((0, 2), (4, 0), (4, 4)),
    4: ((0, 0), (0, 4), (4, 0), (4, 4)),
}
SINGLES: tuple[Place, ...] = (CENTER, *ROW, *COLUMN, *CORNERS)
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
    vocabulary: tuple[Noun, ...] = NOUNS  # with repetitions: what stands there twice is drawn twice as often

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
            (a, b), (ground, other) = self.random.sample(self.codes, 2), self.backgrounds(2)
            if self.evaluation or not any(held_out(code, name) for code in (a, b) for name in (ground, other)):
                return a, b, ground, other

    def pair_of_objects(self) -> tuple[str, str, str, str]:
        """The same of two sprites that may stand together."""
        while True:
            a, b, ground, other = self.objects_on_backgrounds()
            if self.evaluation or not held_out(a, b):
                return a, b, ground, other

    def _different(self, count: int) -> list[Noun]:
        while len(set(nouns := self.random.sample(self.vocabulary, count))) < count:
            pass
        return nouns

    def _allowed(self, *names: str) -> bool:
        return held_out(*names) == self.evaluation


def pair_group(draw: Draw) -> Iterator[Sample]:
    """Two objects, the same on another background, one alone, and one with another: made and edited."""
    random = draw.random
    a, b, c = draw.nouns(3)
    ground = draw.free_background(a)  # where `a` stands alone
    other = draw.free_background()
    if other == ground:
        return
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
    for form in (phrases.two_beside, phrases.two_together):
        yield Sample("two", partial(form, a, b, ground), scene(ground, (a.code, ROW[0]), (b.code, ROW[1])))
    yield Sample("one", partial(phrases.one_object, a, at_a, ground), alone)
    yield Sample("background", partial(phrases.change_background, other), pair(b, other), (pair(b, ground),))
    yield Sample("background", partial(phrases.change_background, ground), pair(b, ground), (pair(b, other),))
    relation = {(2, 0): "left of", (2, 4): "right of", (0, 2): "above", (4, 2): "below"}[at_b]
    for kept, gone in ((b, c), (c, b)):
        yield Sample("remove", partial(phrases.remove, gone, at_b), alone, (pair(gone, ground),))
        yield Sample("add", partial(phrases.add, gone, at_b), pair(gone, ground), (alone,))
        yield Sample("replace", partial(phrases.replace, kept, gone), pair(gone, ground), (pair(kept, ground),))
    yield Sample("add", partial(phrases.add_to, b, a, relation), pair(b, ground), (alone,))


def single_group(draw: Draw) -> Iterator[Sample]:
    """One object: made anywhere, moved, on another background, removed, added to an empty one, replaced."""
    random = draw.random
    noun, ground = draw.noun_on_background()
    place, to = random.sample(SINGLES, 2)

    def alone(at: Place, thing: Noun = noun, background: str = ground) -> Scene:
        return scene(background, (thing.code, at))

    yield Sample("one", partial(phrases.one_somewhere, noun, ground), alone(CENTER))
    yield Sample("one", partial(phrases.one_object, noun, CENTER, ground), alone(CENTER))
    for here, there in ((place, to), (to, place)):
        yield Sample("one", partial(phrases.one_object, noun, here, ground), alone(here))
        yield Sample("move", partial(phrases.move, noun, there), alone(there), (alone(here),))
    (other,) = draw.backgrounds(1)
    if other != ground and not held_out(noun.code, other):
        moved = alone(place, background=other)
        yield Sample("one", partial(phrases.one_object, noun, place, other), moved)
        yield Sample("background", partial(phrases.change_background, ground), alone(place), (moved,))
        yield Sample("background", partial(phrases.change_background, other), moved, (alone(place),))
    yield Sample("remove", partial(phrases.remove, noun, place), scene(ground), (alone(place),))
    yield Sample("add", partial(phrases.add, noun, place), alone(place), (scene(ground),))
    rival = random.choice(draw.vocabulary)
    if rival != noun and not held_out(rival.code, ground):
        swapped = alone(place, rival)
        yield Sample("replace", partial(phrases.replace, noun, rival), swapped, (alone(place),))
        yield Sample("replace", partial(phrases.replace, rival, noun), alone(place), (swapped,))


def count_group(draw: Draw) -> Iterator[Sample]:
    """Two, three and four of a kind."""
    noun, ground = draw.noun_on_background()
    for count, places in COUNTS.items():
        target = scene(ground, *((noun.code, place) for place in places))
        yield Sample("count", partial(phrases.several, noun, count, ground), target)


def trio_group(draw: Draw) -> Iterator[Sample]:
    """Three different things; one removed, added, replaced; two of which one moves to where nothing is."""
    random = draw.random
    nouns = draw.trio()
    ground, other = draw.backgrounds(2)
    three = scene(ground, *((noun.code, at) for noun, at in zip(nouns, COUNTS[3], strict=True)))
    yield Sample("three", partial(phrases.three_objects, nouns, ground), three)
    elsewhere = Scene(other, three.placed)
    yield Sample("three", partial(phrases.three_objects, nouns, other), elsewhere)
    yield Sample("background", partial(phrases.change_background, other), elsewhere, (three,))
    gone = random.randrange(3)
    two = Scene(ground, three.placed[:gone] + three.placed[gone + 1 :])
    place = COUNTS[3][gone]
    yield Sample("remove", partial(phrases.remove, nouns[gone], place), two, (three,))
    yield Sample("add", partial(phrases.add, nouns[gone], place), three, (two,))
    a, b = nouns[:2]
    at_a, at_b, free = random.sample(tuple(CORNERS), 3)
    before, after = (scene(ground, (a.code, at), (b.code, at_b)) for at in (at_a, free))
    yield Sample("move", partial(phrases.move, a, free), after, (before,))
    yield Sample("move", partial(phrases.move, a, at_a), before, (after,))


def color_group(draw: Draw) -> Iterator[Sample]:
    """A thing in a colour, alone and beside another, and repainted."""
    random = draw.random
    noun, color, ground = draw.painted_on_background()
    other_color = random.choice([each for each in COLORS if each != color])
    painted, repainted = in_color(noun, color), in_color(noun, other_color)
    if not draw.evaluation and held_out(repainted.code, ground):
        return
    place = random.choice(SINGLES)
    centered = scene(ground, (painted.code, CENTER))
    yield Sample("colored", partial(phrases.one_somewhere, painted, ground), centered)
    yield Sample("colored", partial(phrases.one_object, painted, place, ground), scene(ground, (painted.code, place)))
    for was, now, named in ((repainted, painted, color), (painted, repainted, other_color)):
        here, there = (scene(ground, (each.code, place)) for each in (was, now))
        yield Sample("recolor", partial(phrases.recolor, noun, named), there, (here,))
    partner = random.choice(draw.vocabulary)
    if partner != noun and not any(held_out(each.code, partner.code) for each in (noun, painted, repainted)):
        first, second = random.choice(PAIRS)
        at, beside = (first, second) if random.random() < 0.5 else (second, first)
        here, there = (scene(ground, (each.code, at), (partner.code, beside)) for each in (repainted, painted))
        ordered = (painted, partner) if at == first else (partner, painted)
        yield Sample("two", partial(phrases.two_objects, *ordered, first[0] == second[0], ground), there)
        yield Sample("recolor", partial(phrases.recolor, noun, color), there, (here,))
        yield Sample("recolor", partial(phrases.recolor, noun, other_color), here, (there,))


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
    a, b, ground, other = draw.pair_of_objects()
    for code, rival in ((a, b), (b, a)):
        first, second = random.choice(PAIRS)
        free, taken = (first, second) if random.random() < 0.5 else (second, first)
        target = scene(other, (rival, taken), (code, free))
        references = scene(ground, (code, CENTER)), scene(other, (rival, taken))
        yield Sample("object into scene", partial(phrases.object_into_scene, free), target, references)
        yield Sample("object into scene", phrases.into_scene_anywhere, target, references)


def both_group(draw: Draw) -> Iterator[Sample]:
    """The objects of two pictures side by side, on a background that is named or on one of theirs."""
    a, b, ground, other = draw.pair_of_objects()
    (third,) = draw.backgrounds(1)
    one, two = scene(ground, (a, CENTER)), scene(other, (b, CENTER))

    def both(background: str, left: str, right: str) -> Scene:
        return scene(background, (left, ROW[0]), (right, ROW[1]))

    yield Sample("both objects", partial(phrases.both_objects, third), both(third, a, b), (one, two))
    yield Sample("both objects", partial(phrases.both_objects, third), both(third, b, a), (two, one))
    image, background = draw.random.choice(((1, ground), (2, other)))
    yield Sample("both objects", partial(phrases.both_objects_kept, image), both(background, a, b), (one, two))


GROUPS: tuple[tuple[float, Callable[[Draw], Iterator[Sample]]], ...] = (
    (0.24, pair_group),
    (0.18, single_group),
    (0.10, count_group),
    (0.10, trio_group),
    (0.14, color_group),
    (0.09, swap_group),
    (0.12, insert_group),
    (0.09, both_group),
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
    if len(codes) == 1:
        return held_out(*codes, each.background)
    return any(held_out(*pair) for pair in combinations(codes, 2))
