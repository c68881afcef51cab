"""klein-4B on a CPU, stage by stage, beside diffusers, stable-diffusion.cpp and OpenVINO on the same weights.

    python benchmarks/klein_cpu.py [--size 256] [--peers diffusers,sdcpp,openvino] [--variant klein-4b|tiny]
                                   [--weights FOLDER] [--threads N] [--repeats 3] [--python PEER=PATH] [--json]

A square picture from words in 4 steps. Each contestant has a process to itself, one after the other, and makes one
picture before those that count; medians are printed. `peak_gb` is the most memory that the process ever held, weights
mapped from files included. The weights are those of random_weights.py, written on the first run (16 GB for klein-4B; 8 GB
more for stable-diffusion.cpp, 16 GB more for OpenVINO, which read other layouts).

A peer that is not installed is said to be absent; one that fails says why. Those whose requirements clash with the others'
can live in an environment of their own: `--python openvino=venv/bin/python`. `--variant tiny` rehearses the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

STEPS, SEED = 4, 1
PROMPT = "a fox on a mint background"
STAGES = ("text", "denoise", "decode", "total")

OURS = {"bf16": "bfloat16", "int8": "int8"}  # what `Engine` is asked for, by precision
# What each peer is held against ours with. diffusers has no int8 of its own on a CPU, so its bfloat16 stands there.
THEIRS = {
    "bf16": {"diffusers": "bf16", "sdcpp": "bf16", "openvino": "bf16"},
    "int8": {"diffusers": "bf16", "sdcpp": "q8_0", "openvino": "int8"},
}
AIMS = {
    "bf16": {"diffusers_over_ours": 1.15, "sdcpp_over_ours": 1.0, "openvino_over_ours": 1.0, "peak_gb": 15.5},
    "int8": {"diffusers_over_ours": 1.6, "sdcpp_over_ours": 1.0, "openvino_over_ours": 1.0, "peak_gb": 8.5},
}
MODULES = {"diffusers": "diffusers", "sdcpp": "stable_diffusion_cpp", "openvino": "optimum.intel"}


@dataclass(frozen=True)
class Job:
    """What one contestant's process is told."""

    contestant: str
    precision: str
    variant: str
    weights: str
    size: int
    threads: int
    repeats: int

    def folder(self, layout: str) -> Path:
        return Path(self.weights) / layout


Make = Callable[[], dict[str, float]]
"""Makes one picture and gives the seconds of its stages."""


def ours(job: Job) -> Make:
    import torch

    from kleinbild.core.requests import PictureRequest
    from kleinbild.core.sizes import Size
    from kleinbild.engine.batcher import Batcher
    from kleinbild.engine.caches import Caches
    from kleinbild.engine.runtime import Engine

    torch.set_num_threads(job.threads)
    engine = Engine(job.folder("diffusers"), device="cpu", dtype=OURS[job.precision])
    if engine.notes:
        raise RuntimeError(engine.notes[0])
    # The others encode the prompt again for every picture; so do we here.
    batcher = Batcher(engine.model, caches=Caches.of(engine.model, prompt_bytes=0, reference_bytes=0))
    request = PictureRequest(PROMPT, model=engine.name, size=Size(job.size, job.size), seed=SEED, steps=STEPS)
    return lambda: batcher.make([request])[0].timings


def diffusers(job: Job) -> Make:
    import torch
    from diffusers import Flux2KleinPipeline

    torch.set_num_threads(job.threads)
    return of_pipeline(Flux2KleinPipeline.from_pretrained(job.folder("diffusers"), torch_dtype=torch.bfloat16), job)


def openvino(job: Job) -> Make:
    from optimum.intel import OVFlux2KleinPipeline

    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": str(job.threads)}
    pipeline = OVFlux2KleinPipeline.from_pretrained(job.folder(f"openvino-{job.precision}"), ov_config=options)
    return of_pipeline(pipeline, job)


def of_pipeline(pipeline: Any, job: Job) -> Make:
    """diffusers' pipeline, or OpenVINO's in its likeness; its stages are timed where it calls them."""
    import torch

    from random_weights import VARIANTS

    settings = VARIANTS[job.variant].settings
    seconds: dict[str, float] = {}
    for owner, method, stage in (
        (pipeline, "encode_prompt", "text"),
        (pipeline.transformer, "forward", "denoise"),
        (pipeline.vae, "decode", "decode"),
    ):
        setattr(owner, method, timed(getattr(owner, method), stage, seconds))
    pipeline.set_progress_bar_config(disable=True)

    def make() -> dict[str, float]:
        seconds.clear()
        pipeline(
            prompt=PROMPT,
            height=job.size,
            width=job.size,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(SEED),
            max_sequence_length=settings.max_text_tokens,
            text_encoder_out_layers=settings.text_layers,
        )
        return dict(seconds)

    return make


def timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def call(*positional: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        out = function(*positional, **named)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun
        return out

    return call


def sdcpp(job: Job) -> Make:
    from stable_diffusion_cpp import StableDiffusion

    from random_weights import VARIANTS, files

    if not VARIANTS[job.variant].official:
        raise RuntimeError("stable-diffusion.cpp runs models of official shapes alone")
    of_bfl, of_diffusers = (files(layout, VARIANTS[job.variant].name, "bfloat16") for layout in ("bfl", "diffusers"))
    network = StableDiffusion(
        diffusion_model_path=str(job.folder("bfl") / of_bfl["transformer"]),
        vae_path=str(job.folder("bfl") / of_bfl["autoencoder"]),
        llm_path=str(job.folder("diffusers") / of_diffusers["text_encoder"]),
        wtype="q8_0" if job.precision == "q8_0" else "default",
        n_threads=job.threads,
        vae_decode_only=True,
        verbose=False,
    )

    def make() -> dict[str, float]:
        steps: list[tuple[float, float]] = []  # when each was done, and the seconds that it took
        begun = time.perf_counter()
        network.generate_image(
            prompt=PROMPT,
            width=job.size,
            height=job.size,
            sample_steps=STEPS,
            cfg_scale=1.0,
            seed=SEED,
            progress_callback=lambda _step, _steps, seconds: steps.append((time.perf_counter(), seconds)),
        )
        ended = time.perf_counter()
        first, last = steps[0][0] - steps[0][1], steps[-1][0]
        return {"text": first - begun, "denoise": last - first, "decode": ended - last}

    return make


CONTESTANTS: dict[str, Callable[[Job], Make]] = {
    "ours": ours, "diffusers": diffusers, "sdcpp": sdcpp, "openvino": openvino,
}  # fmt: skip


def contest(job: Job) -> dict[str, Any]:
    """What a contestant's process does."""
    begun = time.perf_counter()
    make = CONTESTANTS[job.contestant](job)
    load_seconds = time.perf_counter() - begun
    make()
    passes = []
    for _ in range(job.repeats):
        begun = time.perf_counter()
        stages = make()
        passes.append({**stages, "total": time.perf_counter() - begun})
    seconds = {stage: statistics.median(one[stage] for one in passes) for stage in STAGES}
    return {"precision": job.precision, "load_seconds": load_seconds, "seconds": seconds, "peak_gb": peak_gb()}


def peak_gb() -> float:
    """The most memory that this process held. Not `getrusage`, whose number a child takes over from its parent."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def start(job: Job, python: str) -> dict[str, Any]:
    """Runs a contestant in a process of its own; a failure becomes its `problem`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    command = [python, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"precision": job.precision, "problem": last_line(done)}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}")[:300]


def is_installed(peer: str, python: str) -> bool:
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    return not subprocess.run([python, "-c", program, MODULES[peer]], capture_output=True, check=False).returncode


