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
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, save_autoencoder
from kleinbild.train.nano.autoencoder import picture_loss
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.stage import pictures, train_on

SCENES, TEXTURES = 6, 6  # pictures in a step
NOISE = 0.3  # at most, of the latents' spread; a scene's is this times the square of a uniform number
ANCHOR_WEIGHT = 0.05  # of the squared distance that latents of the world have moved: else they could outgrow the noise
DECAY_SHARE = 0.6


def step_loss(autoencoder: Autoencoder, before: Autoencoder, device: torch.device, seed: int, step: int) -> Tensor:
    """How far pictures come out from what went in, and how far latents of the world have moved from those `before`."""
    wanted_BCHW = pictures(np.random.default_rng((seed, 6, step)), SCENES, TEXTURES, device)
    generator = torch.Generator().manual_seed((seed << 32) + step)
    with mixed(device):
        with torch.no_grad():
            anchors_BDrc = before.encode(wanted_BCHW[:SCENES]).float()
        latents_BDrc = autoencoder.encode(wanted_BCHW).float()
        noise_BDrc = torch.randn(anchors_BDrc.shape, generator=generator) * NOISE
        noise_BDrc *= torch.rand((SCENES, 1, 1, 1), generator=generator).square()
        noisy_BDrc = latents_BDrc[:SCENES] + noise_BDrc.to(device)
        out_BCHW = autoencoder.decode(torch.cat((noisy_BDrc, latents_BDrc[SCENES:])))
    moved = F.mse_loss(latents_BDrc[:SCENES], anchors_BDrc)
    return picture_loss(out_BCHW.float(), wanted_BCHW) + ANCHOR_WEIGHT * moved


def train(out: Path, start: Path, num_steps: int, seed: int, device: torch.device) -> None:
    before = load_autoencoder(start, NANO.autoencoder, device)
    autoencoder = copy.deepcopy(before)
    loss_at = partial(step_loss, autoencoder, before, device, seed)
    train_on(autoencoder, out / "sharpen.pt", num_steps, lambda: loss_at, after={}, decay_share=DECAY_SHARE)
    save_autoencoder(autoencoder, out / "autoencoder.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="weights of an autoencoder, as an exported model's")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    train(arguments.out, arguments.start, arguments.steps, arguments.seed, torch.device(arguments.device))


if __name__ == "__main__":
    main()
