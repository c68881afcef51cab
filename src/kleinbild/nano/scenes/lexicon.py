"""The words of nano's world: nouns, backgrounds and colours, with their synonyms. Everything else it does not know.

`code` is the sprite's name in the atlas (Unicode code points of the emoji). Sprites in `UNSEEN` never appear in any
training picture; they measure whether copying from a reference works for things that have no name here.
A thing of one colour can be had in others: `in_color` gives the noun whose code is that of the repainted sprite, and `in_size` that
of a smaller or larger one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache


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
    1f34e | red apple, apple
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
    1f43a | wolf | wolves
    1f993 | zebra
    1f9a9 | flamingo
    1f99c | parrot
    1f413 | rooster
    1f988 | shark
    1f338 | cherry blossom
    1f341 | maple leaf | maple leaves
    1f384 | christmas tree, xmas tree
    1f346 | eggplant, aubergine
    1f950 | croissant
    1f968 | pretzel
    1f32d | hot dog
    2615 | coffee, cup of coffee | cups of coffee, coffees
    1f308 | rainbow
    1fa90 | planet, saturn | planets
    1f30b | volcano | volcanoes
    26fa | tent
    1f69c | tractor
    1f3cd-fe0f | motorcycle, motorbike
    1f681 | helicopter
    1f6f8 | ufo, flying saucer
    1f4f7 | camera
    1f392 | backpack, rucksack
    1f4fa | television, tv
    1f941 | drum
    1f439 | hamster
    1f98c | deer | deer
    1f99b | hippo, hippopotamus | hippos, hippopotamuses
    1f998 | kangaroo
    1f999 | llama
    1f426 | bird
    1f985 | eagle
    1f421 | pufferfish, blowfish | pufferfish, blowfish
    1f991 | squid
    1f577-fe0f | spider
    1f340 | clover, four-leaf clover
    1f332 | pine tree, fir
    1f33d | corn, ear of corn | ears of corn
    1f965 | coconut
    1f95a | egg
    1f35e | loaf of bread, bread loaf | loaves of bread, bread loaves
    1f9c7 | waffle
    1f32e | taco
    1f37f | popcorn, bag of popcorn | bags of popcorn
    1f36f | honey pot, pot of honey | honey pots, pots of honey
    2744-fe0f | snowflake
    26f0-fe0f | mountain
    1f3aa | circus tent, circus | circus tents
    26f2 | fountain
    1f691 | ambulance
    1fa82 | parachute
    1f3af | target, dartboard
    1f3b2 | die, dice | dice
    1f9e9 | puzzle piece, jigsaw piece
    1f3bb | violin, fiddle
    1f3b7 | saxophone, sax | saxophones, saxes
    1f3a4 | microphone, mic
    1f9ed | compass | compasses
    231a | watch, wristwatch | watches, wristwatches
    23f3 | hourglass, sandglass | hourglasses, sandglasses
    1f56f-fe0f | candle
    1f3ee | lantern, paper lantern
    1f4a3 | bomb
    1f380 | ribbon, bow
    1f45c | handbag, purse
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

SCENIC: tuple[str, ...] = tuple(background.name for background in BACKGROUNDS if background.kind != "solid")
"""The backgrounds that things may have whose prompt names none: gradients and painted scenes."""

COLORS: dict[str, int] = {"red": 356, "orange": 24, "yellow": 47, "green": 130, "blue": 215, "purple": 272, "pink": 328}
"""Colours that things can be had in, by hue in degrees."""

SIZES: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
"""Sizes that things can be had in beside the usual one, and the words for each."""

SIZE_BY_WORD = {word: size for size, words in SIZES.items() for word in words}

OWN_COLORS: dict[str, str] = {
    code: color
    for color, codes in {
        "red": "2764-fe0f 1f697 1f388 1f344 1fad6 260e-fe0f 1f3b8",
        "orange": "1f383",
        "yellow": "2b50 1f514 1f451",
        "blue": "1f41f 1f433 1f48e",
        "pink": "1f980 1f437",
    }.items()
    for code in codes.split()
}
"""The things that can be repainted, and the colour that each has by itself."""

SOLID_NAMES = frozenset(name for background in BACKGROUNDS if background.kind == "solid" for name in background.names)
NOUN_BY_NAME = {name: noun for noun in NOUNS for name in (*noun.names, *noun.plurals)}
BACKGROUND_BY_NAME = {name: background for background in BACKGROUNDS for name in background.names}

_AT_HOME: dict[str, str] = {
    "meadow": (
        "dog, pig, chick, bee, sunflower, house, cow, rooster, mouse, bicycle, tractor, hamster, clover, "
        "fountain, soccer ball, balloon, castle, llama, teddy bear, carrot, watermelon, basketball, dinosaur, "
        "bird, tomato"
    ),
    "forest": (
        "fox, bear, owl, frog, mushroom, wolf, deer, pine tree, monkey, tent, koala, panda, dragon, lantern, "
        "fire, spider, broccoli, maple leaf, parrot, ladybug"
    ),
    "desert": (
        "lion, cactus, elephant, giraffe, zebra, kangaroo, mountain, motorcycle, car, pumpkin, backpack, "
        "compass, trophy, hourglass, guitar, horse, snake"
    ),
    "beach": (
        "crab, turtle, palm tree, flamingo, coconut, sailboat, pineapple, banana, lollipop, drum, camera, "
        "hippo, cherry, hot dog, popcorn, taco, duck"
    ),
    "sea floor": "whale, fish, octopus, shark, pufferfish, squid, gem",
    "snowy field": "penguin, snowman, snowflake, christmas tree, gift, train, bell, candle, ribbon, rabbit",
    "night sky": "rocket, star, ufo, planet, unicorn, crown",
    "dawn gradient": "helicopter, eagle, cloud, rainbow, coffee, croissant, loaf of bread, egg, waffle, watch, volcano",
    "peach gradient": (
        "cherry blossom, cake, cupcake, strawberry, cookie, heart, honey pot, cheese, lemon, bunch of grapes, "
        "handbag, teapot, pretzel, butterfly, rose, donut"
    ),
    "sunset gradient": (
        "burger, pizza, bus, circus tent, saxophone, violin, corn, eggplant, red apple, green apple, cat, parachute"
    ),
    "aurora gradient": "top hat, microphone, telephone, television",
    "ocean gradient": "target, die",
    "mist gradient": "bomb, ambulance, puzzle piece",
}
HOMES: dict[str, str] = {
    NOUN_BY_NAME[name].code: ground for ground, names in _AT_HOME.items() for name in names.split(", ")
}
"""The background that suits each thing, by its code."""


@cache
def in_color(noun: Noun, color: str) -> Noun:
    """The noun in a colour of `COLORS`: "green car". In its own colour it is the sprite as it comes."""
    code = noun.code if OWN_COLORS[noun.code] == color else f"{noun.code}@{color}"
    names, plurals = (tuple(f"{color} {name}" for name in each) for each in (noun.names, noun.plurals))
    return replace(noun, code=code, names=names, plurals=plurals)


@cache
def in_size(noun: Noun, size: str) -> Noun:
    """The noun in a size of `SIZES`: "small fox", "tiny fox"."""
    names, plurals = (
        tuple(f"{word} {name}" for word in SIZES[size] for name in each) for each in (noun.names, noun.plurals)
    )
    return replace(noun, code=f"{noun.code}*{size}", names=names, plurals=plurals)


PAINTABLE: tuple[Noun, ...] = tuple(noun for noun in NOUNS if noun.code in OWN_COLORS)