def provide(job: Job, python: str) -> str | None:
    """Writes the weights that the contestant reads, unless they are there. Gives the problem, if there is one."""
    write(job, "diffusers", ("transformer", "text_encoder", "autoencoder"))
    if job.contestant == "sdcpp":
        write(job, "bfl", ("transformer", "autoencoder"))
    exported = job.folder(f"openvino-{job.precision}")
    if job.contestant == "openvino" and not exported.exists():
        weight_format = "int8" if job.precision == "int8" else "fp16"  # it is run in bfloat16 all the same
        unfinished = exported.with_name(f".{exported.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        export = ["--model", str(job.folder("diffusers")), "--task", "text-to-image", "--weight-format", weight_format]
        program = "from optimum.commands.optimum_cli import main; main()"
        command = [python, "-c", program, "export", "openvino", *export, str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"its export failed: {last_line(done)}"
        unfinished.rename(exported)
    return None


def write(job: Job, layout: str, parts: tuple[str, ...]) -> None:
    """Under another name until it is whole: an interrupted run leaves nothing that looks like weights."""
    if job.folder(layout).exists():
        return
    from random_weights import VARIANTS, write_model

    print(f"writing random weights to {job.folder(layout)}", file=sys.stderr)
    unfinished = job.folder(f".{layout}")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_model(unfinished, layout, VARIANTS[job.variant], parts=parts).rename(job.folder(layout))


def compare(arguments: argparse.Namespace, pythons: dict[str, str]) -> dict[str, Any]:
    """All contestants at every precision that the engine has."""
    result: dict[str, Any] = {}
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def measured(contestant: str, precision: str) -> dict[str, Any]:
        python = pythons.get(contestant, sys.executable)
        job = Job(
            contestant,
            precision,
            arguments.variant,
            str(arguments.weights),
            arguments.size,
            arguments.threads,
            arguments.repeats,
        )
        if (contestant, precision) not in known:
            if contestant != "ours" and not is_installed(contestant, python):
                known[contestant, precision] = {"precision": precision, "problem": "absent: it is not installed"}
            else:
                problem = provide(job, python)
                known[contestant, precision] = (
                    {"precision": precision, "problem": problem} if problem else start(job, python)
                )
            print_row(contestant, known[contestant, precision])
        return known[contestant, precision]

    for precision in OURS:
        of_precision = {"ours": measured("ours", precision)}
        of_precision |= {peer: measured(peer, THEIRS[precision][peer]) for peer in arguments.peers}
        result[precision] = {**of_precision, **ratios(of_precision)}
    return result


def ratios(contestants: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Each peer's whole time over ours (None where one is missing), and our memory."""
    totals = {name: one["seconds"]["total"] if "seconds" in one else None for name, one in contestants.items()}
    mine = totals.pop("ours")
    compared = {f"{peer}_over_ours": total / mine if total and mine else None for peer, total in totals.items()}
    return {**compared, "peak_gb": contestants["ours"].get("peak_gb")}


def print_row(contestant: str, one: dict[str, Any]) -> None:
    label = f"{contestant:12}{one['precision']:8}"
    if "problem" in one:
        print(f"{label} {one['problem']}", flush=True)
        return
    columns = "".join(f"{one['seconds'][stage]:10.3f}" for stage in STAGES)
    print(f"{label}{columns}{one['load_seconds']:10.1f}{one['peak_gb']:10.2f}", flush=True)


def print_summary(result: dict[str, Any], *, official: bool) -> None:
    for precision in OURS:
        for name, value in result[precision].items():
            if isinstance(value, float):
                aim = AIMS[precision][name]
                is_met = value <= aim if name == "peak_gb" else value >= aim
                limit = f"{'at most' if name == 'peak_gb' else 'at least'} {aim:g}: {'met' if is_met else 'missed'}"
                print(f"{precision}  {name:22}{value:8.2f}  {limit if official else ''}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, help="pixels of a side; 256, or 64 for tiny")
    parser.add_argument("--peers", default="diffusers,sdcpp,openvino", help="with commas between")
    parser.add_argument("--variant", choices=("klein-4b", "tiny"), default="klein-4b")
    parser.add_argument("--weights", type=Path, help="where they are or are to be written; out/random-VARIANT")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's own interpreter")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what a contestant's process is started with
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(contest(Job(**json.loads(arguments.job)))))
        return
    arguments.size = arguments.size or (256 if arguments.variant == "klein-4b" else 64)
    arguments.weights = (arguments.weights or ROOT / "out" / f"random-{arguments.variant}").resolve()
    arguments.peers = [peer for peer in arguments.peers.split(",") if peer]
    if unknown := set(arguments.peers) - set(MODULES):
        parser.error(f"no peers are called {', '.join(sorted(unknown))}; known are {', '.join(MODULES)}")
    facts = {"variant": arguments.variant, "size": arguments.size, "steps": STEPS, "threads": arguments.threads}
    print(f"{platform.platform()}, {', '.join(f'{key} {value}' for key, value in facts.items())}")
    print(f"{'seconds':20}{''.join(f'{stage:>10}' for stage in STAGES)}{'load':>10}{'peak GB':>10}", flush=True)
    result = compare(arguments, dict(pair.split("=", 1) for pair in arguments.python))
    print_summary(result, official=arguments.variant == "klein-4b")
    if arguments.json:
        print(json.dumps({**facts, **result}))


if __name__ == "__main__":
    main()
