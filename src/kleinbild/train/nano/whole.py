"""nano from nothing, by one command: autoencoder, base, student, the autoencoder again, and the files that the engine loads.

Every stage goes on from its checkpoint, and what is done is not done again: a run that was stopped anywhere is taken up by
the same command. The same seed on the same machine, run without a stop, gives the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kleinbild.core.errors import ModelError
from kleinbild.train.nano import autoencoder, distill, finish, flow, sharpen
from kleinbild.train.nano.compute import Compute
from kleinbild.train.nano.export import export
from kleinbild.train.nano.pool import Data

TAKEN_UP = ("autoencoder.safetensors", "nano-base.safetensors", "text_encoder.safetensors", "tokenizer")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each stage takes: minutes of the autoencoder and steps that sharpen it, steps of the base and of the last stage,
    updates of the student. `start`: exported weights to go on from, which leave the autoencoder's minutes out.
    `autoencoder_rate`: times the usual rates, in the two stages that train it on."""

    minutes: float = 40
    sharpen_steps: int = 2000
    steps: int = 20_000
    updates: int = 3500
    finish_steps: int = 2000
    data: Data = field(default_factory=Data)
    start: Path | None = None
    autoencoder_rate: float = 1.0


def train_all(out: Path, plan: Plan, compute: Compute, *, compiled: bool = False) -> list[Path]:
    """Trains into `out`; the model is in `out/weights` at the end. Returns its weight files. Raises ModelError where there is
    nothing to start from."""
    if plan.start is not None and (missing := [name for name in TAKEN_UP if not (plan.start / name).exists()]):
        raise ModelError(
            f"{plan.start}: no weights of nano to go on from; {missing[0]} is not there",
            "give the folder that an earlier run calls `weights`",
        )
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "autoencoder.safetensors").exists():
        rough = out / autoencoder.ROUGH if plan.start is None else plan.start / "autoencoder.safetensors"
        if not rough.exists():
            autoencoder.train(out, plan.minutes, plan.data.seed, compute.device.type)
        sharpen.train(out, rough, plan.sharpen_steps, plan.data.seed, compute, rate=plan.autoencoder_rate)
    num_steps = plan.steps if plan.start is None else flow.STARTED_STEP + plan.steps
    flow.train(out, num_steps, plan.data, compute, plan.start, compiled=compiled)
    distill.train(out, plan.updates, compute, compiled=compiled)
    finish.train(out, plan.finish_steps, compute, rate=plan.autoencoder_rate)
    return export(out, out / "weights")
