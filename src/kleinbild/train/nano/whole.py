"""nano from nothing, by one command: autoencoder, base, student, the autoencoder again, and the files that the engine loads.

Every stage goes on from its checkpoint, and what is done is not done again: a run that was stopped anywhere is taken up by
the same command. The same seed on the same machine, run without a stop, gives the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kleinbild.train.nano import autoencoder, distill, finish, flow, sharpen
from kleinbild.train.nano.export import export
from kleinbild.train.nano.pool import Data


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each stage takes: minutes of the autoencoder and steps that sharpen it, steps of the base and of the last stage,
    updates of the student."""

    minutes: float = 40
    sharpen_steps: int = 2000
    steps: int = 20_000
    updates: int = 550
    finish_steps: int = 2000
    data: Data = field(default_factory=Data)


def train_all(out: Path, plan: Plan, device: torch.device, *, compiled: bool = False) -> list[Path]:
    """Trains into `out`; the model is in `out/weights` at the end. Returns its weight files."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "autoencoder.safetensors").exists():
        if not (out / autoencoder.ROUGH).exists():
            autoencoder.train(out, plan.minutes, plan.data.seed, device.type)
        sharpen.train(out, out / autoencoder.ROUGH, plan.sharpen_steps, plan.data.seed, device)
    flow.train(out, plan.steps, plan.data, device, compiled=compiled)
    distill.train(out, plan.updates, device)
    finish.train(out, plan.finish_steps, device)
    return export(out, out / "weights")
