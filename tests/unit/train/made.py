"""What tests of the trainer are made of: small recipes, pictures of nano's world with captions."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from kleinbild.model.weights.settings import Settings
from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.render import render
from kleinbild.nano.scenes.sprites import sprites
from kleinbild.nano.scenes.tasks import samples
from kleinbild.train.defaults import Trainee, resolve
from kleinbild.train.recipe import Recipe

NANO_BASE = Trainee("nano", Settings(default_size=128, distilled=False))


def recipe(**values: Any) -> Recipe:
    """A resolved recipe for nano: ten steps unless said otherwise."""
    return resolve({"steps": 10, **values}, NANO_BASE, 4)


def pictures(folder: Path, *, num: int = 2, num_references: int = 0, seed: int = 1) -> Path:
    """`num` pictures of nano's world with captions beside them, made from `num_references` others."""
    folder.mkdir(parents=True, exist_ok=True)
    random, left = Random(seed), num
    for sample in samples(Draw(random, evaluation=False, codes=tuple(sprites()))):
        if len(sample.references) != num_references:
            continue
        left -= 1
        end = "_end" if num_references else ""
        Image.fromarray(render(sample.target)).save(folder / f"{left}{end}.png")
        (folder / f"{left}.txt").write_text(sample.wording(random), "utf-8")
        for i, scene in enumerate(sample.references, 1):
            Image.fromarray(render(scene)).save(folder / f"{left}_start{i if num_references > 1 else ''}.png")
        if not left:
            return folder
    raise AssertionError("the world has no such samples")
