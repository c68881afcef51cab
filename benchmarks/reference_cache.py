"""Cached references on nano, which was not trained for them: how right, how near to exact edits, and how fast.

    python benchmarks/reference_cache.py [--count 100] [--repeats 15] [--sides 128 256] [--threads 2] [--json]

Edits are those of `kleinbild nano eval`, `--count` of each task (0: only times are measured), each made exactly and with
cached references from the same seed; its oracle judges both. `psnr` is of the cached picture against the exact one, the
mean and the least. Times are medians of `--repeats` edits, exact and cached ones taking turns, our caches off.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.batcher import Batcher
from kleinbild.engine.caches import Caches
from kleinbild.engine.runtime import Engine
from kleinbild.nano.evaluate import GOALS, Goal, asked, asks, held_out_samples, verdict_of
from kleinbild.nano.scenes.oracle import psnr

COMPOSE = "put the object of image 1 on the background of image 2"
CHANGE = "change the background to the night sky"
PICTURES = ("a fox on mint", "a cat on a beach", "a rose on red", "an owl on blue")
NUMBERS = (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256], help="pixels, of the references timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = Engine("nano")
    print(f"{platform.platform()}, {arguments.threads} threads, torch {torch.__version__}, {engine.dtype}")
    speed = speeds(engine, arguments.sides, arguments.repeats)
    error = {goal.label: errors(engine, goal, arguments.count) for goal in GOALS if arguments.count and is_edit(goal)}
    if arguments.json:
        print(json.dumps({"errors": error, "speeds": speed}))


def is_edit(goal: Goal) -> bool:
    return bool(next(held_out_samples(goal)).references)


def errors(engine: Engine, goal: Goal, count: int) -> dict[str, float]:
    """Shares of edits that are all right, exact and cached, and how far cached ones are from exact ones in dB."""
    right, distances = [], []
    for sample, random in asks(goal, count):
        request = asked(engine, sample, random)
        made = engine.generate_all([request, replace(request, cache_references=True)])
        right.append([verdict_of(sample, picture.pil).all_right for picture in made])
        exact, cached = (np.asarray(picture.pil) for picture in made)
        distances.append(psnr(cached, exact))
    of_exact, of_cached = np.mean(right, axis=0)
    row = {"exact_right": of_exact, "cached_right": of_cached, "psnr": statistics.mean(distances),
           "least_psnr": min(distances)}  # fmt: skip
    print(f"{goal.label:<42}" + "".join(f"  {name} {value:.3f}" for name, value in row.items()), flush=True)
    return {name: round(float(value), 3) for name, value in row.items()}


def speeds(engine: Engine, sides: list[int], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of edits with so many references of each size; 256x256 is the largest that nano takes."""
    batcher = Batcher(engine.model, caches=Caches.of(engine.model, prompt_bytes=0, reference_bytes=0))
    pictures = [engine.generate(PictureRequest(prompt, seed=1)).pil for prompt in PICTURES]
    rows = {}
    for side in sides:
        for number in NUMBERS:
            files = tuple(encoded(picture.resize((side, side))) for picture in pictures[:number])
            prompt = CHANGE if number == 1 else COMPOSE
            request = PictureRequest(prompt, seed=1, size=Size(128, 128), references=files)
            exact, cached = seconds(batcher, request, repeats)
            label = f"{number} of {side}x{side}"
            rows[label] = {"exact_seconds": round(exact, 4), "cached_seconds": round(cached, 4)}
            print(f"{label:<42}  exact {exact:.3f} s  cached {cached:.3f} s  ratio {exact / cached:.2f}", flush=True)
    return rows


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def seconds(batcher: Batcher, request: PictureRequest, repeats: int) -> tuple[float, float]:
    """Of an exact edit and of a cached one."""
    pairs = [
        [sum(batcher.make([replace(request, cache_references=cache)])[0].timings.values()) for cache in (False, True)]
        for _ in range(repeats + 1)
    ]
    exact, cached = (statistics.median(times) for times in zip(*pairs[1:], strict=True))  # the first warms up
    return exact, cached


if __name__ == "__main__":
    main()
