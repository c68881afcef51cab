"""What the teacher is asked: pictures with captions from a folder, or prompts alone, encoded as the engine encodes them.

A line of a file of prompts is a prompt, and, after tabs, the pictures that it is about: `make it snow<TAB>house.png`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kleinbild.core.errors import PictureError, RequestError
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.prepare import size_range
from kleinbild.engine.references import prepare_reference
from kleinbild.model.weights import Model
from kleinbild.train.data.buckets import Framing
from kleinbild.train.data.cache import prepare
from kleinbild.train.data.encoding import encode_caption, encode_target, grid_of
from kleinbild.train.data.found import find_examples
from kleinbild.train.distill.field import Grid, Sample

MAX_PROMPTS = 1_000_000


def context_of(model: Model, prompt: str) -> Tensor:
    """The prompt's context (L, X); that of "" is what guidance compares with."""
    return encode_caption(model, model.tokenizer(prompt)).to(model.device)


def samples_of_prompts(model: Model, file: Path) -> list[Sample]:
    """One sample a line, of the size of its first picture, or else of the model's own.

    Raises RequestError for a file that cannot be read or used, or words that the model does not know.
    """
    try:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read as prompts: {error}", "give a text file, a prompt a line") from error
    if not 0 < len(lines) <= MAX_PROMPTS:
        raise RequestError(f"{file} holds {len(lines)} prompts", f"give 1 to {MAX_PROMPTS:,}, one a line")
    samples = []
    for line in lines:
        prompt, *names = (part.strip() for part in line.split("\t"))
        _check(model, prompt, len(names))
        references = [_encoded(model, file.parent / name) for name in names]
        side = model.settings.default_size // model.spec.autoencoder.pixels_per_token
        grid = references[0][1] if references else (side, side)
        samples.append(Sample(grid, context_of(model, prompt), tuple(references)))
    return samples


def samples_of_folder(model: Model, folder: Path) -> list[Sample]:
    """One sample a picture of a data set, in any layout that `train.data` recognises; from its cache what is there."""
    dataset = find_examples(folder)
    for example in dataset.examples:
        _check(model, example.caption, len(example.references))
    framing = Framing(sizes_of(model), (model.settings.default_size,), "free")
    samples = []
    for one in prepare(model, dataset, framing):
        references = tuple((tokens_KC.to(model.device).float(), grid) for tokens_KC, grid in one.references)
        target_NC = one.target_NC.to(model.device).float()
        samples += [Sample(one.grid, one.contexts[0].to(model.device), references, target_NC)] * one.example.repeats
    return samples


def _check(model: Model, prompt: str, num_references: int) -> None:
    if model.settings.vocabulary == "nano":
        from kleinbild.nano.words import check

        check(prompt, num_references)


def _encoded(model: Model, path: Path) -> tuple[Tensor, Grid]:
    """A picture's tokens (N, C), float32, and their rows and columns; shrunk and cut to what the model makes."""
    try:
        file = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror or error}", "see whether it is there") from error
    image = prepare_reference(file, path.name, sizes_of(model))
    grid = grid_of(Size(image.width, image.height), model.spec.autoencoder.pixels_per_token)
    return encode_target(model, image).to(model.device).float(), grid


def sizes_of(model: Model) -> SizeRange:
    """Pictures are learned at the model's own area at most: there it will be used, and larger ones cost more."""
    sizes = size_range(model.settings, model.spec)
    return SizeRange(
        sizes.min_side, sizes.max_side, min(sizes.max_pixels, model.settings.default_size**2), sizes.multiple
    )
