"""What nano is asked: samples of every task, each with its reference scenes, its target scene and its wordings.

Samples come in groups that share scenes, because a trainer encodes each scene once: pictures of two objects give samples
of text-to-image and edits. Combinations that `held_out` names never stand in a training scene, as reference or target;
evaluation asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from operator import itemgetter
from random import Random
from typing import Literal

from kleinbild.nano.scenes import phrases
from kleinbild.nano.scenes.draw import COLUMN, OPEN_PLACES, PAIRS, ROW, SINGLES, SMALL, TALL, WIDE, Draw, held_out
from kleinbild.nano.scenes.lexicon import COLORS, PAINTABLE, SCENIC, SIZES, Noun, in_color, in_size
from kleinbild.nano.scenes.phrases import CENTER, CORNERS, Place
from kleinbild.nano.scenes.render import CELL, NATIVE, TOKEN, Grid, Placed, Scene

Task = Literal[
    "one", "colored", "sized", "big", "two", "three", "count", "bare",
    "background", "remove", "add", "replace", "move", "recolor", "vary",
    "object on background", "object into scene", "both objects",
]  # fmt: skip

TOGETHER = (*PAIRS, ROW[::-1], COLUMN[::-1])  # all ways that two can stand
PEAK: tuple[Place, ...] = ((0, 1), (2, 0), (2, 2))  # one above two
DIP: tuple[Place, ...] = ((2, 1), (0, 0), (0, 2))  # one below two
COUNTS: dict[int, tuple[tuple[Place, ...], ...]] = {2: PAIRS, 3: (PEAK, DIP), 4: (tuple(CORNERS),)}  # ways to stand
GRIDS: tuple[Grid, ...] = (NATIVE,) * 6 + (WIDE, TALL, SMALL)  # of training pictures, as often as they stand here


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to ask. `wording` draws one of the sentences that ask for it.

    `right` are all scenes that the sentences allow; the target, which is the first of them, is what training shows.
    """

    task: Task
    wording: Callable[[Random], str]
    target: Scene
    references: tuple[Scene, ...] = ()
    right: tuple[Scene, ...] = ()

    def __post_init__(self) -> None:
        if not self.right:
            object.__setattr__(self, "right", (self.target,))


def readable(sample: Sample, random: Random, count: Callable[[str], int], most: int) -> str:
    """One of its wordings; one in a hundred thousand is longer than a model reads (`most` tokens) and is drawn again."""
    while count(prompt := sample.wording(random)) > most:
        pass
    return prompt


def opened(
    task: Task, wording: Callable[[Random], str], right: Iterable[Scene], references: tuple[Scene, ...] = ()
) -> Sample:
    """A sample whose words leave open which of these it is: taught as the first."""
    ways = tuple(right)
    return Sample(task, wording, ways[0], references, ways)


