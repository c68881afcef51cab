"""Latents: what a mask keeps goes the straight way from noise to the input, step by step."""

from __future__ import annotations

import torch

from kleinbild.engine.encode import Context
from kleinbild.engine.latents import Known, Sequence
from kleinbild.model.packing import Segment


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
    assert torch.equal(held.latent_NC[::3], target[::3])
