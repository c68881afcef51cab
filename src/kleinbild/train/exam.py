"""What a run is examined with, fixed before its first step: prompts, seeds, targets, and what the training pictures look like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kleinbild.core.sizes import Size
from kleinbild.model.weights import Model
from kleinbild.train.data.cache import Encoded
from kleinbild.train.likeness import Look, look_of_tokens
from kleinbild.train.neutral import is_known, neutral_prompts
from kleinbild.train.studio import Ask
from kleinbild.train.sweep import Taught

NUM_PREVIEWS, NUM_NEUTRAL, NUM_SWEPT = 3, 4, 4  # pictures; of previews where the recipe names no prompts
MOST_SWEPT_STEPS = 20  # of a picture: to compare strengths, finer ones are not worth their time
MOST_COMPARED = 500  # training pictures that copies are looked for among


@dataclass(frozen=True, slots=True)
class Exam:
    """`swept` are validation samples to be made again, `taught` what comes of them if all is learnt."""

    previews: tuple[Ask, ...]
    neutral: tuple[Ask, ...]
    swept: tuple[Ask, ...]
    taught: tuple[Taught, ...]
    captions: tuple[str, ...]
    training: tuple[Look, ...]


def exam_of(
    model: Model,
    training: Sequence[Encoded],
    validating: Sequence[Encoded],
    prompts: Sequence[str],
    seed: int,
    known_words: Sequence[str] = (),
) -> Exam:
    """`prompts` are those of the recipe; without any, captions of validation samples are previewed.

    Where samples are made from references, so are previews: each prompt with those of a validation sample. A caption
    with words that the model refuses, and that are none of the `known_words`, is trained on but nothing is made of it.
    """
    cell = model.spec.autoencoder.pixels_per_token
    learned = [one for one in training if not one.example.regularization]
    captions = [one.example.caption for one in learned]
    taught = [one for one in validating if not one.example.regularization and _can_ask(model, one, known_words)]
    again = [
        Ask(one.example.caption, seed + i, one.example.references, Size(one.grid[1] * cell, one.grid[0] * cell))
        for i, one in enumerate(taught)
    ]
    if prompts and again:
        previews = [
            Ask(prompt, seed + i, again[i % len(again)].references, again[i % len(again)].size)
            for i, prompt in enumerate(prompts)
        ]
    else:
        previews = [Ask(prompt, seed + i) for i, prompt in enumerate(prompts)] or again[:NUM_PREVIEWS]
    neutral = neutral_prompts(captions, vocabulary=model.settings.vocabulary, num=NUM_NEUTRAL)
    return Exam(
        previews=tuple(previews),
        neutral=tuple(Ask(prompt, seed + i) for i, prompt in enumerate(neutral)),
        swept=tuple(replace(ask, most_steps=MOST_SWEPT_STEPS) for ask in again[:NUM_SWEPT]),
        taught=tuple(
            Taught(look_of_tokens(one.target_NC, one.grid), exact=bool(one.references)) for one in taught[:NUM_SWEPT]
        ),
        captions=tuple(captions),
        training=tuple(look_of_tokens(one.target_NC, one.grid) for one in learned[:MOST_COMPARED]),
    )


def _can_ask(model: Model, one: Encoded, known_words: Sequence[str]) -> bool:
    caption, vocabulary = one.example.caption, model.settings.vocabulary
    return bool(caption.strip()) and is_known(caption, vocabulary, len(one.example.references), known_words)


def once_each(samples: Iterable[Encoded]) -> list[Encoded]:
    """The first of each example's sizes."""
    return list({id(one.example): one for one in reversed(list(samples))}.values())[::-1]
