"""Pictures, captions and masks as the model takes them: what the engine would make of them, to the last bit.

Each is encoded alone, as the engine does it: in a batch a picture's latent would depend, in its last bits, on what else
is in it. Nothing is kept here (`cache`).

Shape suffixes: N tokens of a picture, C channels, L text tokens, X context width, H W pixels, r c rows and columns.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kleinbild.core.errors import PromptError
from kleinbild.core.sizes import Size
from kleinbild.engine.encode import encode_picture
from kleinbild.engine.latents import to_tokens
from kleinbild.model.tokenizer import TokenizedPrompt
from kleinbild.model.weights import Model

SAMPLED = 4096  # numbers of each tensor that a fingerprint looks at


@torch.no_grad()
def encode_target(model: Model, image: Image.Image) -> Tensor:
    """An RGB picture of whole tokens to its normalised latent's tokens (N, C), on the CPU."""
    return to_tokens(encode_picture(model, image)).cpu()


@torch.no_grad()
def encode_caption(model: Model, tokens: TokenizedPrompt) -> Tensor:
    """A tokenized caption to its context (L, X), on the CPU."""
    context_BLX: Tensor = model.text_encoder(tokens.ids[None].to(model.device), tokens.mask[None].to(model.device))
    return context_BLX[0].cpu()


def tokenize(model: Model, caption: str, name: str) -> TokenizedPrompt:
    """Raises PromptError, which names the example, for a caption that is too long."""
    try:
        return model.tokenizer(caption)
    except PromptError as error:
        raise PromptError(f"{name}: {error.message.replace('the prompt', 'its caption')}", error.hint) from error


def grid_of(made: Size, pixels_per_token: int) -> tuple[int, int]:
    """Rows and columns of tokens."""
    return made.height // pixels_per_token, made.width // pixels_per_token


def weights_of(mask: Image.Image, grid: tuple[int, int]) -> Tensor:
    """How much each token counts (N, 1): the mean of its part of a mask, from 0 (black) to 1 (white)."""
    rows, columns = grid
    light_HW = np.asarray(mask.convert("L"), np.float32) / 255.0
    light_rc = light_HW.reshape(rows, mask.height // rows, columns, mask.width // columns).mean(axis=(1, 3))
    return torch.from_numpy(light_rc.reshape(-1, 1).copy())


def fingerprint(network: nn.Module) -> str:
    """The same for the same weights in the same numbers: from names, shapes, types and some numbers of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]
