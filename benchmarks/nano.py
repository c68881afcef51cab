"""nano on this machine: cold command, warm picture, memory, and diffusers with the same weights in the same run.

    python benchmarks/nano.py [--repeats 15] [--threads 2] [--json]

Ours and diffusers' pictures take turns, so that a noisy machine disturbs both alike; medians are printed. Our caches of
prompts and references are off, since diffusers has none; what they bring is a row of its own. Text to image is measured in
float32 and bfloat16, ours plain and compiled (`Engine(compile=True)`), diffusers in the same precision, all taking turns
(edits and two references: ours in all these ways):
`latency_vs_diffusers_WAY` compares equal precisions, `latency_vs_diffusers` the fastest of each side. What is not compiled
after all, and why, is printed. `packed8_vs_serial`, plain, in float32 (and `_bfloat16`): pictures a second of eight
requests at once, over eight in turn. `preview_share_of_step`: seconds of a preview over those of a step;
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
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline

    from kleinbild.core.requests import PictureRequest
    from kleinbild.engine.batcher import Batcher
    from kleinbild.engine.runtime import Engine
    from kleinbild.model.weights import Settings

PROMPT, EDIT = "a fox in the middle, mint background", "change the background to the night sky"
EIGHT = ("cat", "dog", "fox", "pig", "frog", "car", "rose", "owl")
COMPOSE = "put the object of image 1 on the background of image 2"
PRECISIONS = ("float32", "bfloat16")
WAYS = (*PRECISIONS, *(f"compiled_{precision}" for precision in PRECISIONS))  # of ours; diffusers runs in PRECISIONS


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

    from kleinbild.core.requests import PictureRequest
    from kleinbild.engine.preview import fit
    from kleinbild.engine.runtime import Engine
    from kleinbild.model.weights import export_diffusers

    torch.set_num_threads(threads)
    engines = {way: Engine("nano", dtype=way.split("_")[-1], compile=way.startswith("compiled")) for way in WAYS}
    batchers = {way: uncached(engine) for way, engine in engines.items()}
    exported = export_diffusers("nano", folder / "diffusers")
    pipelines = {precision: diffusers_pipeline(exported, precision) for precision in PRECISIONS}
    engine, batcher = engines["float32"], batchers["float32"]
    first = engine.generate(PictureRequest(PROMPT, seed=1))
    second = engine.generate(PictureRequest("a cat on a beach", seed=2))
    cases = {"text to image": (PROMPT, []), "edit": (EDIT, [first]), "two references": (COMPOSE, [first, second])}

    figures: dict[str, float] = {}
    for case, (prompt, references) in cases.items():
        request = PictureRequest(prompt, seed=3, references=tuple(r.to_bytes() for r in references))

        def ours(request: PictureRequest = request) -> np.ndarray:
            return pixels_of_ours(batcher, request)

        def diffusers(prompt: str = prompt, references: list = references) -> np.ndarray:
            return pixels_of_theirs(pipelines["float32"], engine.model.settings, prompt, references)

        different = (np.abs(ours() - diffusers()) > 2).mean()
        pairs = [(seconds_of(ours), seconds_of(diffusers)) for _ in range(repeats)]
        key = case.replace(" ", "_")
        figures[f"{key}_seconds"] = statistics.median(mine for mine, _ in pairs)
        figures[f"{key}_diffusers_seconds"] = statistics.median(other for _, other in pairs)
        figures[f"{key}_pixels_that_differ"] = float(different)
        if references:
            figures |= {f"{key}_{way}_seconds": seconds for way, seconds in ways(batchers, request, repeats).items()}
    known = PictureRequest(PROMPT, seed=3)
    figures["known_prompt_seconds"] = statistics.median(
        seconds_of(lambda: engine.generate(known)) for _ in range(repeats)
    )
    for precision in PRECISIONS:
        figures |= eight_at_once(batchers[precision], precision, max(repeats // 3, 3))
    figures["packed8_vs_serial"] = figures["packed8_vs_serial_float32"]
    figures["preview_share_of_step"] = preview_share(engine, 128, repeats)
    figures["preview_share_of_step_512"] = preview_share(engine, 512, repeats)
    figures["preview_fit_seconds"] = seconds_of(lambda: fit(engine.model))
    figures |= latencies(batchers, pipelines, repeats)
    for way, one in engines.items():
        for note in one.notes:
            print(f"{way}: {note}")
    return figures


def ways(batchers: dict[str, Batcher], request: PictureRequest, repeats: int) -> dict[str, float]:
    """Seconds of this request in every way of ours."""
    return in_turns({way: partial(batcher.make, [request]) for way, batcher in batchers.items()}, repeats)


def in_turns(makers: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each, taking turns; the first two turns compile and do not count."""
    turns = [{name: seconds_of(make) for name, make in makers.items()} for _ in range(2 + repeats)][2:]
    return {name: statistics.median(turn[name] for turn in turns) for name in makers}


