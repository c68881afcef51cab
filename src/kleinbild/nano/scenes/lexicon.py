"""The words of nano's world: nouns and backgrounds, with their synonyms. Everything else it does not know.

`code` is the sprite's name in the atlas (Unicode code points of the emoji). Sprites in `UNSEEN` never appear in any
training picture; they measure whether copying from a reference works for things that have no name here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noun:
    """One nameable object: `names` are interchangeable singulars, `plurals` interchangeable plurals."""

    code: str
    names: tuple[str, ...]
    plurals: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Background:
    """One nameable background. `colors` are the sRGB stops from top to bottom (one: solid), `scene` a painted one."""

    names: tuple[str, ...]
    kind: str
    colors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0]


def _noun(line: str) -> Noun:
    code, singular, *plural = (part.strip() for part in line.split("|"))
    names = tuple(name.strip() for name in singular.split(","))
    plurals = tuple(name.strip() for name in plural[0].split(",")) if plural else tuple(f"{name}s" for name in names)
    return Noun(code, names, plurals)


NOUNS: tuple[Noun, ...] = tuple(
    _noun(line)
    for line in """
    1f98a | fox | foxes
    1f431 | cat, kitty
    1f436 | dog, puppy | dogs, puppies
    1f981 | lion
    1f984 | unicorn
    1f437 | pig, piggy | pigs, piggies
    1f430 | rabbit, bunny | rabbits, bunnies
    1f428 | koala
    1f43c | panda
    1f424 | chick
    1f427 | penguin
    1f989 | owl
    1f438 | frog
    1f422 | turtle, tortoise
    1f433 | whale
    1f41f | fish | fish
    1f419 | octopus | octopuses
    1f980 | crab
    1f98b | butterfly | butterflies
    1f41d | bee, honeybee
    1f41e | ladybug, ladybird
    1f339 | rose
    1f33b | sunflower
    1f335 | cactus | cacti
    1f334 | palm tree, palm
    1f344 | mushroom, toadstool
    1f347 | bunch of grapes | bunches of grapes
    1f349 | watermelon
    1f34b | lemon
    1f34c | banana
    1f34d | pineapple
    1f34e | red apple
    1f34f | green apple
    1f352 | cherry | cherries
    1f353 | strawberry | strawberries
    1f955 | carrot
    1f966 | broccoli | broccolis
    1f9c0 | cheese, piece of cheese | cheeses, pieces of cheese
    1f354 | burger, hamburger
    1f355 | pizza, slice of pizza | pizzas, slices of pizza
    1f369 | donut, doughnut
    1f36a | cookie, biscuit
    1f382 | cake, birthday cake
    1f9c1 | cupcake, muffin
    1f36d | lollipop
    1f383 | pumpkin, jack-o-lantern
    1f388 | balloon
    1f381 | gift, present
    1f3c6 | trophy | trophies
    26bd | soccer ball, football
    1f3c0 | basketball
    1f9f8 | teddy bear, teddy
    2764-fe0f | heart
    1f451 | crown
    1f3a9 | top hat, hat
    1f48e | gem, diamond
    1f514 | bell
    1f3b8 | guitar
    1f697 | car
    1f680 | rocket
    26f5 | sailboat, boat
    1f3e0 | house, home
    2b50 | star
    26c4 | snowman | snowmen
    1f42d | mouse | mice
    1f43b | bear
    1f435 | monkey
    1f42e | cow
    1f434 | horse, pony | horses, ponies
    1f992 | giraffe
    1f418 | elephant
    1f996 | dinosaur, t-rex | dinosaurs, t-rexes
    1f409 | dragon
    1f986 | duck
    1f40d | snake
    1f345 | tomato | tomatoes
    1fad6 | teapot
    1f525 | fire, flame
    2601-fe0f | cloud
    1f3f0 | castle
    1f68c | bus | buses
    1f686 | train
    1f6b2 | bicycle, bike
    260e-fe0f | telephone, phone
    """.strip().splitlines()
)

UNSEEN: tuple[str, ...] = (
    "1f42f", "1f994", "1f42c", "1f40c", "1f337", "1f350", "1f951", "1f35f",
    "1f366", "1f52e", "1f511", "1f4a1", "2708-fe0f", "2600-fe0f", "2602-fe0f", "23f0",
)  # fmt: skip

BACKGROUNDS: tuple[Background, ...] = (
    Background(("red", "crimson"), "solid", ("#e5484d",)),
    Background(("orange",), "solid", ("#f58a3c",)),
    Background(("yellow",), "solid", ("#fbd64f",)),
    Background(("green",), "solid", ("#4caf50",)),
    Background(("mint", "mint green"), "solid", ("#b2ecd0",)),
    Background(("teal",), "solid", ("#1a8a87",)),
    Background(("sky blue", "light blue"), "solid", ("#87c7f5",)),
    Background(("blue",), "solid", ("#3567e0",)),
    Background(("navy", "dark blue"), "solid", ("#1d2763",)),
    Background(("purple", "violet"), "solid", ("#7c3fb8",)),
    Background(("lavender",), "solid", ("#cdbff0",)),
    Background(("pink",), "solid", ("#f8a5c2",)),
    Background(("brown",), "solid", ("#7a5540",)),
    Background(("beige", "cream"), "solid", ("#efe0c6",)),
    Background(("white",), "solid", ("#ffffff",)),
    Background(("black",), "solid", ("#15151a",)),
    Background(("gray", "grey"), "solid", ("#8d939c",)),
    Background(("turquoise", "aqua"), "solid", ("#3fd6cb",)),
    Background(("lime", "lime green"), "solid", ("#b4e23c",)),
    Background(("magenta", "hot pink"), "solid", ("#d5259b",)),
    Background(("maroon", "dark red"), "solid", ("#701826",)),
    Background(("olive", "olive green"), "solid", ("#7f8132",)),
    Background(("sunset gradient", "sunset"), "gradient", ("#ffb35c", "#f2637e", "#6c3b8f")),
    Background(("ocean gradient", "ocean"), "gradient", ("#9fe3f2", "#2f8fc4", "#123c78")),
    Background(("aurora gradient", "aurora"), "gradient", ("#3ee0a8", "#1f7f8c", "#33246b")),
    Background(("peach gradient", "peach"), "gradient", ("#fff0d9", "#ffc3a0", "#ff8f8a")),
    Background(("dawn gradient", "dawn"), "gradient", ("#31406f", "#d9788a", "#f7d79a")),
    Background(("mist gradient", "mist"), "gradient", ("#f2f5f7", "#c3cfda", "#8398ad")),
    Background(("meadow", "grassy field"), "meadow"),
    Background(("night sky", "starry sky"), "night"),
    Background(("beach", "sandy beach"), "beach"),
    Background(("snowy field", "snow"), "snow"),
    Background(("desert", "sandy desert"), "desert"),
    Background(("forest", "woods"), "forest"),
    Background(("sea floor", "seabed"), "seabed"),
)

SOLID_NAMES = frozenset(name for background in BACKGROUNDS if background.kind == "solid" for name in background.names)
NOUN_BY_NAME = {name: noun for noun in NOUNS for name in (*noun.names, *noun.plurals)}
BACKGROUND_BY_NAME = {name: background for background in BACKGROUNDS for name in background.names}
