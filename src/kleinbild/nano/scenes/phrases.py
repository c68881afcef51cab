"""The sentences of nano's world: several wordings for every picture and every edit.

Prompts are lower case here; the tokenizer's normalizer brings a user's prompt to this form. A wording is chosen by the
caller's random generator, so training sees all of them and an evaluation can fix one.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from kleinbild.nano.scenes.lexicon import BACKGROUND_BY_NAME, SOLID_NAMES, Noun

NUMBERS = {2: "two", 3: "three", 4: "four"}
Place = tuple[int, int]
"""Where a thing stands: rows and columns of a picture from 0 to 2, whatever its size."""

CORNERS = {(0, 0): "top left", (0, 2): "top right", (2, 0): "bottom left", (2, 2): "bottom right"}
CENTER = (1, 1)
LIST_SHARE = 0.12  # of the wordings that say nothing of where things stand
SIDES = {(1, 0): "left", (1, 2): "right", (0, 1): "top", (2, 1): "bottom"}


def article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('uni') else 'a'} {name}"


def a_noun(noun: Noun, random: Random) -> str:
    return article(random.choice(noun.names))


def on_background(background: str | None, random: Random) -> str:
    """The end of a sentence that says where: `on a mint background`, `, at the beach`; nothing without a background."""
    if background is None:
        return ""
    names = BACKGROUND_BY_NAME[background].names
    name = random.choice(names)
    forms: tuple[str, ...]
    if name in SOLID_NAMES:
        forms = (
            f" on {article(name)} background",
            f" on {name}",
            f", {name} background",
            f" on a plain {name} background",
        )
    elif name == "snow":
        forms = (" in the snow", ", snow background")
    else:
        forms = (f" on {article(name)}", f", {name} background", f" on {article(name)} background")
        if BACKGROUND_BY_NAME[background].kind in ("meadow", "beach", "snow", "night"):
            forms = (*forms, f" {'under' if 'sky' in name else 'in' if 'field' in name else 'on'} the {name}")
    return random.choice(forms)


def lead(random: Random) -> str:
    """An opening that many people write and that says nothing."""
    return random.choice(("",) * 6 + ("a picture of ", "an image of ", "draw "))


def one_somewhere(noun: Noun, background: str | None, random: Random) -> str:
    """Nothing is said of where it stands."""
    if random.random() < LIST_SHARE:
        return listed((noun,), background, random)
    return lead(random) + a_noun(noun, random) + on_background(background, random)


def listed(nouns: Sequence[Noun], background: str | None, random: Random) -> str:
    """As people type in a hurry: `pizza, fox, teal`."""
    grounds = [random.choice(BACKGROUND_BY_NAME[background].names)] if background else []
    return ", ".join([*(random.choice(noun.names) for noun in nouns), *grounds])


def one_object(noun: Noun, place: Place, background: str | None, random: Random) -> str:
    thing, ground = a_noun(noun, random), on_background(background, random)
    if place == CENTER:
        return lead(random) + thing + random.choice((" in the middle", " in the center")) + ground
    if place in SIDES:
        side = SIDES[place]
        forms: tuple[str, ...] = (
            (f"{thing} on the {side}",) if side in ("left", "right") else (f"{thing} at the {side}",)
        )
    else:
        corner = CORNERS[place]
        forms = (f"{thing} in the {corner}", f"{thing} in the {corner} corner")
    return lead(random) + random.choice(forms) + ground


def two_objects(first: Noun, second: Noun, side_by_side: bool, background: str | None, random: Random) -> str:
    """`first` is left of, or above, `second`."""
    a, b = a_noun(first, random), a_noun(second, random)
    forms: tuple[str, ...]
    if side_by_side:
        forms = (
            f"{a} to the left of {b}", f"{a} left of {b}", f"{b} to the right of {a}", f"{b} right of {a}",
            f"{a} on the left and {b} on the right", f"{b} on the right and {a} on the left",
        )  # fmt: skip
        return random.choice(forms) + on_background(background, random)
    else:
        forms = (f"{a} above {b}", f"{b} below {a}", f"{b} under {a}", f"{a} over {b}", f"{a} on top of {b}")
    return lead(random) + random.choice(forms) + on_background(background, random)


def two_beside(first: Noun, second: Noun, background: str | None, random: Random) -> str:
    """Side by side; nothing is said of which is where."""
    a, b = a_noun(first, random), a_noun(second, random)
    form = random.choice((f"{a} next to {b}", f"{a} beside {b}"))
    return lead(random) + form + on_background(background, random)


def two_together(first: Noun, second: Noun, background: str | None, random: Random) -> str:
    """Nothing is said of how they stand."""
    if random.random() < LIST_SHARE:
        return listed((first, second), background, random)
    join = random.choice((" and ", " and ", " with "))
    return lead(random) + a_noun(first, random) + join + a_noun(second, random) + on_background(background, random)


def three_objects(nouns: Sequence[Noun], background: str | None, random: Random) -> str:
    """Nothing is said of how they stand."""
    if random.random() < LIST_SHARE:
        return listed(nouns, background, random)
    a, b, c = (a_noun(noun, random) for noun in nouns)
    form = random.choice((f"{a}, {b} and {c}", f"{a}, {b} and {c}", f"{a}, {b}, {c}", f"{a} and {b} and {c}"))
    return form + on_background(background, random)


def one_above_two(nouns: Sequence[Noun], background: str, random: Random) -> str:
    """The first above the others, which stand from left to right."""
    a, b, c = (a_noun(noun, random) for noun in nouns)
    return f"{a} above {b} and {c}" + on_background(background, random)


def one_below_two(nouns: Sequence[Noun], background: str, random: Random) -> str:
    """The first below the others, which stand from left to right."""
    a, b, c = (a_noun(noun, random) for noun in nouns)
    return f"{a} below {b} and {c}" + on_background(background, random)


def several(noun: Noun, count: int, background: str | None, random: Random) -> str:
    plural = random.choice(noun.plurals)
    return lead(random) + f"{NUMBERS[count]} {plural}" + on_background(background, random)


def change_background(background: str, random: Random) -> str:
    name = random.choice(BACKGROUND_BY_NAME[background].names)
    forms = [
        f"change the background to {name}", f"make the background {name}", f"replace the background with {name}",
        f"put it on {article(name)}{' background' if name in SOLID_NAMES else ''}", f"{name} background",
    ]  # fmt: skip
    if name not in SOLID_NAMES and name != "snow":
        forms.append(f"change the background to {article(name)}")
    return random.choice(forms)


def vary(random: Random) -> str:
    """The same picture made anew. The first is what a variation asks for by default."""
    return random.choice(
        ("make the picture from the image", "draw the picture from the image", "make a picture from image 1",
         "make a variation", "a variation of the picture")
    )  # fmt: skip


def remove(noun: Noun, place: Place | None, random: Random) -> str:
    """Removal by name, or by place where `place` tells which."""
    name = random.choice(noun.names)
    forms = [f"remove the {name}", f"delete the {name}", f"take away the {name}", f"erase the {name}"]
    if place in SIDES:
        forms.append(f"remove the object {where(place)}")
    return random.choice(forms)


def add(noun: Noun, place: Place | None, random: Random) -> str:
    """Without a place it is "add" alone: nobody says "put a fox"."""
    if place is None:
        return f"add {a_noun(noun, random)}"
    return f"{random.choice(('add', 'put', 'place'))} {a_noun(noun, random)} {where(place)}"


def add_to(noun: Noun, other: Noun, relation: str, random: Random) -> str:
    """Added beside what is there: `relation` is "left of", "right of", "above" or "below"."""
    form = random.choice((relation, f"to the {relation}") if "of" in relation else (relation,))
    return f"{random.choice(('add', 'put', 'place'))} {a_noun(noun, random)} {form} the {random.choice(other.names)}"


def move(noun: Noun, place: Place, random: Random) -> str:
    to = where(place).replace("in the", "to the").replace("on the", "to the").replace("at the", "to the")
    if place in CORNERS:
        to += random.choice(("", " corner"))
    return f"{random.choice(('move', 'move', 'shift', 'bring', 'put'))} the {random.choice(noun.names)} {to}"


def recolor(noun: Noun, color: str, random: Random) -> str:
    name, hue = random.choice(noun.names), random.choice(("color", "colour"))
    return random.choice(
        (f"make the {name} {color}", f"paint the {name} {color}", f"re{hue} the {name} {color}",
         f"turn the {name} {color}", f"change the {hue} of the {name} to {color}", f"{hue} the {name} {color}")
    )  # fmt: skip


def replace(old: Noun, new: Noun, random: Random) -> str:
    was, thing = random.choice(old.names), a_noun(new, random)
    return random.choice(
        (f"replace the {was} with {thing}", f"turn the {was} into {thing}", f"change the {was} to {thing}",
         f"swap the {was} for {thing}", f"make the {was} {thing}")
    )  # fmt: skip


def object_on_background(random: Random) -> str:
    """Image 1's object on image 2's background."""
    return random.choice(
        (
            "put the object of image 1 on the background of image 2",
            "the object of image 1 on the background of image 2",
            "the object from image 1 with the background from image 2",
            "place the object from image 1 on the background of image 2",
            "use the background of image 2 for the object of image 1",
        )
    )


def object_into_scene(place: Place, random: Random) -> str:
    """Image 1's object added to image 2 at `place`."""
    there = where(place)
    return random.choice(
        (
            f"add the object of image 1 to image 2 {there}",
            f"put the object of image 1 into image 2 {there}",
            f"place the object from image 1 into image 2 {there}",
            f"insert the object from image 1 {there} of image 2"
            if place in CORNERS
            else f"insert the object from image 1 into image 2 {there}",
        )
    )


def into_scene_anywhere(random: Random) -> str:
    """Image 1's object added to image 2 where there is room."""
    return random.choice(
        ("add the object of image 1 to image 2", "put the object of image 1 into image 2",
         "place the object from image 1 into image 2", "insert the object from image 1 into image 2")
    )  # fmt: skip


def both_objects(background: str, random: Random) -> str:
    """Image 1's object on the left, image 2's on the right."""
    form = random.choice(
        ("put both objects side by side", "both objects side by side", "the object of image 1 and the object of image 2",
         "both objects together", "the object of image 1 next to the object of image 2")
    )  # fmt: skip
    return form + on_background(background, random)


def both_objects_kept(image: int, random: Random) -> str:
    """The same, on the background of one of the pictures."""
    form = random.choice(
        ("put both objects", "both objects together", "put the object of image 1 and the object of image 2")
    )
    return f"{form} on the background of image {image}"


def where(place: Place) -> str:
    """`in the middle`, `on the left`, `in the top left`."""
    if place == CENTER:
        return "in the middle"
    if place in CORNERS:
        return f"in the {CORNERS[place]}"
    side = SIDES[place]
    return f"on the {side}" if side in ("left", "right") else f"at the {side}"
