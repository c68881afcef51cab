"""The networks at the front: prompts to text contexts, reference pictures to latents; each content once.

Each prompt and each picture is encoded alone, so that it does not depend on what else is asked for.

Shape suffixes: L tokens of a prompt, X context width, B batch, C channels of a packed latent, r c its rows and columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kleinbild.engine.caches import Caches
from kleinbild.engine.prepare import Prepared
from kleinbild.model.tokenizer import TokenizedPrompt
from kleinbild.model.weights import Model


@dataclass(frozen=True, slots=True)
class Context:
    """The prompt's context, and with guidance the empty prompt's."""

    prompt_LX: Tensor
    empty_LX: Tensor | None


def encode_prompt(model: Model, caches: Caches, one: Prepared) -> Context:
    """The contexts that a request is made under."""

    def encoded(prompt: str, tokens: TokenizedPrompt) -> Tensor:
        return caches.prompts.get(prompt, lambda: _encode_tokens(model, tokens))

    return Context(
        encoded(one.prompt, one.tokens),
        encoded("", model.tokenizer("")) if one.num_branches == 2 else None,
    )


def is_encoded(caches: Caches, one: Prepared) -> bool:
    """Whether `encode_prompt` would find all that it gives."""
    return one.prompt in caches.prompts and (one.num_branches == 1 or "" in caches.prompts)


def encode_references(model: Model, caches: Caches, one: Prepared) -> tuple[Tensor, ...]:
    """A request's references as normalised latents (1, C, r, c)."""
    return tuple(_encode_reference(model, caches, image) for image in one.references)


def encode_picture(model: Model, image: Image.Image) -> Tensor:
    """An RGB picture to its normalised latent (1, C, r, c): the mean, nothing sampled."""
    pixels_HWC = torch.from_numpy(np.array(image))
    pixels_BCHW = pixels_HWC.permute(2, 0, 1).unsqueeze(0).to(model.device, torch.float32) / 255.0 * 2.0 - 1.0
    return model.autoencoder.encode(pixels_BCHW.contiguous().to(model.dtype))


def _encode_reference(model: Model, caches: Caches, image: Image.Image) -> Tensor:
    key = (image.size, hashlib.sha256(image.tobytes()).digest())  # the pixels: one file may be fitted in several ways
    return caches.references.get(key, lambda: encode_picture(model, image))


def _encode_tokens(model: Model, tokens: TokenizedPrompt) -> Tensor:
    context_BLX: Tensor = model.text_encoder(tokens.ids[None].to(model.device), tokens.mask[None].to(model.device))
    return context_BLX[0]
