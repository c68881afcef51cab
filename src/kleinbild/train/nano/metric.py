"""How much an error of the latents shows in the picture.

Of nano's 128 latent channels a few directions say what colour a patch has. They hold a thirtieth of the latents' variance
and half of what an error does to the pixels (measured), so a loss that counts all channels alike leaves things in the
wrong shade. Half of the loss counts the latents as they are, half by the pixels.

Shape suffixes: B pictures, C latent channels, D rows and c columns of tokens, P values of a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.train.nano.precision import mixed

DISTANCE = 4  # tokens between those that are disturbed at once: further than a token is seen
DISTURBANCE = 0.5  # in spreads of the latents: about what the student's are off by
PIXEL_SHARE = 0.5
CHANNELS_AT_ONCE = 32


@torch.no_grad()
def pixel_metric(autoencoder: Autoencoder, latents_BCDc: Tensor) -> Tensor:
    """G (C, C): an error e of one token's latents adds e'Ge to the squared error of the picture, up to a factor.

    By disturbing the latents of pictures, one channel after the other; the mean over its diagonal is 1.
    """
    num_channels = latents_BCDc.shape[1]
    metric_CC = torch.zeros(num_channels, num_channels, device=latents_BCDc.device)
    for number, latents_CDc in enumerate(latents_BCDc.float()):
        row, column = number % DISTANCE, number // DISTANCE % DISTANCE
        disturbed = latents_CDc.repeat(num_channels, 1, 1, 1)
        disturbed.diagonal(dim1=0, dim2=1)[row::DISTANCE, column::DISTANCE] += DISTURBANCE
        with mixed(latents_CDc.device):
            as_it_is = autoencoder.decode(latents_CDc[None])
            moved = torch.cat([autoencoder.decode(part) - as_it_is for part in disturbed.split(CHANNELS_AT_ONCE)])
        moved_CP = moved.float().flatten(1)
        metric_CC += moved_CP @ moved_CP.mT
    return metric_CC / metric_CC.diagonal().mean()


def root_of_loss(metric_CC: Tensor) -> Tensor:
    """R (C, C) so that the mean of (eR)^2 over channels is the loss of an error e: for white errors that of e^2."""
    identity = torch.eye(len(metric_CC), device=metric_CC.device)
    values, vectors = torch.linalg.eigh(torch.lerp(identity, metric_CC, PIXEL_SHARE))
    root_CC: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root_CC
