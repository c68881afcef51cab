"""Trains nano's autoencoder on before its base: `python -m kleinbild.train.nano.sharpen --start FILE --out runs/nano`.

Its encoder sees textures (`textures.py`), which people's own pictures have and the world has not, and may move, since what
reads its latents is trained next. The decoder also sees latents with noise, which stands for a student's errors: so the encoder
learns latents that errors do little to. Writes `autoencoder.safetensors`.

Stops and resumes at any step; the random streams are seeded by (seed, step). Shape suffixes: B pictures, D packed channels,
C channels, H W pixels, r c tokens.
"""

from __future__ import annotations

import argparse
import copy
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, save_autoencoder
from kleinbild.train.nano.autoencoder import picture_loss
from kleinbild.train.nano.compute import Compute, add_compute, compute_of
from kleinbild.train.nano.pool import to_tensor
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.stage import RATE_HELP, Lessons, pictures, train_on

SCENES, TEXTURES = 8, 4  # pictures in a step
NOISE = 0.3  # at most, of the latents' spread; a scene's is this times the square of a uniform number
ANCHOR_WEIGHT = 0.05  # of the squared distance that latents of the world have moved: else they could outgrow the noise
DECAY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Drawn:
    """The pictures of a step, and the seed of the noise on the latents of the first `num_scenes`, which are of the world."""

    pictures_BHWC: NDArray[np.uint8]
    num_scenes: int
    noise_seed: int


def draw(seed: int, scale: int, step: int) -> Drawn:
    some = pictures(np.random.default_rng((seed, 6, step)), scale * SCENES, scale * TEXTURES)
    return Drawn(some, scale * SCENES, (seed << 32) + step)


def step_loss(autoencoder: Autoencoder, before: Autoencoder, device: torch.device, drawn: Drawn) -> Tensor:
    """How far pictures come out from what went in, and how far latents of the world have moved from those `before`."""
    wanted_BCHW = to_tensor(drawn.pictures_BHWC, device)
    generator = torch.Generator(device).manual_seed(drawn.noise_seed)
    num_scenes = drawn.num_scenes
    with mixed(device):
        with torch.no_grad():
            anchors_BDrc = before.encode(wanted_BCHW[:num_scenes]).float()
        latents_BDrc = autoencoder.encode(wanted_BCHW).float()
        noise_BDrc = torch.randn(anchors_BDrc.shape, generator=generator, device=device) * NOISE
        noise_BDrc *= torch.rand((num_scenes, 1, 1, 1), generator=generator, device=device).square()
        noisy_BDrc = latents_BDrc[:num_scenes] + noise_BDrc
        out_BCHW = autoencoder.decode(torch.cat((noisy_BDrc, latents_BDrc[num_scenes:])))
    moved = F.mse_loss(latents_BDrc[:num_scenes], anchors_BDrc)
    return picture_loss(out_BCHW.float(), wanted_BCHW) + ANCHOR_WEIGHT * moved


def train(out: Path, start: Path, num_steps: int, seed: int, compute: Compute, *, rate: float = 1.0) -> None:
    before = load_autoencoder(start, NANO.autoencoder, compute.device)
    autoencoder = copy.deepcopy(before)
    lessons = Lessons(partial(draw, seed, compute.scale), partial(step_loss, autoencoder, before, compute.device))
    path, after = out / "sharpen.pt", {"start": zlib.crc32(start.read_bytes())}
    train_on(autoencoder, path, num_steps, lambda: lessons, compute, after=after, decay_share=DECAY_SHARE, rate=rate)
    save_autoencoder(autoencoder, out / "autoencoder.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="weights of an autoencoder, as an exported model's")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.0, help=RATE_HELP)
    add_compute(parser)
    arguments = parser.parse_args()
    train(arguments.out, arguments.start, arguments.steps, arguments.seed, compute_of(arguments), rate=arguments.rate)


if __name__ == "__main__":
    main()
