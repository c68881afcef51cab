"""Latents: what a mask keeps goes the straight way from noise to the input, step by step; references may stay behind."""

from __future__ import annotations

import pytest
import torch

from kleinbild.engine.caches import Caches
from kleinbild.engine.denoise import step
from kleinbild.engine.encode import Context, encode_prompt, encode_references
from kleinbild.engine.latents import Known, Sequence, start, to_tokens
from kleinbild.engine.prepare import prepare
from kleinbild.engine.runtime import Engine
from kleinbild.model.packing import Segment
from tests.unit.engine.test_pipeline import HOLE, A, B, request


def sequence(known: Known | None) -> Sequence:
    generator = torch.Generator().manual_seed(0)
    return Sequence(
        context=Context(torch.zeros(1, 4), None),
        references_KC=torch.zeros(0, 3),
        segment=Segment(1, (2, 2)),
        times=(1.0, 0.75, 0.25, 0.0),
        guidance=1.0,
        latent_NC=torch.randn((4, 3), generator=generator),
        known=known,
    )


def test_kept_tokens_are_the_inputs_at_every_time_and_others_are_what_they_would_be() -> None:
    free = sequence(None)
    target, noise = torch.full((4, 3), 5.0), free.latent_NC
    kept = torch.tensor([True, False, False, True])[:, None]
    held = sequence(Known(target, noise, kept))
    for time in held.times[1:]:
        velocity = torch.full((4, 3), time + 1)
        free.advance(velocity)
        held.advance(velocity)
        assert torch.equal(held.latent_NC[1:3], free.latent_NC[1:3])
        torch.testing.assert_close(held.latent_NC[::3], ((1 - time) * target + time * noise)[::3])
    assert held.finished
    assert torch.equal(to_tokens(held.estimate)[::3], target[::3])  # a preview shows them, too
    assert torch.equal(held.latent_NC[::3], target[::3])


@torch.inference_mode()
def test_a_masked_edit_ends_at_its_inputs_latent_but_where_it_was_edited(kv: Engine) -> None:
    prepared = prepare(request(kv, 1, references=(A,), mask=HOLE), kv.model)
    caches = Caches.of(kv.model)
    references = encode_references(kv.model, caches, prepared)
    sequence = start(kv.model, prepared, encode_prompt(kv.model, caches, prepared), references)
    while not sequence.finished:
        step(kv.model, caches, [sequence])
    same = (sequence.latent_NC == to_tokens(references[0])).all(dim=1).reshape(4, 4)
    edited = torch.zeros(4, 4, dtype=torch.bool)
    edited[0:3, 1:3] = True  # the hole is 20..40 by 10..35 pixels, a token 16
    assert torch.equal(same, ~edited)


@pytest.mark.parametrize("cache", [True, False])
@torch.inference_mode()
def test_cached_references_take_part_in_the_first_step_only(base: Engine, cache: bool) -> None:
    prepared = prepare(request(base, 1, references=(A, B), cache_references=cache), base.model)
    caches = Caches.of(base.model)
    references = encode_references(base.model, caches, prepared)
    sequence = start(base.model, prepared, encode_prompt(base.model, caches, prepared), references)
    of_picture, of_references = 4 * 4, 4 * 4 + 3 * 6
    rows = []
    while not sequence.finished:
        rows.append(len(sequence.rows))
        step(base.model, caches, [sequence])
    later = of_picture if cache else of_picture + of_references
    assert rows == [of_picture + of_references, later, later]
