"""The comparison of whole pictures would notice what joins the stages: each thing is changed in turn, and it must fail.

What happens inside the stages is in `test_mutations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kleinbild.core.sizes import Size
from kleinbild.engine import denoise, encode, latents
from kleinbild.engine.decode import decode
from kleinbild.engine.denoise import Branch
from kleinbild.engine.latents import Sequence
from kleinbild.model import packing, rope, schedule
from kleinbild.model.packing import Segment
from kleinbild.model.rope import image_ids
from kleinbild.model.weights import Model, load_model
from tests import tiny
from tests.parity import reference
from tests.parity import test_pipelines as pipelines
from tests.parity.test_mutations import Mutate, cases, setting, shifted
from tests.parity.test_pipelines import REFERENCES, Pair

SIZE = Size(48, 80)


def make(tmp_path_factory: pytest.TempPathFactory, **changes: Any) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    path = tiny.write_model(folder / "ours", settings=replace(tiny.SETTINGS, **changes))
    return Pair(load_model(path), reference.pipeline(path, folder / "theirs"))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory, distilled=False, default_guidance=4.0)


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory, reference_caching=True)


def compare(pair: Pair) -> None:
    pipelines.compare(pair, [pipelines.request(pair, 1, REFERENCES, size=SIZE)])


def noise_token_by_token(model: Model, size: Size, seed: int) -> Tensor:
    rows, columns = size.height // 16, size.width // 16
    drawn = torch.randn((rows * columns, 128), generator=torch.Generator("cpu").manual_seed(seed))
    return drawn.t().reshape(1, 128, rows, columns)


def counted_from_the_last(segment: Segment) -> Tensor:
    last = len(segment.references) - 1
    references = [image_ids(*shape, reference=last - k) for k, shape in enumerate(segment.references)]
    return torch.cat([image_ids(*segment.image), *references])


def advance_in_half_precision(self: Sequence, velocity_NC: Tensor) -> None:
    step = (self.times[self.step + 1] - self.time) * velocity_NC
    self.latent_NC = (self.latent_NC + step).bfloat16().float()
    self.step += 1


def prompt_twice(sequence: Sequence) -> Iterator[Branch]:
    yield from [Branch(sequence, sequence.context.prompt_LX, None)] * 2


def guidance_of(change: float) -> Mutate:
    def start(*parts: Any) -> Sequence:
        sequence = latents.start(*parts)
        sequence.guidance += change
        return sequence

    return setting(pipelines, "start", start)


original_picture, original_times = encode.encode_picture, schedule.times

DISTILLED = {
    "references: 20 apart": setting(rope, "REFERENCE_TIME_OFFSET", 20),
    "references: counted from the last": setting(packing, "_stream_ids", counted_from_the_last),
    "references: upside down": setting(encode, "encode_picture", lambda *given: original_picture(*given).flip(2)),
    "shift: none": shifted(lambda tokens, steps: 0.0),
    "shift: references count": setting(latents, "times", lambda tokens, steps: original_times(tokens + 76, steps)),
    "noise: drawn token by token": setting(latents, "noise", noise_token_by_token),
    "steps: latents in half precision": setting(Sequence, "advance", advance_in_half_precision),
    "pixels: a level too bright": setting(pipelines, "decode", lambda *given: decode(*given) + 1 / 255),
}
BASE = {
    "guidance: none": setting(denoise, "_branches", prompt_twice),
    "guidance: 3.99 for 4": guidance_of(-0.01),
    "guidance: on top of the prompt's own": guidance_of(1.0),
}
KV = {
    "caching: 20 apart": setting(rope, "REFERENCE_TIME_OFFSET", 20),
    "caching: shift of none": shifted(lambda tokens, steps: 0.0),
}


def test_nothing_changed_nothing_noticed(distilled: Pair, base: Pair, kv: Pair) -> None:
    for pair in (distilled, base, kv):
        compare(pair)


@pytest.mark.parametrize("mutate", cases(DISTILLED))
def test_pictures_notice(distilled: Pair, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        compare(distilled)


@pytest.mark.parametrize("mutate", cases(BASE))
def test_guided_pictures_notice(base: Pair, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        compare(base)


@pytest.mark.parametrize("mutate", cases(KV))
def test_pictures_of_cached_references_notice(kv: Pair, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="error"):
        compare(kv)


def test_references_that_are_not_cached_are_noticed(distilled: Pair, kv: Pair) -> None:
    for ours, theirs in ((distilled, kv), (kv, distilled)):
        with pytest.raises(AssertionError, match="error"):
            compare(Pair(ours.model, theirs.pipe))
