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
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.schedule import times
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.render import NATIVE, SIDE, Scene, render
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, load_state, save_state
from kleinbild.train.nano.autoencoder import optimizers_of, picture_loss, random_scenes
from kleinbild.train.nano.distill import NUM_STEPS
from kleinbild.train.nano.flow import BATCH_SIZES, MIX, NUM_SCENES, SECONDS_A_CHECKPOINT, SHARES, Flow, pools
from kleinbild.train.nano.pool import Batch, Pool, draw_samples, to_batch, to_tensor
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.textures import random_texture

NUM_OWN = 6000  # the student's pictures that a run learns from
LEFT_OUT = 0.1  # of them: those furthest from what was asked, at times another thing altogether
OWN, SCENES, TEXTURES = 5, 3, 4  # pictures in a step
ANCHOR_WEIGHT = 10.0  # of the squared distance that latents of the world have moved, in their spreads
MUON_RATE, ADAM_RATE, WARMUP_STEPS = 0.0035, 5e-4, 40


@torch.no_grad()
def finished(flow: Flow, batch: Batch) -> Tensor:
    """Latents (B, N, C) that the student makes of the batch's noise."""
    at_BNC = batch.noise_BNC
    with mixed(at_BNC.device):
        context_BLX = flow.context(batch)
        for now, then in pairwise(times(at_BNC.shape[1], NUM_STEPS)):
            times_B = torch.full((len(at_BNC),), now, device=at_BNC.device)
            at_BNC = at_BNC + (then - now) * flow.velocity(at_BNC, times_B, batch, context_BLX)
    return at_BNC


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
    wanted = to_tensor(np.stack([render(scenes[index]) for index in own])).to(device)
    textures = np.stack([random_texture(generator, SIDE) for _ in range(TEXTURES)])
    others = torch.cat((random_scenes(generator, SCENES, SIDE), to_tensor(textures))).to(device)
    made_BDrc = latents_SNC[own].float().mT.unflatten(2, NATIVE)
    with mixed(device):
        with torch.no_grad():
            anchors_BDrc = before.encode(others[:SCENES]).float()
        encoded_BDrc = autoencoder.encode(others).float()
        out_BCHW = autoencoder.decode(torch.cat((made_BDrc, encoded_BDrc)))
    moved = F.mse_loss(encoded_BDrc[:SCENES], anchors_BDrc)
    return picture_loss(out_BCHW.float(), torch.cat((wanted, others))) + ANCHOR_WEIGHT * moved


def rate_factor(step: int, num_steps: int) -> float:
    """Warm-up (the optimizers know nothing of the weights), then linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max((num_steps - step) / num_steps, 0.01))


def train(
    out: Path, num_steps: int, seed: int, device: torch.device, num_scenes: int = NUM_SCENES, num_new: int = 0
) -> None:
    before = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    autoencoder = copy.deepcopy(before)
    optimizers = optimizers_of(autoencoder.requires_grad_(True), muon_rate=MUON_RATE, adam_rate=ADAM_RATE)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    student = load_state(out / "student.pt")
    if student is None:
        raise SystemExit(f"{out / 'student.pt'}: no student; run python -m kleinbild.train.nano.distill first")
    stage = {"base_step": student["base_step"], "updates": student["step"]}
    step = 0
    if (state := load_state(out / "finish.pt")) and state["stage"] == stage:
        autoencoder.load_state_dict(state["autoencoder"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    if step >= num_steps:
        return
    flow = Flow(NANO)
    flow.load_state_dict(student["average"])
    pool = next(pools(before, seed, stage["base_step"], device, num_scenes, out / "pool.pt", num_new))
    tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
    scenes, latents_SNC = own_latents(flow.to(device).eval(), pool, tokenizer, NUM_OWN, seed)
    started = saved_at = time.monotonic()
    losses: list[float] = []
    while step < num_steps:
        factor = rate_factor(step, num_steps)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
        loss = step_loss(autoencoder, before, scenes, latents_SNC, seed, step)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        losses.append(loss.item())
        if step % 100 == 0:
            seconds = time.monotonic() - started
            print(f"finish step {step} {seconds:.0f}s loss {sum(losses) / len(losses):.4f}", flush=True)
            losses.clear()
        if time.monotonic() - saved_at > SECONDS_A_CHECKPOINT or step == num_steps:
            saved_at = time.monotonic()
            save_state(
                out / "finish.pt",
                {
                    "autoencoder": autoencoder.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step,
                    "stage": stage,
                },
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds student.pt and what it came from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="scenes in the pool, as many as the base had")
    parser.add_argument("--new", type=int, default=0, help="nouns that come twice as often, as many as the base had")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    train(arguments.out, arguments.steps, arguments.seed, device, arguments.scenes, arguments.new)


if __name__ == "__main__":
    main()
