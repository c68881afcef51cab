"""Prior preservation: pictures that the model makes before training, learned beside the new ones so that they stay.

Source: Ruiz et al., "DreamBooth" (2022), section 3.2. An adapter serves base and distilled model; the pictures are made
by the distilled one in its few steps, or by the base where that is not on this machine. They are kept in the run's folder,
so that a run that resumes finds them.

Half of them show what the captions say without the trigger words, as in that paper the class without the identifier: then
nothing but the trigger tells one from the other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch

from kleinbild.core.requests import PictureRequest
from kleinbild.engine.runtime import Engine
from kleinbild.model import catalog
from kleinbild.train.data.cache import Progress
from kleinbild.train.data.examples import Example
from kleinbild.train.defaults import Trainee
from kleinbild.train.neutral import Neutral, is_known, neutral_requests, words

FOLDER = "prior"
LEADING = frozenset({"a", "an", "the", "in", "of", "style"})  # what may stand beside a trigger: "in the style of zorp"


def prior_requests(
    examples: Sequence[Example], trigger_words: Sequence[str], vocabulary: str | None, count: int
) -> list[Neutral]:
    """What `count` pictures are to show. Half: what is learned, without the trigger words where these are a part of their
    own (`a fox on teal, zorp`); again and again, where there are few. The other half, or all, is neutral."""
    contrasts = dict.fromkeys(
        text
        for example in examples
        if not example.regularization and not example.references
        for caption in example.captions
        if (text := without(caption, trigger_words)) and is_known(text, vocabulary)
    )
    asked = [Neutral(text) for text in islice(cycle(contrasts), count // 2)]
    return asked + neutral_requests(vocabulary, count - len(asked))


def without(caption: str, trigger_words: Sequence[str]) -> str:
    """The caption without the parts between commas that only name a trigger; "" where no part does, or nothing is left."""
    trigger = {word for each in trigger_words for word in words(each)}
    parts = caption.split(",")
    kept = [part for part in parts if not trigger & set(words(part)) or set(words(part)) - trigger - LEADING]
    return ",".join(kept).strip() if len(kept) < len(parts) else ""


def prior_examples(
    folder: Path, base: str, trainee: Trainee, asked: Sequence[Neutral], device: torch.device, progress: Progress
) -> tuple[Example, ...]:
    """A regularization example for each of `asked`, in `folder`, which need not exist; what is there already is not made again.

    `base` is what will be trained. The engine that makes the pictures is gone afterwards.
    """
    examples = tuple(_example(folder / f"{number:04d}", each) for number, each in enumerate(asked))
    missing = [number for number, example in enumerate(examples) if not example.target.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        engine = Engine(_maker(base, trainee), device=device)
        for done, number in enumerate(missing):
            progress("making prior pictures", done, len(missing))
            _make(engine, examples[number], asked[number], seed=number)
    return examples


def _example(stem: Path, asked: Neutral) -> Example:
    references = tuple(stem.with_name(f"{stem.name}_from{k}.png") for k in range(len(asked.references)))
    target = stem.with_name(f"{stem.name}.png")
    return Example(target, asked.prompt, references, regularization=True, name=f"{FOLDER}/{target.name}")


def _maker(base: str, trainee: Trainee) -> str:
    entry = catalog.find_variant(trainee.family, "distilled")
    return entry.name if entry is not None and catalog.locate(entry) is not None else base


def _make(engine: Engine, example: Example, asked: Neutral, seed: int) -> None:
    """The target last, and at once: where it is, the whole example is."""
    for path, file in zip(example.references, asked.references, strict=True):
        path.write_bytes(file)
    picture = engine.generate(PictureRequest(asked.prompt, engine.name, seed=seed, references=asked.references))
    buffer = io.BytesIO()
    picture.pil.save(buffer, "PNG")
    whole = example.target.with_suffix(".part")
    whole.write_bytes(buffer.getvalue())
    whole.replace(example.target)
