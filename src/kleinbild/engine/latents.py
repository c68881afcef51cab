"""Where each picture starts: noise from its seed, its times, and its tokens laid out for the transformer.

A seed means the same noise everywhere: what `torch.randn((1, C, r, c))` draws from a CPU generator in float32,
whatever device the model runs on and whatever else is made in the same pass.

Shape suffixes: N tokens of the picture, K tokens of its references, C channels, L text tokens, X context width,
r c rows and columns of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kleinbild.core.sizes import Size
from kleinbild.engine.encode import Context
from kleinbild.engine.prepare import Prepared
from kleinbild.model.adapters.applied import Use
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import ReferenceMode, Segment
from kleinbild.model.schedule import times
from kleinbild.model.spec import AutoencoderSpec
from kleinbild.model.weights import Model


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The input of a masked edit: its latent, the request's noise, and which tokens follow it (`kept_N1`)."""

    latent_NC: Tensor
    noise_NC: Tensor
    kept_N1: Tensor

    def keep(self, made_NC: Tensor, time: float) -> Tensor:
        """`made_NC` with the kept tokens on the straight way from noise to the input, where they are at `time`."""
        return torch.where(self.kept_N1, (1 - time) * self.latent_NC + time * self.noise_NC, made_NC)


@dataclass(slots=True, eq=False)
class Sequence:
    """One picture on its way from noise to latent. `step` counts the steps done; `latent_NC` stays in float32.

    `caches` hold its references' keys and values, one for the prompt and one for guidance, if they are cached at all.
    """

    context: Context
    references_KC: Tensor
    segment: Segment
    times: tuple[float, ...]
    guidance: float
    latent_NC: Tensor
    caches: tuple[ReferenceCache | None, ReferenceCache | None] = (None, None)
    known: Known | None = None
    adapters: tuple[Use, ...] = ()
    step: int = 0
    velocity_NC: Tensor | None = None  # of the last step

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    @property
    def finished(self) -> bool:
        return self.step == self.num_steps

    @property
    def time(self) -> float:
        return self.times[self.step]

    @property
    def adapter_names(self) -> tuple[tuple[str, float], ...]:
        """The same for sequences with the same adapters."""
        return tuple((use.bound.name, use.strength) for use in self.adapters)

    @property
    def grid(self) -> Tensor:
        """The latent (1, C, r, c), as the autoencoder takes it."""
        return self._grid(self.latent_NC)

    @property
    def rows(self) -> Tensor:
        """Its rows of the image stream: the picture being made, then its references unless they are cached."""
        if self.segment.mode == "stored":
            return self.latent_NC
        return torch.cat((self.latent_NC, self.references_KC.float()))

    @property
    def estimate(self) -> Tensor:
        """The latent (1, C, r, c) that the last step was heading for: what a preview shows."""
        if self.velocity_NC is None:
            return self.grid
        estimate_NC = self.latent_NC - self.time * self.velocity_NC
        if self.known is not None:
            estimate_NC = self.known.keep(estimate_NC, 0.0)
        return self._grid(estimate_NC)

    def _grid(self, tokens_NC: Tensor) -> Tensor:
        return tokens_NC.t().reshape(1, -1, *self.segment.image)

    def advance(self, velocity_NC: Tensor) -> None:
        """One Euler step along `velocity_NC` to the next time; what is known stays what it is."""
        next_time = self.times[self.step + 1]
        self.latent_NC = self.latent_NC + (next_time - self.time) * velocity_NC.float()
        if self.known is not None:
            self.latent_NC = self.known.keep(self.latent_NC, next_time)
        self.velocity_NC = velocity_NC
        self.step += 1
        if self.segment.mode != "joint":
            self.segment = replace(self.segment, mode="stored")


def start(
    model: Model,
    prepared: Prepared,
    context: Context,
    references: tuple[Tensor, ...],
    adapters: tuple[Use, ...] = (),
) -> Sequence:
    """The sequence of one request before its first step."""
    noise_1Crc = noise(model, prepared.size, prepared.seed)
    segment = segment_of(model, prepared)
    noise_NC = to_tokens(noise_1Crc).to(model.device)
    no_references = noise_1Crc.new_zeros(0, noise_1Crc.shape[1], dtype=model.dtype, device=model.device)
    caching = segment.mode != "joint"
    return Sequence(
        context=context,
        references_KC=torch.cat([no_references, *(to_tokens(reference) for reference in references)]),
        segment=segment,
        times=times(segment.num_image, prepared.steps),
        guidance=prepared.guidance,
        latent_NC=noise_NC,
        caches=(ReferenceCache(), ReferenceCache()) if caching else (None, None),
        known=known(model, prepared, references, noise_NC),
        adapters=adapters,
    )


def segment_of(model: Model, prepared: Prepared) -> Segment:
    """The tokens that a request will have in the first step."""
    sizes = [Size(*image.size) for image in prepared.references]
    return segment_for(model.spec.autoencoder, len(prepared.tokens.ids), prepared.size, sizes, prepared.reference_mode)


def segment_for(
    spec: AutoencoderSpec, num_text: int, size: Size, references: Iterable[Size], mode: ReferenceMode = "joint"
) -> Segment:
    """The tokens of a picture of `size` made from pictures of the sizes `references`; sides are whole tokens."""
    cell = spec.pixels_per_token
    image, *others = ((each.height // cell, each.width // cell) for each in (size, *references))
    return Segment(num_text, image, tuple(others), mode)


def known(model: Model, prepared: Prepared, references: tuple[Tensor, ...], noise_NC: Tensor) -> Known | None:
    """What a mask keeps: the first reference, in every token without a pixel to edit. None without a mask."""
    masked = prepared.inputs.masked
    if masked is None:
        return None
    edited_rc = masked.edited_tokens(prepared.inputs.frame, model.spec.autoencoder.pixels_per_token)
    kept_N1 = torch.from_numpy(~edited_rc).reshape(-1, 1).to(model.device)
    return Known(to_tokens(references[0]).float(), noise_NC, kept_N1)


def noise(model: Model, size: Size, seed: int) -> Tensor:
    """The noise (1, C, r, c) that a seed stands for, float32 on the CPU."""
    cell = model.spec.autoencoder.pixels_per_token
    shape = (1, model.spec.transformer.in_channels, size.height // cell, size.width // cell)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def to_tokens(latent_1Crc: Tensor) -> Tensor:
    """A packed latent to its tokens (r·c, C), row by row."""
    return latent_1Crc[0].flatten(1).t().contiguous()
