"""nano on this machine: cold command, warm picture, memory, and diffusers with the same weights in the same run.

    python benchmarks/nano.py [--repeats 15] [--threads 2] [--json]

Ours and diffusers' pictures take turns, so that a noisy machine disturbs both alike; medians are printed. Our caches of
prompts and references are off, since diffusers has none; what they bring is a row of its own. `packed8_vs_serial`: pictures
a second of eight requests at once, over eight in turn. `preview_share_of_step`: seconds of a preview over those of a step;
the first preview also fits its map, once a model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kleinbild.engine.runtime import Engine

PROMPT, EDIT = "a fox on a mint background", "change the background to the night sky"
EIGHT = ("cat", "dog", "fox", "pig", "frog", "car", "rose", "owl")
COMPOSE = "put the object of image 1 on the background of image 2"


def cold(folder: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB) of one `kleinbild generate` in a fresh process."""
    program = (
        "import resource, subprocess, sys, time; started = time.perf_counter();"
        "subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = [sys.executable, "-m", "kleinbild", "generate", PROMPT, "--seed", "1", "-o", str(folder / "cold.png")]
    done = subprocess.run([sys.executable, "-c", program, *command], check=True, capture_output=True, text=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def seconds_of(make: Callable[[], object]) -> float:
    started = time.perf_counter()
    make()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [cold(folder) for _ in range(3)]
        figures = {
            "cold_seconds": statistics.median(seconds for seconds, _ in runs),
            "cold_peak_mb": max(megabytes for _, megabytes in runs),
            **warm(folder, arguments.repeats, arguments.threads),
        }
    report(figures)
    if arguments.json:
        print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def warm(folder: Path, repeats: int, threads: int) -> dict[str, float]:
    import torch
    from diffusers import Flux2KleinPipeline

    from kleinbild.core.requests import PictureRequest
    from kleinbild.engine.batcher import Batcher
    from kleinbild.engine.caches import Caches
    from kleinbild.engine.preview import fit
    from kleinbild.engine.runtime import Engine
    from kleinbild.model.weights import export_diffusers

    torch.set_num_threads(threads)
    engine = Engine("nano")
    batcher = Batcher(engine.model, caches=Caches.of(engine.model, prompt_bytes=0, reference_bytes=0))
    settings = engine.model.settings
    theirs = Flux2KleinPipeline.from_pretrained(
        export_diffusers("nano", folder / "diffusers"), torch_dtype=torch.float32
    )
    theirs.set_progress_bar_config(disable=True)
    first = engine.generate(PictureRequest(PROMPT, seed=1))
    second = engine.generate(PictureRequest("a cat on a beach", seed=2))
    cases = {"text to image": (PROMPT, []), "edit": (EDIT, [first]), "two references": (COMPOSE, [first, second])}

    figures: dict[str, float] = {}
    for case, (prompt, references) in cases.items():
        request = PictureRequest(prompt, seed=3, references=tuple(r.to_bytes() for r in references))

        def ours(request: PictureRequest = request) -> np.ndarray:
            return np.asarray(batcher.make([request])[0].pil, dtype=int)

        def diffusers(prompt: str = prompt, references: list = references) -> np.ndarray:
            out = theirs(
                prompt=prompt,
                image=[reference.pil for reference in references] or None,
                height=settings.default_size,
                width=settings.default_size,
                num_inference_steps=settings.default_steps,
                generator=torch.Generator("cpu").manual_seed(3),
                max_sequence_length=settings.max_text_tokens,
                text_encoder_out_layers=settings.text_layers,
            )
            return np.asarray(out.images[0], dtype=int)

        different = (np.abs(ours() - diffusers()) > 2).mean()
        pairs = [(seconds_of(ours), seconds_of(diffusers)) for _ in range(repeats)]
        key = case.replace(" ", "_")
        figures[f"{key}_seconds"] = statistics.median(mine for mine, _ in pairs)
        figures[f"{key}_diffusers_seconds"] = statistics.median(other for _, other in pairs)
        figures[f"{key}_pixels_that_differ"] = float(different)
    known = PictureRequest(PROMPT, seed=3)
    figures["known_prompt_seconds"] = statistics.median(
        seconds_of(lambda: engine.generate(known)) for _ in range(repeats)
    )
    eight = [PictureRequest(f"a {noun} on blue", seed=i) for i, noun in enumerate(EIGHT)]
    turns = [
        (seconds_of(lambda: batcher.make(eight)), seconds_of(lambda: [batcher.make([one]) for one in eight]))
        for _ in range(max(repeats // 3, 3))
    ]
    figures["eight_packed_seconds"] = statistics.median(packed for packed, _ in turns)
    figures["eight_serial_seconds"] = statistics.median(serial for _, serial in turns)
    figures["packed8_vs_serial"] = figures["eight_serial_seconds"] / figures["eight_packed_seconds"]
    figures["preview_share_of_step"] = preview_share(engine, 128, repeats)
    figures["preview_share_of_step_512"] = preview_share(engine, 512, repeats)
    figures["preview_fit_seconds"] = seconds_of(lambda: fit(engine.model))
    figures["latency_vs_diffusers"] = figures["text_to_image_diffusers_seconds"] / figures["text_to_image_seconds"]
    return figures


def preview_share(engine: Engine, side: int, repeats: int) -> float:
    """Seconds of a preview over those of a step, taking turns. 512x512 nano is not asked for; it costs what it costs."""
    import torch

    from kleinbild.core.requests import PictureRequest
    from kleinbild.core.sizes import Size
    from kleinbild.engine.caches import Caches
    from kleinbild.engine.denoise import step
    from kleinbild.engine.framing import Frame
    from kleinbild.engine.inputs import Inputs
    from kleinbild.engine.pipeline import Stopwatch, begin
    from kleinbild.engine.prepare import prepare
    from kleinbild.engine.preview import Previewer

    model, previewer = engine.model, Previewer(engine.model)
    caches = Caches.of(model)
    prepared = prepare(PictureRequest(PROMPT, seed=1, steps=repeats + 1), model)
    sized = replace(prepared, inputs=Inputs((), Frame.plain(Size(side, side))))
    with torch.inference_mode():
        sequence = begin(model, caches, sized, Stopwatch(model.device))
        turns = [
            (seconds_of(lambda: step(model, caches, [sequence])), seconds_of(lambda: previewer.png(sequence.estimate)))
            for _ in range(sequence.num_steps)
        ]
    steps, drawn = (statistics.median(times) for times in zip(*turns[1:], strict=True))  # the first warms up
    return drawn / steps


def report(figures: dict[str, float]) -> None:
    import diffusers
    import torch

    print(
        f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    for key, value in figures.items():
        print(f"{key:40} {value:10.4f}")


if __name__ == "__main__":
    main()
