"""How alike two pictures are, for the watch over a run and for the sweep of strengths: distances of autoencoder latents.

Why the model's own autoencoder: it is at hand, frozen, and the same for every run of a family; its latents are whitened
channel by channel, so that no channel outweighs the others; and the training pictures' latents are in the cache already.
Averaged to 8x8 places they tell a copy from anything else: on nano's scenes a picture of the same thing on the same
ground is 0.09 away, another thing in its place 0.5 to 0.6, the same thing elsewhere 0.7, on another ground 1 to 1.5.
Small pixels tell copies as well, but a change of the ground is seven times one of the thing; here it is two to three times.

Shape suffixes: N tokens, C latent channels, r c rows and columns, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kleinbild.engine.encode import encode_picture
from kleinbild.model.weights import Model

PLACES = 8
LEAST_SPACING = 0.05
"""What two renderings of one scene differ by. Pictures that are closer than this are the same picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What is compared of a picture: `places_F`, what is where; `manner_F`, how it looks wherever things are."""

    places_F: Tensor
    manner_F: Tensor


def look_at(model: Model, image: Image.Image) -> Look:
    cell = model.spec.autoencoder.pixels_per_token
    width, height = (max(cell, side // cell * cell) for side in image.size)
    fitted = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    with torch.no_grad():
        return _of_latent(encode_picture(model, fitted.convert("RGB")))


def look_of_tokens(target_NC: Tensor, grid: tuple[int, int]) -> Look:
    """Of a picture that is encoded already."""
    return _of_latent(target_NC.t().reshape(1, -1, *grid))


def _of_latent(latent_1Crc: Tensor) -> Look:
    latent = latent_1Crc.float().cpu()
    places = F.adaptive_avg_pool2d(latent, PLACES).flatten()
    manner = torch.cat((latent.mean((-2, -1)).flatten(), latent.std((-2, -1), correction=0).flatten()))
    return Look(places, manner)


def apart(one_F: Tensor, other_F: Tensor) -> float:
    """The root mean square difference of two pictures' features."""
    return float((one_F - other_F).square().mean().sqrt())


def nearest(one: Look, others: Sequence[Look]) -> float:
    """The distance to the most alike of `others`, place by place."""
    return float(_distances([one], others).min())


def spacing(looks: Sequence[Look]) -> float:
    """The usual (median) distance of one of these pictures to its nearest neighbour; 0 for fewer than two."""
    if len(looks) < 2:
        return 0.0
    distances = _distances(looks, looks).fill_diagonal_(torch.inf)
    return float(distances.min(dim=1).values.median())


def _distances(ones: Sequence[Look], others: Sequence[Look]) -> Tensor:
    """(ones, others), exactly 0 for the same picture."""
    a, b = (torch.stack([look.places_F for look in looks]) for looks in (ones, others))
    distances: Tensor = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    scaled: Tensor = distances / a.shape[1] ** 0.5
    return scaled


def spread(looks: Sequence[Look]) -> float:
    """The mean distance between any two of these pictures; 0 for fewer than two."""
    pairs = [apart(a.places_F, b.places_F) for i, a in enumerate(looks) for b in looks[:i]]
    return sum(pairs) / len(pairs) if pairs else 0.0