def latencies(batchers: dict[str, Batcher], pipelines: dict[str, Flux2KleinPipeline], repeats: int) -> dict[str, float]:
    """Text to image in every way of ours and every precision of diffusers, taking turns; the first turns compile."""
    from kleinbild.core.requests import PictureRequest

    request, settings = PictureRequest(PROMPT, seed=3), batchers["float32"].model.settings
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for way, batcher in batchers.items():
        makers[way] = lambda batcher=batcher: pixels_of_ours(batcher, request)
    for precision, pipeline in pipelines.items():
        makers[f"diffusers_{precision}"] = lambda pipeline=pipeline: pixels_of_theirs(pipeline, settings, PROMPT, [])
    seconds = in_turns(makers, repeats)
    pictures = {name: make() for name, make in makers.items()}
    figures = {f"text_to_image_{name}_seconds": value for name, value in seconds.items()}
    for way in batchers:
        theirs = f"diffusers_{way.split('_')[-1]}"
        figures[f"pixels_that_differ_{way}"] = float((np.abs(pictures[way] - pictures[theirs]) > 2).mean())
        figures[f"latency_vs_diffusers_{way}"] = seconds[theirs] / seconds[way]
    ours, other = (min(seconds[name] for name in names) for names in (batchers, set(seconds) - set(batchers)))
    figures["latency_vs_diffusers"] = other / ours
    return figures


def eight_at_once(batcher: Batcher, precision: str, repeats: int) -> dict[str, float]:
    from kleinbild.core.requests import PictureRequest

    eight = [PictureRequest(f"a {noun} on blue", seed=i) for i, noun in enumerate(EIGHT)]
    turns = [
        (seconds_of(lambda: batcher.make(eight)), seconds_of(lambda: [batcher.make([one]) for one in eight]))
        for _ in range(repeats)
    ]
    packed, serial = (statistics.median(times) for times in zip(*turns, strict=True))
    return {
        f"eight_packed_{precision}_seconds": packed,
        f"eight_serial_{precision}_seconds": serial,
        f"packed8_vs_serial_{precision}": serial / packed,
    }


def uncached(engine: Engine) -> Batcher:
    """What serves an engine, without the caches that diffusers has not."""
    from kleinbild.engine.batcher import Batcher
    from kleinbild.engine.caches import Caches

    caches = Caches.of(engine.model, prompt_bytes=0, reference_bytes=0)
    return Batcher(engine.model, caches=caches, compiled=engine.compiled)


def diffusers_pipeline(folder: Path, precision: str) -> Flux2KleinPipeline:
    import torch
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(folder, torch_dtype=getattr(torch, precision))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels_of_ours(batcher: Batcher, request: PictureRequest) -> np.ndarray:
    return np.asarray(batcher.make([request])[0].pil, dtype=int)


def pixels_of_theirs(pipeline: Flux2KleinPipeline, settings: Settings, prompt: str, references: list) -> np.ndarray:
    import torch

    out = pipeline(
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
