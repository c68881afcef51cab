"""Words and reference pictures to what the transformer reads.

Each distinct prompt and each picture runs through its network alone: its numbers must not depend on what else is in
the pass, and a prompt costs little next to a picture.

Shape suffixes: L tokens of a prompt, X context width, B batch, C channels of a packed latent, r c its rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kleinbild.engine.prepare import Prepared
from kleinbild.model.tokenizer import TokenizedPrompt
from kleinbild.model.weights import Model


@dataclass(frozen=True, slots=True)
class Context:
    """The prompt's context, and with guidance the empty prompt's."""

    prompt_LX: Tensor
    empty_LX: Tensor | None


def encode_prompts(model: Model, prepared: Sequence[Prepared]) -> list[Context]:
    """One context a request; equal prompts are encoded once."""
    known: dict[str, Tensor] = {}

    def encode(prompt: str, tokens: TokenizedPrompt) -> Tensor:
        if prompt not in known:
            known[prompt] = _encode_tokens(model, tokens)
        return known[prompt]

    return [
        Context(
            encode(one.request.prompt, one.tokens),
            encode("", model.tokenizer("")) if one.guidance != 1 else None,
        )
        for one in prepared
    ]


def encode_references(model: Model, prepared: Sequence[Prepared]) -> list[tuple[Tensor, ...]]:
    """Each request's references as normalised latents (1, C, r, c)."""
    return [tuple(encode_picture(model, image) for image in one.references) for one in prepared]


def encode_picture(model: Model, image: Image.Image) -> Tensor:
    """An RGB picture to its normalised latent (1, C, r, c): the mean, nothing sampled."""
    pixels_HWC = torch.from_numpy(np.array(image))
    pixels_BCHW = pixels_HWC.permute(2, 0, 1).unsqueeze(0).to(model.device, torch.float32) / 255.0 * 2.0 - 1.0
    return model.autoencoder.encode(pixels_BCHW.contiguous().to(model.dtype))


def _encode_tokens(model: Model, tokens: TokenizedPrompt) -> Tensor:
    context_BLX: Tensor = model.text_encoder(tokens.ids[None].to(model.device), tokens.mask[None].to(model.device))
    return context_BLX[0]
