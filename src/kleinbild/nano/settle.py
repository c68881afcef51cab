"""What a prompt for a new picture leaves open, its seed settles, in nano's own words.

A model of four steps has no coin to toss: taught that a fox may stand anywhere, it paints half a fox in every place (measured:
docs/log.md). So "a fox" becomes "a fox on the left, meadow background" before nano reads it, and another seed gives
another place and background. What the prompt says stays as it is said; a prompt that this does not understand stays whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from kleinbild.nano.scenes import phrases
from kleinbild.nano.scenes.draw import ROW
from kleinbild.nano.scenes.lexicon import (
    BACKGROUND_BY_NAME,
    COLORS,
    HOMES,
    NOUN_BY_NAME,
    PAINTABLE,
    SCENIC,
    SIZE_BY_WORD,
    Noun,
)
from kleinbild.nano.scenes.tasks import places_of
from kleinbild.nano.words import EDIT_WORDS, NAMES, NUMBER_WORDS, parts, places_said, says_several, sort_words, words_of

BESIDE = frozenset(("next", "beside"))
NUM_BACKGROUNDS = 4  # that a prompt without one may get: the thing's home and three others


@dataclass(frozen=True, slots=True)
class Understood:
    """What a prompt for a new picture says: the things as it names them, the background ("" if none).

    `at_home` is the background that suits the first. `several`: it is of one kind, and more than one.
    """

    things: tuple[str, ...]
    at_home: str
    background: str
    several: bool
    says_number: bool
    says_where: bool
    says_beside: bool


def settle(prompt: str, seed: int, *, narrow: bool = False) -> str:
    """The prompt with all said that it leaves open. The same prompt and seed always settle alike; seeds that follow each
    other differ. In a `narrow` picture there is no room for several things but small ones, and nothing is big unasked."""
    said = understand(prompt)
    if said is not None and narrow and (said.several or len(said.things) > 1):
        prompt = _shrunk(prompt, said.things)
        said = understand(prompt)
    if said is None:
        return prompt
    ways = _ways(said, narrow)
    turn, way = divmod(seed, len(ways) or 1)
    scene = Random(prompt).sample(ways, len(ways))[way] if ways else prompt.strip(" .!?,")
    if not ways and said.background:
        return prompt
    return f"{scene}, {said.background or _background(said.at_home, prompt, turn + way)} background"


def _shrunk(prompt: str, things: tuple[str, ...]) -> str:
    """The prompt with "small" before each of the things whose size it does not say."""
    for thing in things:
        if thing.split()[0] not in SIZE_BY_WORD:
            name = r"\s+".join(map(re.escape, thing.split()))
            prompt = re.sub(rf"\b(an?\s+)?({name})\b", _small, prompt, count=1, flags=re.IGNORECASE)
    return prompt


def _small(found: re.Match[str]) -> str:
    return f"{'a ' if found[1] else ''}small {found[2]}"


def understand(prompt: str) -> Understood | None:
    """What the prompt says, None if it is no new picture of one kind of thing, or of one each of two or three."""
    words = words_of(prompt)
    known, unknown = sort_words(words)
    if unknown or EDIT_WORDS.intersection(words[:1]) or not known:
        return None
    names = list(parts(words, NAMES))
    things: list[str] = []
    nouns: list[Noun] = []
    grounds: list[str] = []
    size = color = ""
    for index, name in enumerate(names):
        if name in SIZE_BY_WORD:
            size = f"{name} "
        elif name in COLORS and _paints(names[index + 1 :]):
            color = f"{name} "
        elif name in NOUN_BY_NAME:
            things.append(size + color + name)
            nouns.append(NOUN_BY_NAME[name])
            size = color = ""
        elif name in BACKGROUND_BY_NAME:
            grounds.append(name)
    several = says_several(names)
    if not 1 <= len(things) <= 3 or len(grounds) > 1 or (several and len(things) > 1):
        return None
    return Understood(
        tuple(things),
        HOMES[nouns[0].code],
        grounds[0] if grounds else "",
        several,
        not NUMBER_WORDS.isdisjoint(names),
        bool(places_said(names)),
        not BESIDE.isdisjoint(names),
    )


def _paints(following: list[str]) -> bool:
    """Whether a colour with these words after it is that of a thing."""
    thing = next((name for name in following if name not in SIZE_BY_WORD), "")
    return thing in NOUN_BY_NAME and NOUN_BY_NAME[thing] in PAINTABLE


def _background(at_home: str, prompt: str, number: int) -> str:
    """That or one of three others."""
    others = [ground for ground in SCENIC if ground != at_home]
    return (at_home, *Random(prompt).sample(others, NUM_BACKGROUNDS - 1))[number % NUM_BACKGROUNDS]


def _ways(said: Understood, narrow: bool) -> list[str]:
    """The sentences for all ways in which the things may stand that nano has words for; none if it is said."""
    if said.says_where or said.says_number:
        return []
    if said.several:
        return [f"{number} {said.things[0]}" for number in phrases.NUMBERS.values()]
    first, *others = (phrases.article(name) for name in said.things)
    if not others:
        size = SIZE_BY_WORD.get(said.things[0].split()[0], "")
        as_said = [f"{first} {phrases.where(place)}" for place in places_of(size)]
        return as_said if size or narrow else [*as_said, *_in_other_sizes(said.things[0])]
    if len(others) == 2:
        return [f"{first} {relation} {others[0]} and {others[1]}" for relation in ("above", "below")]
    relations = ("left of", "right of") if said.says_beside else ("left of", "right of", "above", "below")
    return [f"{first} {relation} {others[0]}" for relation in relations]


def _in_other_sizes(thing: str) -> list[str]:
    """A thing whose size is not said, in others than the usual one."""
    return [f"a big {thing} in the middle", *(f"a small {thing} {phrases.where(place)}" for place in ROW)]
