"""The data that a recipe names: found in one way, whether they are checked, about to be trained on, or trained on."""

from __future__ import annotations

from pathlib import Path

from kleinbild.core.errors import RequestError
from kleinbild.train.data.examples import Dataset
from kleinbild.train.data.found import find_examples
from kleinbild.train.defaults import Trainee, resolve
from kleinbild.train.recipe import Recipe, Values


def resolved(values: Values, trainee: Trainee) -> tuple[Recipe, Dataset]:
    """The whole recipe, and what it trains on, examples for regularization among them. Raises RequestError."""
    dataset = find_learned(values)
    num_kept = sum(example.regularization for example in dataset.examples)
    num_learned = len(dataset.examples) - num_kept
    if not num_learned:
        raise RequestError(f"{values['data']} holds pictures for regularization only", "add what is to be learned")
    return resolve(values, trainee, num_learned, num_regularization=num_kept), dataset


def find_learned(values: Values) -> Dataset:
    """`data`, and `regularization_data` beside it. The trigger words are the caption of pictures that have none."""
    if not values.get("data"):
        raise RequestError("the recipe names no pictures", "set data to a folder of pictures with captions beside them")
    regularization = values.get("regularization_data")
    return find_examples(
        Path(values["data"]),
        root_caption=", ".join(values.get("trigger_words", ())),
        regularization=Path(regularization) if regularization else None,
    )