def scene(background: str, *placed: tuple[str, Place], grid: Grid = NATIVE) -> Scene:
    """Things from back to front, each at its place in a picture of this size."""
    rows, columns = ((tokens - CELL // TOKEN) // 2 for tokens in grid)
    return Scene(background, tuple(Placed(code, rows * row, columns * column) for code, (row, column) in placed), grid)


def somewhere(noun: Noun, backgrounds: Iterable[str], grid: Grid) -> Iterator[Scene]:
    """All pictures of one thing of which neither place nor size is said."""
    for background in backgrounds:
        for thing, size in ((noun, ""), *((in_size(noun, size), size) for size in SIZES)):
            for place in places_of(size):
                yield scene(background, (thing.code, place), grid=grid)


def places_of(size: str) -> tuple[Place, ...]:
    """Where a thing of this size may be if nothing is said; for a big one there is room in the middle only."""
    return (CENTER,) if size == "big" else OPEN_PLACES


def two_objects(one: tuple[Noun, Place], other: tuple[Noun, Place], background: str | None) -> Callable[[Random], str]:
    """The sentences for two things at two places, which name the left or upper one first."""
    (first, at), (second, beside) = sorted((one, other), key=itemgetter(1))
    return partial(phrases.two_objects, first, second, at[0] == beside[0], background)


def pair_group(draw: Draw) -> Iterator[Sample]:
    """Two objects, the same on another background, one alone, and one with another: made and edited."""
    grid = draw.grid(several=True)
    a, b, c = draw.nouns(3)
    ground = draw.free_background(a)  # where `a` stands alone
    other = draw.free_background()
    if other == ground:
        return
    at_a, at_b = draw.two_places()

    def pair(partner: Noun, background: str) -> Scene:
        return scene(background, (a.code, at_a), (partner.code, at_b), grid=grid)

    def two(partner: Noun, background: str | None) -> Callable[[Random], str]:
        return two_objects((a, at_a), (partner, at_b), background)

    def arranged(places: tuple[Place, Place], background: str = ground) -> Scene:
        return scene(background, (a.code, places[0]), (b.code, places[1]), grid=grid)

    alone = scene(ground, (a.code, at_a), grid=grid)
    yield Sample("two", two(b, ground), pair(b, ground))
    yield Sample("two", two(b, other), pair(b, other))
    yield Sample("two", two(c, ground), pair(c, ground))
    yield opened("two", partial(phrases.two_beside, a, b, ground), map(arranged, (ROW, ROW[::-1])))
    yield opened("two", partial(phrases.two_together, a, b, ground), map(arranged, TOGETHER))
    if draw.evaluation:  # training names a background
        yield opened("bare", two(b, None), (pair(b, behind) for behind in SCENIC))
        ways = (arranged(places, behind) for places in TOGETHER for behind in SCENIC)
        yield opened("bare", partial(phrases.two_together, a, b, None), ways)
    yield Sample("one", partial(phrases.one_object, a, at_a, ground), alone)
    yield Sample("background", partial(phrases.change_background, other), pair(b, other), (pair(b, ground),))
    yield Sample("background", partial(phrases.change_background, ground), pair(b, ground), (pair(b, other),))
    yield Sample("vary", phrases.vary, pair(b, ground), (pair(b, ground),))
    relation = {ROW[0]: "left of", ROW[1]: "right of", COLUMN[0]: "above", COLUMN[1]: "below"}[at_b]
    for kept, gone in ((b, c), (c, b)):
        yield Sample("remove", partial(phrases.remove, gone, at_b), alone, (pair(gone, ground),))
        yield Sample("add", partial(phrases.add, gone, at_b), pair(gone, ground), (alone,))
        yield Sample("replace", partial(phrases.replace, kept, gone), pair(gone, ground), (pair(kept, ground),))
    yield Sample("add", partial(phrases.add_to, b, a, relation), pair(b, ground), (alone,))
    yield Sample("add", partial(phrases.add, b, None), pair(b, ground), (alone,))


def single_group(draw: Draw) -> Iterator[Sample]:
    """One object: made anywhere, moved, on another background, removed, added to an empty one, replaced, joined."""
    random, grid = draw.random, draw.grid(several=False)
    noun, ground = draw.noun_on_background()
    place, to = random.sample(SINGLES, 2)

    def alone(at: Place, background: str = ground, thing: Noun = noun) -> Scene:
        return scene(background, (thing.code, at), grid=grid)

    yield Sample("one", partial(phrases.one_object, noun, CENTER, ground), alone(CENTER))
    yield opened("one", partial(phrases.one_somewhere, noun, ground), somewhere(noun, (ground,), grid))
    if draw.evaluation:
        ways = somewhere(noun, SCENIC, grid)
        yield opened("bare", partial(phrases.one_somewhere, noun, None), ways)
        yield opened(
            "bare", partial(phrases.one_object, noun, place, None), (alone(place, behind) for behind in SCENIC)
        )
    for here, there in ((place, to), (to, place)):
        yield Sample("one", partial(phrases.one_object, noun, here, ground), alone(here))
        yield Sample("move", partial(phrases.move, noun, there), alone(there), (alone(here),))
    (other,) = draw.backgrounds(1)
    if other != ground and not held_out(noun.code, other):
        moved = alone(place, other)
        yield Sample("one", partial(phrases.one_object, noun, place, other), moved)
        yield Sample("background", partial(phrases.change_background, ground), alone(place), (moved,))
        yield Sample("background", partial(phrases.change_background, other), moved, (alone(place),))
    empty = scene(ground, grid=grid)
    yield Sample("remove", partial(phrases.remove, noun, place), empty, (alone(place),))
    yield Sample("add", partial(phrases.add, noun, place), alone(place), (empty,))
    yield opened("add", partial(phrases.add, noun, None), map(alone, OPEN_PLACES), (empty,))
    yield Sample("vary", phrases.vary, alone(place), (alone(place),))
    rival = random.choice(draw.vocabulary)
    if rival != noun and not held_out(rival.code, ground):
        swapped = alone(place, ground, rival)
        yield Sample("replace", partial(phrases.replace, noun, rival), swapped, (alone(place),))
        yield Sample("replace", partial(phrases.replace, rival, noun), alone(place), (swapped,))
        if grid != SMALL and not held_out(noun.code, rival.code):  # beside what stands in the middle, or before it
            yield from _joined(draw, noun, rival, alone(CENTER), grid)


def _joined(draw: Draw, noun: Noun, rival: Noun, before: Scene, grid: Grid) -> Iterator[Sample]:
    place = draw.random.choice(SINGLES[1:])
    after = scene(before.background, (noun.code, CENTER), (rival.code, place), grid=grid)
    yield Sample("add", partial(phrases.add, rival, place), after, (before,))
    yield Sample("remove", partial(phrases.remove, rival, None), before, (after,))


def count_group(draw: Draw) -> Iterator[Sample]:
    """Two, three and four of a kind."""
    noun, ground = draw.noun_on_background()
    grid = draw.grid(several=True)

    def several(places: tuple[Place, ...], background: str = ground) -> Scene:
        return scene(background, *((noun.code, place) for place in places), grid=grid)

    for count, ways in COUNTS.items():
        yield opened("count", partial(phrases.several, noun, count, ground), map(several, ways))
    if draw.evaluation:
        count, ways = draw.random.choice(tuple(COUNTS.items()))
        scenes = (several(places, behind) for places in ways for behind in SCENIC)
        yield opened("bare", partial(phrases.several, noun, count, None), scenes)


def trio_group(draw: Draw) -> Iterator[Sample]:
    """Three different things; one removed, added, replaced; two of which one moves to where nothing is."""
    random, grid = draw.random, draw.grid(several=True)
    nouns = draw.trio()
    ground, other = draw.backgrounds(2)

    def trio(places: tuple[Place, ...], background: str = ground) -> Scene:
        return scene(background, *((noun.code, at) for noun, at in zip(nouns, places, strict=True)), grid=grid)

    ways = COUNTS[3]
    places = random.choice(ways)
    three, elsewhere = trio(places), trio(places, other)
    for behind in (ground, other):
        scenes = (trio(each, behind) for each in ways)
        yield opened("three", partial(phrases.three_objects, nouns, behind), scenes)
    if draw.evaluation:
        scenes = (trio(each, behind) for each in ways for behind in SCENIC)
        yield opened("bare", partial(phrases.three_objects, nouns, None), scenes)
    for form, stands in ((phrases.one_above_two, PEAK), (phrases.one_below_two, DIP)):
        yield Sample("three", partial(form, nouns, ground), trio(stands))
    yield Sample("background", partial(phrases.change_background, other), elsewhere, (three,))
    yield Sample("vary", phrases.vary, three, (three,))
    gone = random.randrange(3)
    two = Scene(ground, three.placed[:gone] + three.placed[gone + 1 :], grid)
    yield Sample("remove", partial(phrases.remove, nouns[gone], places[gone]), two, (three,))
    yield Sample("add", partial(phrases.add, nouns[gone], places[gone]), three, (two,))
    a, b = nouns[:2]
    at_a, at_b, free = random.sample(tuple(CORNERS), 3)
    before, after = (scene(ground, (a.code, at), (b.code, at_b), grid=grid) for at in (at_a, free))
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
    grid, place = draw.grid(several=False), random.choice(SINGLES)

    def alone(thing: Noun, at: Place, background: str = ground) -> Scene:
        return scene(background, (thing.code, at), grid=grid)

    for at in (CENTER, place):
        yield Sample("colored", partial(phrases.one_object, painted, at, ground), alone(painted, at))
    yield opened("colored", partial(phrases.one_somewhere, painted, ground), somewhere(painted, (ground,), grid))
    if draw.evaluation:
        ways = somewhere(painted, SCENIC, grid)
        yield opened("bare", partial(phrases.one_somewhere, painted, None), ways)
    for was, now, named in ((repainted, painted, color), (painted, repainted, other_color)):
        yield Sample("recolor", partial(phrases.recolor, noun, named), alone(now, place), (alone(was, place),))
    partner = random.choice(draw.vocabulary)
    if (
        grid == SMALL
        or partner == noun
        or any(held_out(each.code, partner.code) for each in (noun, painted, repainted))
    ):
        return
    at, beside = draw.two_places()
    here, there = (scene(ground, (each.code, at), (partner.code, beside), grid=grid) for each in (repainted, painted))
    yield Sample("two", two_objects((painted, at), (partner, beside), ground), there)
    yield Sample("recolor", partial(phrases.recolor, noun, color), there, (here,))
    yield Sample("recolor", partial(phrases.recolor, noun, other_color), here, (there,))


def size_group(draw: Draw) -> Iterator[Sample]:
    """A small thing alone, beside another, several of it, and added."""
    random = draw.random
    noun, ground = draw.noun_on_background()
    if noun in PAINTABLE:
        noun = in_color(noun, random.choice(tuple(COLORS)))
    grid, place = draw.grid(several=False), random.choice(SINGLES)
    small, rival = in_size(noun, "small"), random.choice(draw.vocabulary)
    if grid == SMALL or random.random() < 0.4:
        rival = in_size(rival, "small")
    if not draw.evaluation and (held_out(small.code, ground) or held_out(small.code, rival.code)):
        return

    def shown(*placed: tuple[Noun, Place]) -> Scene:
        return scene(ground, *((thing.code, at) for thing, at in placed), grid=grid)

    def alone(at: Place) -> Scene:
        return shown((small, at))

    yield Sample("sized", partial(phrases.one_object, small, place, ground), alone(place))
    yield Sample("sized", partial(phrases.one_object, small, CENTER, ground), alone(CENTER))
    yield opened("sized", partial(phrases.one_somewhere, small, ground), map(alone, OPEN_PLACES))
    yield Sample("add", partial(phrases.add, small, place), alone(place), (shown(),))
    count = random.choice(tuple(COUNTS))
    counted = (shown(*((small, at) for at in places)) for places in COUNTS[count])
    yield opened("count", partial(phrases.several, small, count, ground), counted)
    at, beside = draw.two_places()
    two = two_objects((small, at), (rival, beside), ground)
    yield Sample("sized", two, shown((small, at), (rival, beside)))


def big_group(draw: Draw) -> Iterator[Sample]:
    """A big thing, for which there is room in the middle only: made, added, removed, on another background."""
    noun, ground = draw.noun_on_background()
    if noun in PAINTABLE and draw.random.random() < 0.5:
        noun = in_color(noun, draw.random.choice(tuple(COLORS)))
    (other,) = draw.backgrounds(1)
    grid, big = draw.grid(several=False), in_size(noun, "big")
    if not draw.evaluation and (held_out(big.code, ground) or held_out(big.code, other)):
        return
    here, there = (scene(behind, (big.code, CENTER), grid=grid) for behind in (ground, other))
    for behind, shown in ((ground, here), (other, there)):
        yield Sample("big", partial(phrases.one_somewhere, big, behind), shown)
        yield Sample("big", partial(phrases.one_object, big, CENTER, behind), shown)
    if draw.evaluation:
        ways = (scene(behind, (big.code, CENTER), grid=grid) for behind in SCENIC)
        yield opened("bare", partial(phrases.one_somewhere, big, None), ways)
    if other != ground:
        yield Sample("background", partial(phrases.change_background, other), there, (here,))
    empty = scene(ground, grid=grid)
    yield Sample("add", partial(phrases.add, big, draw.random.choice((None, CENTER))), here, (empty,))
    yield Sample("remove", partial(phrases.remove, noun, None), empty, (here,))
    yield Sample("vary", phrases.vary, here, (here,))


def swap_group(draw: Draw) -> Iterator[Sample]:
    """The object of image 1 on the background of image 2; both pictures show an object of their own."""
    a, b, ground, other = draw.objects_on_backgrounds()
    grid, place = draw.grid(several=True), draw.single_place()

    def alone(background: str, code: str) -> Scene:
        return scene(background, (code, place), grid=grid)

    for code, rival in ((a, b), (b, a)):
        for here, there in ((ground, other), (other, ground)):
            references = alone(here, code), alone(there, rival)
            yield Sample("object on background", phrases.object_on_background, alone(there, code), references)


def insert_group(draw: Draw) -> Iterator[Sample]:
    """The object of image 1, alone there, added to the scene of image 2 at the free place."""
    grid = draw.grid(several=True)
    a, b, ground, other = draw.pair_of_objects()
    for code, rival in ((a, b), (b, a)):
        free, taken = draw.two_places()
        target = scene(other, (rival, taken), (code, free), grid=grid)
        references = scene(ground, (code, draw.single_place()), grid=grid), scene(other, (rival, taken), grid=grid)
        yield Sample("object into scene", partial(phrases.object_into_scene, free), target, references)
        yield Sample("object into scene", phrases.into_scene_anywhere, target, references)


def both_group(draw: Draw) -> Iterator[Sample]:
    """The objects of two pictures side by side, on a background that is named or on one of theirs."""
    a, b, ground, other = draw.pair_of_objects()
    grid = draw.grid(several=True)
    (third,) = draw.backgrounds(1)
    one, two = (scene(behind, (code, draw.single_place()), grid=grid) for behind, code in ((ground, a), (other, b)))

    def both(background: str, left: str, right: str) -> Scene:
        return scene(background, (left, ROW[0]), (right, ROW[1]), grid=grid)

    yield Sample("both objects", partial(phrases.both_objects, third), both(third, a, b), (one, two))
    yield Sample("both objects", partial(phrases.both_objects, third), both(third, b, a), (two, one))
    image, background = draw.random.choice(((1, ground), (2, other)))
    yield Sample("both objects", partial(phrases.both_objects_kept, image), both(background, a, b), (one, two))


GROUPS: tuple[tuple[float, Callable[[Draw], Iterator[Sample]]], ...] = (
    (0.19, pair_group),
    (0.14, single_group),
    (0.08, count_group),
    (0.07, trio_group),
    (0.06, color_group),
    (0.08, size_group),
    (0.16, big_group),
    (0.06, swap_group),
    (0.08, insert_group),
    (0.08, both_group),
)

FOR_SMALL = (single_group, color_group, size_group, big_group)  # what there is room for in a small picture


def samples(draw: Draw) -> Iterator[Sample]:
    """An endless stream of samples, group by group."""
    small = all(grid == SMALL for grid in draw.grids)
    weights, groups = zip(*((w, group) for w, group in GROUPS if not small or group in FOR_SMALL), strict=True)
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
