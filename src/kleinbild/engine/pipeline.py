"""The recipe: requests to pictures, all of them in one packed pass."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from kleinbild.core.requests import PictureRequest
from kleinbild.engine.decode import decode, finish, record, to_image
from kleinbild.engine.denoise import OnStep, denoise
from kleinbild.engine.encode import encode_prompts, encode_references
from kleinbild.engine.latents import start
from kleinbild.engine.picture import Picture
from kleinbild.engine.prepare import prepare
from kleinbild.model.weights import Model


def make_pictures(model: Model, requests: Iterable[PictureRequest], *, on_step: OnStep | None = None) -> list[Picture]:
    """One picture a request, in their order. All are checked before anything is computed."""
    watch = Stopwatch(model.device)
    with torch.inference_mode():
        with watch("prepare"):
            prepared = [prepare(request, model) for request in requests]
        with watch("text"):
            contexts = encode_prompts(model, prepared)
        with watch("references"):
            references = encode_references(model, prepared)
        with watch("denoise"):
            sequences = [start(model, *parts) for parts in zip(prepared, contexts, references, strict=True)]
            denoise(model, sequences, on_step)
        with watch("decode"):
            pixels = [decode(model, sequence) for sequence in sequences]
        with watch("finish"):
            images = [finish(to_image(made), one) for made, one in zip(pixels, prepared, strict=True)]
            records = [record(model, one) for one in prepared]
    return [
        Picture(image, its, dict(watch.seconds), one.inputs.notes)
        for image, its, one in zip(images, records, prepared, strict=True)
    ]


class Stopwatch:
    """Seconds by stage, waiting for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - begun
