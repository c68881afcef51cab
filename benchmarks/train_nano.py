"""What training nano costs here: seconds a step of each stage; and, with --within, the longest training that fits a given time.

    python benchmarks/train_nano.py [--device cuda] [--scales 8,16] [--within MINUTES --out DIR] [--json]

First the gradients of the base are compared with those that the CPU computes, if the device is another. Each stage then goes on from
the weights in the package, at rates of nothing, in steps of so many times the usual pictures. With --within all stages go on from
them in earnest: at the scale where a picture costs the base least, each as many steps as its share of the time lets it. What the
shares leave, and MARGIN, is for what no step is timed with: pools, the student's own pictures, files.

The last line is JSON: `seconds` by stage and scale, `gradients` (how far they are from the CPU's, by number of references), and
the files that were written.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.catalog import PACKAGED
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.render import NATIVE
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder
from kleinbild.train.nano import distill, finish, flow, sharpen
from kleinbild.train.nano.autoencoder import optimizers_of, update
from kleinbild.train.nano.compute import Compute
from kleinbild.train.nano.pool import Batch, Data, Draft, Pool, build_pool, to_batch
from kleinbild.train.nano.stage import Lessons
from kleinbild.train.nano.whole import Plan, train_all

SHARES = {"sharpen": 0.17, "base": 0.47, "student": 0.16, "finish": 0.12}  # of the time
MARGIN = 1.05  # times the seconds that a step took here
NUM_WARM = 3  # steps that are not timed
TIMED_STEP = 5000  # of the base: beyond its first lessons
NOTHING = 1e-9  # times the usual rates: weights stay good ones


@dataclass(slots=True)
class Measured:
    seconds: dict[str, dict[int, float]] = field(default_factory=lambda: {stage: {} for stage in SHARES})
    gradients: dict[int, float] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def gradients(network: flow.Flow, pool: Pool, tokenizer: PromptTokenizer, device: torch.device) -> dict[int, float]:
    """How far the device's gradients are from the CPU's, of their length, by the number of references."""
    found: dict[int, float] = {}
    for step in range(TIMED_STEP, TIMED_STEP + 30):
        kind, drawn = flow.lesson(pool, 0, (4, 3, 2), tokenizer, step)
        if kind in found:
            continue
        batch = to_batch(pool, drawn)
        times = flow.draw_times(len(batch.noise_BNC), torch.Generator().manual_seed(step))
        there = _gradient(network, batch, times, device)
        here = _gradient(network, batch, times, torch.device("cpu"))
        found[kind] = float((there - here).norm() / here.norm())
    return dict(sorted(found.items()))


def _gradient(network: flow.Flow, batch: Batch, times: Tensor, device: torch.device) -> Tensor:
    moved = {each.name: getattr(batch, each.name) for each in fields(batch)}
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
    copied = copy.deepcopy(network).to(device)
    flow.flow_loss(copied, Batch(**moved), times.to(device)).backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in copied.parameters() if p.grad is not None])


def seconds_a_step(drawn: Iterator[Any], step: Callable[[Any], object], device: torch.device) -> float:
    """Of what is left of `drawn` after the first few."""
    for _ in range(NUM_WARM):
        step(next(drawn))
    _finish(device)
    started, count = time.monotonic(), 0
    for each in drawn:
        step(each)
        count += 1
    _finish(device)
    return (time.monotonic() - started) / count


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_base(network: flow.Flow, pool: Pool, tokenizer: PromptTokenizer, compute: Compute, steps: int) -> float:
    run = flow.begin(copy.deepcopy(network).to(compute.device), scale=NOTHING)

    def step(lesson: tuple[int, Draft]) -> None:
        batch = to_batch(pool, lesson[1])
        times = flow.draw_times(len(batch.noise_BNC), torch.Generator().manual_seed(0)).to(compute.device)
        flow.update(run, flow.flow_loss(run.flow, batch, times), 1.0)

    draw = partial(flow.lesson, pool, 0, compute.scaled(flow.BATCH_SIZES), tokenizer)
    return seconds_a_step(compute.drawn(draw, range(TIMED_STEP, TIMED_STEP + NUM_WARM + steps)), step, compute.device)


def time_student(network: flow.Flow, pool: Pool, tokenizer: PromptTokenizer, compute: Compute, steps: int) -> float:
    run = distill.student_of(copy.deepcopy(network).to(compute.device), NOTHING)
    draw = partial(distill.lesson, pool, "student-0", compute.scaled(distill.BATCH_SIZES), tokenizer)
    drawn = compute.drawn(draw, range(NUM_WARM + steps))
    return seconds_a_step(drawn, lambda each: distill.trajectory_step(run, to_batch(pool, each), 1.0), compute.device)


def time_autoencoder(autoencoder: Autoencoder, lessons: Lessons[Any], compute: Compute, steps: int) -> float:
    optimizers = optimizers_of(autoencoder.requires_grad_(True), muon_rate=NOTHING, adam_rate=NOTHING)
    drawn = compute.drawn(lessons.draw, range(NUM_WARM + steps))
    return seconds_a_step(drawn, lambda each: update(optimizers, lessons.loss(each)), compute.device)


def measure(device: torch.device, scales: list[int], steps: int, num_scenes: int) -> Measured:
    measured, usual = Measured(), Compute.on(device)
    tokenizer = PromptTokenizer(PACKAGED / "tokenizer", NANO.text_encoder.max_tokens)
    autoencoder = load_autoencoder(PACKAGED / "autoencoder.safetensors", NANO.autoencoder, device)
    network = flow.Flow(NANO)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        pool = build_pool(autoencoder, Data(0, num_scenes), 0, usual, Path(folder) / "pool.pt")
        print(f"a pool of {len(pool.index)} scenes: {time.monotonic() - started:.1f} s", flush=True)
        flow.start_from(PACKAGED, Path(folder), network)
    if device.type != "cpu":
        measured.gradients = gradients(network, pool, tokenizer, device)
        print(f"gradients differ from the CPU's by {measured.gradients}", flush=True)
    scenes = [scene for scene in pool.index if scene.grid == NATIVE]
    for scale in scales:
        compute, trained = replace(usual, scale=scale), copy.deepcopy(autoencoder)
        sharpening = partial(sharpen.step_loss, trained, autoencoder, device)
        finishing = partial(finish.step_loss, trained, autoencoder, pool.latents_SNC[NATIVE])
        of_finish = Lessons(partial(finish.draw, scenes, 0, scale), finishing)
        ways: dict[str, Callable[[], float]] = {
            "sharpen": partial(time_autoencoder, trained, Lessons(partial(sharpen.draw, 0, scale), sharpening), compute, steps),
            "base": partial(time_base, network, pool, tokenizer, compute, steps),
            "student": partial(time_student, network, pool, tokenizer, compute, steps),
            "finish": partial(time_autoencoder, trained, of_finish, compute, steps),
        }  # fmt: skip
        for stage, way in ways.items():
            measured.seconds[stage][scale] = way()
            print(f"{stage}, {scale} times the pictures: {measured.seconds[stage][scale]:.3f} s a step", flush=True)
    return measured


def plan_within(seconds: float, measured: Measured, scale: int) -> Plan:
    """The stages' steps of that scale that fill the time, from the weights in the package."""
    count = {stage: max(2, int(SHARES[stage] * seconds / MARGIN / by[scale])) for stage, by in measured.seconds.items()}
    return Plan(
        sharpen_steps=count["sharpen"], steps=count["base"], updates=count["student"], finish_steps=count["finish"],
        start=PACKAGED, autoencoder_rate=max(1.0, scale**0.5 / 2),  # more pictures bear a higher rate
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scales", default="1", help="times the usual pictures in a step, as 8,16")
    parser.add_argument("--steps", type=int, default=12, help="timed, of each stage")
    parser.add_argument("--scenes", type=int, default=6000, help="in the pool that steps are timed with")
    parser.add_argument("--within", type=float, metavar="MINUTES", help="train on, all stages, for so long")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device, scales = torch.device(arguments.device), [int(scale) for scale in arguments.scales.split(",")]
    measured = measure(device, scales, arguments.steps, arguments.scenes)
    if arguments.within:
        base = measured.seconds["base"]
        scale = min(scales, key=lambda each: base[each] / each)
        plan = plan_within(60 * arguments.within, measured, scale)
        print(f"{scale} times the pictures: {plan}", flush=True)
        files = train_all(arguments.out, plan, replace(Compute.on(device), scale=scale))
        measured.files = [str(path) for path in files]
    if arguments.json:
        print(json.dumps({each.name: getattr(measured, each.name) for each in fields(measured)}))


if __name__ == "__main__":
    main()
