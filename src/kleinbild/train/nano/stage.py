"""What the stages have in common that train nano's autoencoder on: the loop, and pictures of its world beside others.

Stops and resumes at any step. Shape suffixes: B pictures, C channels, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.nano.scenes.render import SIDE
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.nano.autoencoder import optimizers_of, random_scenes, update
from kleinbild.train.nano.compute import Compute
from kleinbild.train.nano.flow import SECONDS_A_CHECKPOINT
from kleinbild.train.nano.textures import random_texture

T = TypeVar("T")

MUON_RATE, ADAM_RATE, WARMUP_STEPS = 0.0035, 5e-4, 40  # at twice these rates the loss rises for hundreds of steps
RATE_HELP = "times the usual rates: more with more pictures in a step"


@dataclass(frozen=True, slots=True)
class Lessons(Generic[T]):
    """What is drawn for a step, and the loss of what was drawn."""

    draw: Callable[[int], T]
    loss: Callable[[T], Tensor]


def train_on(
    autoencoder: Autoencoder, path: Path, num_steps: int, begin: Callable[[], Lessons[T]], compute: Compute, *,
    after: dict[str, int], decay_share: float = 1.0, rate: float = 1.0,
) -> None:  # fmt: skip
    """Trains up to `num_steps` steps, from the checkpoint at `path` if it comes `after` the same; leaves its weights in
    `autoencoder`. `begin` is asked once, if there is something left to do. `rate`: times the usual rates."""
    optimizers = optimizers_of(autoencoder.requires_grad_(True), muon_rate=rate * MUON_RATE, adam_rate=rate * ADAM_RATE)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step = 0
    if (state := load_state(path)) and state["stage"] == after:
        autoencoder.load_state_dict(state["autoencoder"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    if step >= num_steps:
        return
    lessons = begin()
    started = saved_at = time.monotonic()
    losses: list[Tensor] = []
    for drawn in compute.drawn(lessons.draw, range(step, num_steps)):
        factor = rate_factor(step, num_steps, decay_share)
        for optimizer, full in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = full * factor
        loss = lessons.loss(drawn)
        update(optimizers, loss)
        step += 1
        losses.append(loss.detach())
        if step % 100 == 0:
            seconds = time.monotonic() - started
            print(f"{path.stem} step {step} {seconds:.0f}s loss {float(torch.stack(losses).mean()):.4f}", flush=True)
            losses.clear()
        if time.monotonic() - saved_at > SECONDS_A_CHECKPOINT or step == num_steps:
            saved_at = time.monotonic()
            save_state(
                path,
                {
                    "autoencoder": autoencoder.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step,
                    "stage": after,
                },
            )


def rate_factor(step: int, num_steps: int, decay_share: float) -> float:
    """Warm-up (the optimizers know nothing of the weights), plateau, linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max((num_steps - step) / (decay_share * num_steps), 0.01))


def pictures(generator: np.random.Generator, num_scenes: int, num_textures: int) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3): first those of the world, then textures."""
    textures = [random_texture(generator, SIDE) for _ in range(num_textures)]
    return np.concatenate((random_scenes(generator, num_scenes, SIDE), textures))
