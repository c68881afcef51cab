"""Trains nano's autoencoder on: `python -m kleinbild.train.nano.finish --steps 2000`, the last stage.

The decoder has only ever seen what the encoder makes of the world's pictures. Here it also sees what it is given in use,
the student's latents, beside the picture that was asked for; and both see textures (`textures.py`), which people's own
pictures have and the world has not. Latents of the world's pictures are held where they were, so nothing else has to learn.

Stops and resumes at any step; the random streams are seeded by (seed, step). Shape suffixes: B samples, N image tokens,
C latent channels, D packed channels (= C), H W pixels, r c tokens.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.oracle import box_slices
from kleinbild.nano.scenes.render import NATIVE, SIDE, Scene, render
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, load_state
from kleinbild.train.nano.autoencoder import picture_loss
from kleinbild.train.nano.distill import context_of, walk
from kleinbild.train.nano.flow import BATCH_SIZES, MIX, SHARES, Flow, data_of, pools
from kleinbild.train.nano.pool import Batch, Pool, draw_samples, to_batch, to_tensor
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.stage import pictures, train_on

NUM_OWN = 6000  # the student's pictures that a run learns from
LEFT_OUT = 0.1  # of them: those furthest from what was asked, at times another thing altogether
OWN, SCENES, TEXTURES = 6, 2, 4  # pictures in a step
BOX_WEIGHT = 2.0  # what an error in a thing's box is multiplied by
ANCHOR_WEIGHT = 10.0  # of the squared distance that latents of the world have moved, in their spreads


@torch.no_grad()
def finished(flow: Flow, batch: Batch) -> Tensor:
    """Latents (B, N, C) that the student makes of the batch's noise."""
    *_, (last, at_BNC, velocity_BNC) = walk(flow, batch, context_of(flow, batch))
    return at_BNC - last * velocity_BNC


def own_latents(
    flow: Flow, pool: Pool, tokenizer: PromptTokenizer, count: int, seed: int
) -> tuple[list[Scene], Tensor]:
    """What was asked of the student, native pictures, and the latents (S, N, C) that it made, bfloat16; without the worst."""
    random = Random(f"finish-{seed}")
    scenes: list[Scene] = []
    latents: list[Tensor] = []
    errors: list[Tensor] = []
    while len(scenes) < count:
        kind = random.choices(range(3), MIX)[0]
        chosen = draw_samples(pool, SHARES[kind], BATCH_SIZES[kind], random)
        if chosen[0].target.grid != NATIVE:
            continue
        batch = to_batch(pool, chosen, random, tokenizer)
        made_BNC = finished(flow, batch)
        scenes += [sample.target for sample in chosen]
        latents.append(made_BNC.to(torch.bfloat16))
        errors.append((made_BNC - batch.target_BNC).square().mean(dim=(1, 2)))
    best = torch.cat(errors).argsort()[: round(len(scenes) * (1 - LEFT_OUT))].tolist()
    return [scenes[index] for index in best], torch.cat(latents)[best]


def step_loss(
    autoencoder: Autoencoder, before: Autoencoder, scenes: list[Scene], latents_SNC: Tensor, seed: int, step: int
) -> Tensor:
    """How far the student's pictures and those that are encoded come out from what they should be, and how far latents of
    the world have moved from what they were `before`."""
    generator = np.random.default_rng((seed, 5, step))
    device = latents_SNC.device
    own = generator.integers(len(scenes), size=OWN)
    asked = [scenes[index] for index in own]
    asked_BCHW = to_tensor(np.stack([render(scene) for scene in asked])).to(device)
    others_BCHW = pictures(generator, SCENES, TEXTURES, device)
    wanted_BCHW = torch.cat((asked_BCHW, others_BCHW))
    weights_B1HW = torch.cat((box_weights(asked).to(device), torch.ones_like(others_BCHW[:, :1])))
    made_BDrc = latents_SNC[own].float().mT.unflatten(2, NATIVE)
    with mixed(device):
        with torch.no_grad():
            anchors_BDrc = before.encode(others_BCHW[:SCENES]).float()
        encoded_BDrc = autoencoder.encode(others_BCHW).float()
        out_BCHW = autoencoder.decode(torch.cat((made_BDrc, encoded_BDrc)))
    moved = F.mse_loss(encoded_BDrc[:SCENES], anchors_BDrc)
    return picture_loss(out_BCHW.float() * weights_B1HW, wanted_BCHW * weights_B1HW) + ANCHOR_WEIGHT * moved


def box_weights(scenes: list[Scene]) -> Tensor:
    """What the errors of the pixels (B, 1, H, W) of native pictures are multiplied by."""
    weights_B1HW = torch.ones(len(scenes), 1, SIDE, SIDE)
    for weights_HW, scene in zip(weights_B1HW[:, 0], scenes, strict=True):
        for item in scene.placed:
            weights_HW[box_slices(item)] = BOX_WEIGHT
    return weights_B1HW


def train(out: Path, num_steps: int, device: torch.device) -> None:
    before = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    autoencoder = copy.deepcopy(before)
    student = load_state(out / "student.pt")
    if student is None:
        raise SystemExit(f"{out / 'student.pt'}: no student; run python -m kleinbild.train.nano.distill first")

    data = data_of(student)

    def begin() -> Callable[[int], Tensor]:
        flow = Flow(NANO)
        flow.load_state_dict(student["average"])
        pool = next(pools(before, data, student["base_step"], device, out / "pool.pt"))
        tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
        scenes, latents_SNC = own_latents(flow.to(device).eval(), pool, tokenizer, NUM_OWN, data.seed)
        return partial(step_loss, autoencoder, before, scenes, latents_SNC, data.seed)

    after = {"base_step": student["base_step"], "updates": student["step"]}
    train_on(autoencoder, out / "finish.pt", num_steps, begin, after=after)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds student.pt and what it came from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, torch.device(arguments.device))


if __name__ == "__main__":
    main()
