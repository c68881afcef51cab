"""Trains the few-step student from the base model: `python -m kleinbild.train.nano.distill --steps 3500`.

`--start DIR` takes up an exported student with its base, as if the run had made them.

The student starts as the base's average and learns on its own trajectories: at each of the four times that the sampler
visits it sees the noisy latent that it has itself arrived at, and is asked for the velocity that leads from there to the
picture. So it corrects its own errors, needs no guidance, and four steps are what it was trained for. The text encoder
is shared with the base and stays as it is.

Shape suffixes: B samples, N image tokens, C latent channels, X context width, L text tokens.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file
from torch import Tensor

from kleinbild.model.schedule import times
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.render import Grid
from kleinbild.nano.scenes.tasks import GRIDS
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, load_state, save_state
from kleinbild.train.nano.compute import Compute, add_compute, compute_of
from kleinbild.train.nano.flow import (
    SECONDS_A_CHECKPOINT,
    Flow,
    Run,
    begin,
    data_of,
    start_from,
    stretches,
    update,
    weighted_error,
)
from kleinbild.train.nano.flow import SHARES as BASE_SHARES
from kleinbild.train.nano.pool import Batch, Data, Draft, Pool, Topic, add_data, data_given, draft, to_batch
from kleinbild.train.nano.precision import mixed

NUM_STEPS = 4
BATCH_SIZES = (18, 11, 8)  # half the base's: a trajectory is four passes
MIX = (0.22, 0.58, 0.20)  # how often an update has none, one, two references: more edits than the base learns from
SHARES: tuple[Mapping[Topic, float], ...] = (
    BASE_SHARES[0],
    {"background": 0.29, "remove": 0.42, "add": 0.07, "replace": 0.11, "move": 0.05, "recolor": 0.03, "vary": 0.03},
    BASE_SHARES[2],
)
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


def trajectory_step(run: Run, batch: Batch, factor: float) -> Tensor:
    """The loss at each time that the sampler visits makes one update. Returns the mean loss."""
    total = batch.noise_BNC.new_zeros(())
    for now, at_BNC, velocity_BNC in walk(run.flow, batch, context_of(run.flow, batch)):
        wanted_BNC = (at_BNC - batch.target_BNC) / now
        # An error of the velocity moves the picture by `now` times as much: weigh all times by what they do to it.
        total = total + weighted_error(now * velocity_BNC, now * wanted_BNC, batch)
    update(run, total, factor, EMA_DECAY)
    return total.detach() / NUM_STEPS


def student_of(base: Flow, scale: float = RATE_SCALE) -> Run:
    """A run that trains a base on as its student, text encoder frozen."""
    base.text_encoder.requires_grad_(False)
    return begin(base, scale=scale)


def take_up(weights: Path, out: Path, base_step: int, updates: int, data: Data) -> None:
    """Writes the states of base and student to `out` as a run would have left them after so many steps and updates: exported
    weights, the optimizers at their beginning. A base that is there stays, with its student."""
    if (out / "flow.pt").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    base = Flow(NANO)
    start_from(weights, out, base)
    student = copy.deepcopy(base)
    student.transformer.load_state_dict(load_file(weights / "nano.safetensors"))
    for name, run, step in (("student", student_of(student), updates), ("flow", begin(base), base_step)):
        run.step = run.first_step = step
        save_state(out / f"{name}.pt", {**run.state(), "base_step": base_step, "data": asdict(data)})


def begin_student(out: Path, device: torch.device) -> tuple[Run, int, Data]:
    """The base's average with a frozen text encoder, or the checkpoint of a student of this base; the base's step and data."""
    base = load_state(out / "flow.pt")
    if base is None:
        raise SystemExit(
            f"{out / 'flow.pt'}: no base model to start from; run python -m kleinbild.train.nano.flow first"
        )
    flow = Flow(NANO)
    flow.load_state_dict(base["average"])
    run = student_of(flow.to(device))
    if (state := load_state(out / "student.pt")) and state.get("base_step") == base["step"]:
        run.restore(state)
    return run, base["step"], data_of(base)


def lesson(
    pool: Pool, stream: str, sizes: tuple[int, ...], tokenizer: PromptTokenizer, number: int, *,
    grids: tuple[Grid, ...] = GRIDS,
) -> Draft:  # fmt: skip
    """What the student is asked for, pictures of the sizes `grids`: the random stream's draft of that number."""
    random = Random(f"{stream}-{number}")
    kind = random.choices(range(3), MIX)[0]
    return draft(pool, SHARES[kind], sizes[kind], random, tokenizer, grids=grids)


def train(out: Path, num_updates: int, compute: Compute, *, compiled: bool = False) -> None:
    device = compute.device
    tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
    autoencoder = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    run, base_step, data = begin_student(out, device)
    if run.step >= num_updates:
        return
    if compiled:
        run.flow.compile_blocks()
    started = saved_at = time.monotonic()
    losses: list[Tensor] = []
    steps = range(base_step + run.step, base_step + num_updates)  # the pools go on where the base's ended
    for pool, stretch in stretches(autoencoder, data, steps, compute, out / "pool.pt"):
        lessons = partial(lesson, pool, f"student-{data.seed}", compute.scaled(BATCH_SIZES), tokenizer)
        for drawn in compute.drawn(lessons, stretch):
            factor = min(
                1.0, (run.step - run.first_step + 1) / 20, max((num_updates - run.step) / (0.7 * num_updates), 0.01)
            )
            losses.append(trajectory_step(run, to_batch(pool, drawn), factor))
            if run.step % 50 == 0:
                mean = float(torch.stack(losses).mean())
                print(f"student step {run.step} {time.monotonic() - started:.0f}s loss {mean:.4f}", flush=True)
                losses.clear()
            if time.monotonic() - saved_at > SECONDS_A_CHECKPOINT or run.step == num_updates:
                saved_at = time.monotonic()
                save_state(out / "student.pt", {**run.state(), "base_step": base_step, "data": asdict(data)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds flow.pt, autoencoder and tokenizer")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--compile", action="store_true", help="compile the blocks: faster after the first minutes")
    parser.add_argument(
        "--start",
        type=Path,
        help="exported base and student to go on from; only then the six options below count, else the run knows them",
    )
    parser.add_argument("--base-steps", type=int, default=0, help="that the base has had: the pools go on from there")
    parser.add_argument("--updates", type=int, default=0, help="that the student has had: they count in --steps")
    add_data(parser)
    add_compute(parser)
    arguments = parser.parse_args()
    if arguments.start is not None:
        take_up(arguments.start, arguments.out, arguments.base_steps, arguments.updates, data_given(arguments))
    train(arguments.out, arguments.steps, compute_of(arguments), compiled=arguments.compile)


if __name__ == "__main__":
    main()
