"""Prior preservation: pictures that the model makes before training, learned beside the new ones so that they stay.

Source: Ruiz et al., "DreamBooth" (2022), section 3.2. The adapter serves base and distilled model; the pictures are made by
whichever engine the run has, in a few steps by the distilled one. They are kept in the run's folder, so that a run that
resumes, or is repeated, finds them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from kleinbild.core.requests import PictureRequest
from kleinbild.engine.runtime import Engine
from kleinbild.train.data.examples import Example
from kleinbild.train.neutral import Neutral, neutral_requests

FOLDER = "prior"


def make_prior(
    folder: Path, engine: Engine, count: int, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Example, ...]:
    """`count` regularization examples in `folder`; pictures that are there already are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, asked in enumerate(neutral_requests(engine.model.settings.vocabulary, count, seed)):
        examples.append(_example(folder / f"{number:04d}", engine, asked, seed + number))
        if on_progress is not None:
            on_progress(number + 1, count)
    return tuple(examples)


def _example(stem: Path, engine: Engine, asked: Neutral, seed: int) -> Example:
    target = stem.with_name(f"{stem.name}.png")
    references = tuple(stem.with_name(f"{stem.name}_from{k}.png") for k in range(len(asked.references)))
    if not target.is_file():
        for path, file in zip(references, asked.references, strict=True):
            path.write_bytes(file)
        picture = engine.generate(PictureRequest(asked.prompt, engine.name, seed=seed, references=asked.references))
        buffer = io.BytesIO()
        picture.pil.save(buffer, "PNG")
        whole = target.with_suffix(".part")
        whole.write_bytes(buffer.getvalue())
        whole.replace(target)
    return Example(target, asked.prompt, references, regularization=True, name=f"{FOLDER}/{target.name}")
