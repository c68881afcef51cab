"""What nano understands: it says which words it does not know, instead of drawing something else.

A prompt is matched against the names of things and backgrounds, longest first, and the words that join them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise

from kleinbild.core.errors import PromptError
from kleinbild.nano.scenes.lexicon import (
    BACKGROUND_BY_NAME,
    BACKGROUNDS,
    COLORS,
    NOUN_BY_NAME,
    NOUNS,
    PAINTABLE,
    SIZE_BY_WORD,
    SIZES,
)

JOINING_WORDS = frozenset(
    """a an the of on in at to with and from for it is into by or i my please want
    picture image object variation draw background plain
    left right top bottom middle center corner above below under over next
    two three four 1 2 side beside
    change make replace put remove delete take away erase add place turn swap use insert move shift bring
    recolor recolour paint color colour both objects together""".split()
).union(SIZE_BY_WORD)
EDIT_WORDS = frozenset(
    """change make replace remove delete take erase add turn swap insert image move shift bring recolor recolour paint color
    colour both""".split()
)
ADD_WORDS = frozenset(("add", "put", "place"))
PLACE_WORDS = frozenset("left right top bottom middle center corner side above below over under".split())
NUMBER_WORDS = frozenset(("two", "three", "four"))
MAX_KINDS = 3
NAMES = NOUN_BY_NAME.keys() | BACKGROUND_BY_NAME.keys()


def check(prompt: str, num_references: int, learned: Iterable[str] = ()) -> None:
    """Raises PromptError for words that nano does not know, and for references that the prompt and the call disagree on.

    `learned` are words that its adapters know.
    """
    words = words_of(prompt)
    known, unknown = sort_words(words)
    also = {word for phrase in learned for word in words_of(phrase)}
    unknown = [word for word in unknown if word not in also]
    if unknown:
        raise PromptError(f"nano does not know {quoted(unknown)}", knowledge())
    if re.search(r"\bimage 2\b", " ".join(words)) and num_references < 2:
        raise PromptError(
            f"the prompt speaks of image 2, but {num_references or 'no'} reference picture was given",
            "give two: kleinbild edit PROMPT -i ONE -i TWO",
        )
    if num_references == 0 and EDIT_WORDS.intersection(words[:1]):
        raise PromptError(
            f'"{prompt.strip()}" changes a picture, but none was given', "give one: kleinbild edit PROMPT -i PICTURE"
        )
    if unpaintable := sorted(_unpaintable(prompt)):
        raise PromptError(
            f"nano cannot colour {quoted(unpaintable)}",
            f"it colours {', '.join(noun.name for noun in PAINTABLE)}: {', '.join(COLORS)}",
        )
    sizes = {word for word in words if word in SIZE_BY_WORD and word not in also}
    if num_references and sizes and words[0] not in ADD_WORDS:
        raise PromptError(
            "nano changes no sizes in edits",
            'it makes small and big things in new pictures, "a big fox", and adds them, "add a small fox on the left"',
        )
    kinds = {NOUN_BY_NAME[name].code for name in known if name in NOUN_BY_NAME}
    if num_references == 0 and len(kinds) > MAX_KINDS:
        raise PromptError(
            f"nano draws at most {MAX_KINDS} different things, the prompt names {len(kinds)}",
            "name fewer, or add the others one at a time with kleinbild edit",
        )
    if sizes.intersection(SIZES["big"]) and (len(kinds) > 1 or _several_or_elsewhere(list(parts(words, NAMES)))):
        raise PromptError(
            "nano draws a big thing alone and in the middle",
            'ask for that, "a big fox on a meadow", or leave the size out',
        )


def _unpaintable(prompt: str) -> set[str]:
    """Things that the prompt wants in a colour, "a green lion" or "make the lion green", that come in their own only."""
    edits = bool(EDIT_WORDS.intersection(words_of(prompt)[:1]))
    things = {name for noun in PAINTABLE for name in (*noun.names, *noun.plurals)}
    found = set()
    for part in prompt.split(","):
        names = list(parts(words_of(part), NOUN_BY_NAME))
        for first, second in pairwise(names):
            if first in COLORS and second in NOUN_BY_NAME:
                found.add(second)
        if edits and len(names) > 1 and names[-2] in NOUN_BY_NAME and names[-1] in COLORS:
            found.add(names[-2])
    return found - things


def _several_or_elsewhere(names: Sequence[str]) -> bool:
    """Whether a prompt's `parts` ask for anything but one of a kind in the middle."""
    return says_several(names) or not places_said(names) <= {"middle", "center"}


def says_several(names: Sequence[str]) -> bool:
    """Whether a prompt's `parts` name a number of things, or a thing by its name for several only."""
    plural = any(name in NOUN_BY_NAME and name not in NOUN_BY_NAME[name].names for name in names)
    return plural or not NUMBER_WORDS.isdisjoint(names)


def places_said(names: Sequence[str]) -> set[str]:
    """The words, of a prompt's `parts`, that say where its things stand. "Under the night sky" does not."""
    return {
        name for index, name in enumerate(names) if name in PLACE_WORDS and not _of_background(name, names[index + 1 :])
    }


def _of_background(name: str, following: Sequence[str]) -> bool:
    """Whether this word is where things are before."""
    return name in ("under", "over") and next((each for each in following if each in NAMES), "") in BACKGROUND_BY_NAME


def words_of(prompt: str) -> list[str]:
    """Lower-case words, without the punctuation between them."""
    text = unicodedata.normalize("NFC", prompt).lower()
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def sort_words(words: list[str]) -> tuple[list[str], list[str]]:
    """The names that were recognised, and the words that were not."""
    known, unknown = [], []
    for part in parts(words, NAMES):
        if part in NAMES:
            known.append(part)
        elif part not in JOINING_WORDS:
            unknown.append(part)
    return known, unknown


def parts(words: list[str], names: Collection[str]) -> Iterator[str]:
    """The words in order, those of the longest names as one part: `paint`, `the`, `soccer ball`, `red`."""
    at = 0
    while at < len(words):
        most = min(_longest_name(), len(words) - at)
        length = next((n for n in range(most, 1, -1) if " ".join(words[at : at + n]) in names), 1)
        yield " ".join(words[at : at + length])
        at += length


def knowledge() -> str:
    """What nano knows, and what to do for everything else."""
    nouns = ", ".join(noun.name for noun in NOUNS)
    backgrounds = ", ".join(background.name for background in BACKGROUNDS)
    return (
        f"it is a tiny model that knows {len(NOUNS)} things ({nouns}) and {len(BACKGROUNDS)} backgrounds "
        f"({backgrounds}), paints {len(PAINTABLE)} of the things {', '.join(COLORS)}, and makes all small or big; "
        "for everything else: kleinbild pull klein-4b"
    )


def quoted(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return ", ".join(f'"{word}"' for word in unique)


@cache
def _longest_name() -> int:
    return max(len(name.split()) for name in NAMES)
