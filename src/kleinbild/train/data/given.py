"""The data that a recipe names: found in one way, whether they are checked, about to be trained on, or trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from kleinbild.core.errors import RequestError
from kleinbild.model.adapters.registry import digest
from kleinbild.train.data.examples import Dataset, Example
from kleinbild.train.data.folders import counted, named
from kleinbild.train.data.found import find_examples
from kleinbild.train.defaults import Trainee, resolve
from kleinbild.train.recipe import Recipe, Values


def resolved(values: Values, trainee: Trainee) -> tuple[Recipe, Dataset, Dataset | None]:
    """The whole recipe; what it trains on, examples for regularization among them; and what only the validation sees, if
    the recipe names such. Raises RequestError."""
    dataset, held_out = find_learned(values), find_held_out(values)
    num_kept = sum(example.regularization for example in dataset.examples)
    num_learned = len(dataset.examples) - num_kept
    if not num_learned:
        raise RequestError(f"{values['data']} holds pictures for regularization only", "add what is to be learned")
    if held_out is not None:
        _require_apart(dataset.examples, held_out.examples)
    return resolve(values, trainee, num_learned, num_regularization=num_kept), dataset, held_out


def find_learned(values: Values) -> Dataset:
    """`data`, and `regularization_data` beside it. The trigger words are the caption of pictures that have none."""
    if not values.get("data"):
        raise RequestError("the recipe names no pictures", "set data to a folder of pictures with captions beside them")
    regularization = values.get("regularization_data")
    found = find_examples(
        Path(values["data"]),
        root_caption=_root_caption(values),
        regularization=Path(regularization) if regularization else None,
    )
    return _by_lines(found) if values.get("caption_lines") else found


def find_held_out(values: Values) -> Dataset | None:
    """`validation_data`, read as `data` is; its pictures for regularization are left out."""
    if not values.get("validation_data"):
        return None
    path = Path(values["validation_data"])
    found = find_examples(path, root_caption=_root_caption(values))
    found = _by_lines(found) if values.get("caption_lines") else found
    examples = tuple(
        replace(each, name=f"{path.stem}/{each.name}") for each in found.examples if not each.regularization
    )
    notes = (*(f"{path.stem}: {note}" for note in found.notes), f"{counted(len(examples), 'picture')} for validation")
    return Dataset(examples, found.layout, notes)


def _root_caption(values: Values) -> str:
    return ", ".join(values.get("trigger_words", ()))


def _by_lines(found: Dataset) -> Dataset:
    """With each line of a caption as a caption of its own."""
    examples = []
    for each in found.examples:
        first, *others = dict.fromkeys(line.strip() for line in each.caption.splitlines() if line.strip()) or [""]
        examples.append(replace(each, caption=first, wordings=tuple(others)))
    return replace(found, examples=tuple(examples))


def _require_apart(learned: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Raises RequestError where an example is in both: the same target, made from the same references."""
    sizes = {each.target.stat().st_size for each in held_out}  # others need not be read to be known as others
    digest_once = cache(digest)
    known = {_content(each, digest_once) for each in learned if each.target.stat().st_size in sizes}
    if both := [each.name for each in held_out if _content(each, digest_once) in known]:
        raise RequestError(
            f"{counted(len(both), 'example')} for validation would be trained on, too: {named(both)}",
            "take them out of the one or the other: what was learned says nothing of what was not",
        )


def _content(example: Example, digest_of: Callable[[Path], str]) -> tuple[str, ...]:
    return tuple(map(digest_of, (example.target, *example.references)))
