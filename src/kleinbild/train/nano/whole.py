"""nano from nothing, by one command: autoencoder, base, student, the autoencoder again, and the files that the engine loads.

Every stage goes on from its checkpoint, and what is done is not done again: a run that was stopped anywhere is taken up by
the same command. The same seed on the same machine, run without a stop, gives the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from kleinbild.train.nano import autoencoder, distill, finish, flow
from kleinbild.train.nano.export import export


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each stage takes: minutes of the autoencoder, steps of the base and of the last stage, updates of the student."""

    minutes: float = 40
    steps: int = 20_000
    updates: int = 550
    finish_steps: int = 2000
    num_scenes: int = flow.NUM_SCENES
    seed: int = 0


def train_all(out: Path, plan: Plan, device: torch.device, *, compiled: bool = False) -> list[Path]:
    """Trains into `out`; the model is in `out/weights` at the end. Returns its weight files."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "autoencoder.safetensors").exists():
        autoencoder.train(out, plan.minutes, plan.seed, device.type)
    flow.train(out, plan.steps, plan.seed, device, plan.num_scenes, compiled=compiled)
    distill.train(out, plan.updates, plan.seed, device, plan.num_scenes)
    finish.train(out, plan.finish_steps, plan.seed, device, plan.num_scenes)
    return export(out, out / "weights")
