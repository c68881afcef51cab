"""Previews: what a picture will be like, long before it is done, for next to nothing.

A linear map takes each packed latent token (128 channels) to 2x2 pixels of colour. It is fitted once a model, by least
squares, to what the model's own encoder makes of a few coloured patches; so it needs no weights of its own and suits any
autoencoder.

Shape suffixes: N tokens, C packed channels (128), r c rows and columns of tokens, P values of a token's pixels (12).
"""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kleinbild.model.weights import Model

FIT_SIDE = 64
FIT_PATCHES = (2, 3, 6, 1, 2, 4, 8)  # colours a side: some blurred into each other, some with hard edges
NUM_BLURRED, NUM_EACH = 3, 4  # 448 tokens in all for 129 unknowns; five times as many pixels made it no better
CELL = 8  # pixels of a latent cell, that a preview shows as one
RIDGE = 1e-3  # of the channels' mean square: keeps what the pictures do not tell at zero


class Previewer:
    """Draws previews of one model; fitted when the first is asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._map_CP: Tensor | None = None

    def png(self, latent_1Crc: Tensor) -> bytes:
        """A PNG of an eighth of the picture's sides."""
        buffer = io.BytesIO()
        self.image(latent_1Crc).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def image(self, latent_1Crc: Tensor) -> Image.Image:
        if self._map_CP is None:
            self._map_CP = fit(self._model)
        tokens_NC = latent_1Crc[0].flatten(1).mT.float()
        pixels_NP = torch.cat((tokens_NC, tokens_NC.new_ones(len(tokens_NC), 1)), dim=1) @ self._map_CP
        rows, columns = latent_1Crc.shape[2:]
        pixels_3HW = F.pixel_shuffle(pixels_NP.mT.reshape(1, -1, rows, columns), 2)[0]
        levels_3HW = (pixels_3HW.clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(levels_3HW.permute(1, 2, 0).cpu().contiguous().numpy())


@torch.inference_mode()
def fit(model: Model) -> Tensor:
    """The map (C + 1, P): the last row is the offset."""
    pictures_B3HW = pictures().to(model.device)
    latents = torch.cat([model.autoencoder.encode(x) for x in (pictures_B3HW * 2 - 1).to(model.dtype).split(1)]).float()
    cells = F.pixel_unshuffle(F.avg_pool2d(pictures_B3HW, CELL), 2)  # colour, row in token, column in token
    known_NC, wanted_NP = (x.permute(0, 2, 3, 1).flatten(0, 2) for x in (latents, cells))
    known_NC = torch.cat((known_NC, known_NC.new_ones(len(known_NC), 1)), dim=1)
    gram = known_NC.mT @ known_NC
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
    map_CP: Tensor = torch.linalg.solve(gram, known_NC.mT @ wanted_NP)
    return map_CP


def pictures() -> Tensor:
    """Pictures (B, 3, H, W) from 0 to 1 of coloured patches, always the same."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for i, patches in enumerate(FIT_PATCHES):
        coarse = torch.rand((NUM_EACH, 3, patches, patches), generator=generator)
        mode = "bicubic" if i < NUM_BLURRED else "nearest"
        parts.append(F.interpolate(coarse, size=(FIT_SIDE, FIT_SIDE), mode=mode).clamp(0, 1))
    return torch.cat(parts)
