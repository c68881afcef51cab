"""Neutral requests: what a model is asked beside what it is taught, to see, or to keep, what it could before.

Prior preservation makes its pictures from them (`train.prior`), the watch measures drift by them. No torch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

from PIL import Image

from kleinbild.core.errors import PromptError
from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.lexicon import NOUNS
from kleinbild.nano.scenes.render import Scene, render
from kleinbild.nano.scenes.tasks import Sample, Task, samples
from kleinbild.nano.words import check

PROMPTS = (
    "a red bicycle leaning against a brick wall",
    "an old man with a grey beard reading a newspaper",
    "a bowl of ramen with an egg, seen from above",
    "a lighthouse on a cliff in a storm",
    "a street market in Marrakesh at noon",
    "a golden retriever running on a beach",
    "a glass of water on a white table",
    "a snowy mountain village at dusk",
    "the interior of a small library with wooden shelves",
    "a woman in a yellow raincoat crossing a wet street at night",
    "a watercolour of a pear and two lemons",
    "a steam train on a stone viaduct",
    "a black-and-white photograph of a jazz trio",
    "a field of sunflowers under a blue sky",
    "a child's drawing of a house with a smoking chimney",
    "a chess board in the middle of a game, close up",
    "a tabby cat asleep on a windowsill",
    "a poster with the word HELLO in large letters",
    "a sailing boat on a calm lake in the morning mist",
    "a plate of pancakes with blueberries",
    "a modern kitchen with a marble island",
    "a fox in a forest in autumn",
    "a vintage car parked in front of a diner",
    "a group of four friends laughing at a table",
    "an astronaut on a red planet, wide shot",
    "a bouquet of white tulips in a blue vase",
    "a rainy window with city lights behind it",
    "a blacksmith hammering glowing iron",
    "an isometric drawing of a small office",
    "a bridge over a river at sunrise, seen from a drone",
    "a parrot on a branch, portrait",
    "a stack of books beside a cup of tea",
)
"""For models of the real world: people, animals, things, places, drawings, words; none in the style of anybody."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """One request: a prompt and the pictures (PNG files) that it changes, if any."""

    prompt: str
    references: tuple[bytes, ...] = ()


def neutral_requests(vocabulary: str | None, count: int, seed: int = 0) -> list[Neutral]:
    """`count` requests for a model with this vocabulary (`Settings.vocabulary`), always the same for a seed.

    nano's come from its own world, half of them edits. Others' are `PROMPTS`, which repeat beyond their number.
    """
    random = Random(f"neutral-{seed}")
    if vocabulary == "nano":
        return [_of_world(sample, random) for sample in islice(_mixed(random), count)]
    prompts = random.sample(PROMPTS, len(PROMPTS))
    return [Neutral(prompt) for prompt in islice(cycle(prompts), count)]


def neutral_prompts(captions: Sequence[str], *, vocabulary: str | None, num: int = 4) -> tuple[str, ...]:
    """Prompts of what is not taught: those that share the fewest words with the captions."""
    known = {word for caption in captions for word in words(caption)}
    asked = neutral_requests(vocabulary, len(PROMPTS) * 2)
    ours = dict.fromkeys(each.prompt for each in asked if not each.references)
    return tuple(sorted(ours, key=lambda prompt: len(known.intersection(words(prompt))))[:num])


def is_known(prompt: str, vocabulary: str | None, num_references: int = 0, learned: Sequence[str] = ()) -> bool:
    """Whether a model with this vocabulary takes the prompt. `learned` are words that it does not know, but its adapter."""
    if vocabulary == "nano":
        try:
            check(prompt, num_references, learned)
        except PromptError:
            return False
    return True


def words(text: str) -> tuple[str, ...]:
    """Its words in lower case, without punctuation."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def _mixed(random: Random) -> Iterator[Sample]:
    """Samples of nano's world: every task as often as any other, and as many new pictures as edits."""
    made: tuple[Task, ...] = ("one", "colored", "two", "three", "count")
    edits: tuple[Task, ...] = (
        "background", "remove", "add", "replace", "move", "recolor",
        "object on background", "object into scene", "both objects",
    )  # fmt: skip
    stream = samples(Draw(random, evaluation=False, codes=tuple(noun.code for noun in NOUNS)))
    while True:
        task = random.choice(random.choice((made, edits)))
        yield next(sample for sample in stream if sample.task == task)


def _of_world(sample: Sample, random: Random) -> Neutral:
    return Neutral(sample.wording(random), tuple(_png(scene) for scene in sample.references))


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(scene)).save(buffer, "PNG")
    return buffer.getvalue()
