"""The recipe: what happens to one request before its first step and after its last.

prepare → text → references → (steps, in company: `engine.batcher`) → decode → finish
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kleinbild.core.metadata import AdapterRecord
from kleinbild.core.tokens import Tokens
from kleinbild.engine.caches import Caches
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.decode import as_asked, decode, record, to_image
from kleinbild.engine.encode import encode_prompt, encode_references
from kleinbild.engine.latents import Sequence, start
from kleinbild.engine.picture import Picture
from kleinbild.engine.prepare import Prepared
from kleinbild.model.adapters.applied import Use
from kleinbild.model.weights import Model

STAGES = ("prepare", "text", "references", "denoise", "decode", "finish")


def begin(
    model: Model, caches: Caches, prepared: Prepared, watch: Stopwatch, adapters: tuple[Use, ...] = ()
) -> Sequence:
    """A request to its sequence before the first step, to be made under `adapters`."""
    with watch("text"):
        context = encode_prompt(model, caches, prepared)
    with watch("references"):
        references = encode_references(model, caches, prepared)
        return start(model, prepared, context, references, adapters)


def finish(
    model: Model,
    prepared: Prepared,
    sequence: Sequence,
    watch: Stopwatch,
    compiled: Compiled | None = None,
    adapters: tuple[AdapterRecord, ...] = (),
) -> Picture:
    """A sequence after its last step to the picture; `adapters` is what its record says of those that made it."""
    with watch("decode"):
        pixels = decode(model, sequence, compiled)
    with watch("finish"):
        image = as_asked(to_image(pixels), prepared)
    segment = sequence.segment
    tokens = Tokens(prepared.tokens.num_tokens, segment.num_references, segment.num_image)
    return Picture(image, record(model, prepared, adapters), dict(watch.seconds), prepared.inputs.notes, tokens)


class Stopwatch:
    """Seconds by stage, waiting for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - begun
