"""Trains the few-step student from the base model: `python -m kleinbild.train.nano.distill --steps 600`.

The student starts as the base's average and learns on its own trajectories: at each of the four times that the sampler
visits it sees the noisy latent that it has itself arrived at, and is asked for the velocity that leads from there to the
picture. So it corrects its own errors, needs no guidance, and four steps are what it was trained for. The text encoder
is shared with the base and stays as it is.

Shape suffixes: B samples, N image tokens, C latent channels, X context width, L text tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from kleinbild.model.schedule import times
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, load_state, save_state
from kleinbild.train.nano.flow import (
    MIX,
    SECONDS_A_CHECKPOINT,
    SHARES,
    Flow,
    Run,
    begin,
    data_of,
    pools,
    update,
    weighted_error,
)
from kleinbild.train.nano.pool import Batch, Data, draw_batch
from kleinbild.train.nano.precision import mixed

NUM_STEPS = 4
BATCH_SIZES = (18, 11, 8)  # half the base's: a trajectory is four passes
RATE_SCALE = 0.3
EMA_DECAY = 0.99


def walk(flow: Flow, batch: Batch, context_BLX: Tensor) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Follows the sampler from the batch's noise: each time that it visits, where it stands then (B, N, C), its velocity there.

    It walks on without gradients. From the last time to 0 is left to the caller.
    """
    at_BNC = batch.noise_BNC
    for now, then in pairwise(times(at_BNC.shape[1], NUM_STEPS)):
        times_B = torch.full((len(at_BNC),), now, device=at_BNC.device)
        with mixed(at_BNC.device):
            velocity_BNC = flow.velocity(at_BNC, times_B, batch, context_BLX)
        yield now, at_BNC, velocity_BNC
        at_BNC = at_BNC + (then - now) * velocity_BNC.detach()


def context_of(flow: Flow, batch: Batch) -> Tensor:
    with torch.no_grad(), mixed(batch.noise_BNC.device):
        return flow.context(batch)


def trajectory_step(run: Run, batch: Batch, factor: float) -> float:
    """The loss at each time that the sampler visits makes one update. Returns the mean loss."""
    total = batch.noise_BNC.new_zeros(())
    for now, at_BNC, velocity_BNC in walk(run.flow, batch, context_of(run.flow, batch)):
        wanted_BNC = (at_BNC - batch.target_BNC) / now
        # An error of the velocity moves the picture by `now` times as much: weigh all times by what they do to it.
        total = total + weighted_error(now * velocity_BNC, now * wanted_BNC, batch)
    update(run, total, factor, EMA_DECAY)
    return float(total.detach()) / NUM_STEPS


def begin_student(out: Path, device: torch.device) -> tuple[Run, int, Data]:
    """The base's average with a frozen text encoder, or the checkpoint of a student of this base; the base's step and data."""
    base = load_state(out / "flow.pt")
    if base is None:
        raise SystemExit(
            f"{out / 'flow.pt'}: no base model to start from; run python -m kleinbild.train.nano.flow first"
        )
    flow = Flow(NANO)
    flow.load_state_dict(base["average"])
    flow.text_encoder.requires_grad_(False)
    run = begin(flow.to(device), scale=RATE_SCALE)
    if (state := load_state(out / "student.pt")) and state.get("base_step") == base["step"]:
        run.restore(state)
    return run, base["step"], data_of(base)


def train(out: Path, num_updates: int, device: torch.device) -> None:
    tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
    autoencoder = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    run, base_step, data = begin_student(out, device)
    if run.step >= num_updates:
        return
    pool = next(pools(autoencoder, data, base_step, device, out / "pool.pt"))  # the base's last: it is cached
    started = saved_at = time.monotonic()
    losses: list[float] = []
    while run.step < num_updates:
        random = Random(f"student-{data.seed}-{run.step}")
        kind = random.choices(range(3), MIX)[0]
        batch = draw_batch(pool, SHARES[kind], BATCH_SIZES[kind], random, tokenizer)
        factor = min(1.0, (run.step + 1) / 20, max((num_updates - run.step) / (0.7 * num_updates), 0.01))
        losses.append(trajectory_step(run, batch, factor))
        if run.step % 50 == 0:
            mean = sum(losses) / len(losses)
            print(f"student step {run.step} {time.monotonic() - started:.0f}s loss {mean:.4f}", flush=True)
            losses.clear()
        if time.monotonic() - saved_at > SECONDS_A_CHECKPOINT or run.step == num_updates:
            saved_at = time.monotonic()
            save_state(out / "student.pt", {**run.state(), "base_step": base_step, "data": asdict(data)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds flow.pt, autoencoder and tokenizer")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, torch.device(arguments.device))


if __name__ == "__main__":
    main()
