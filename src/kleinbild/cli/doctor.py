"""`kleinbild doctor`: what this machine has, what that means, and how long a picture takes on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import kleinbild
from kleinbild.cli import options
from kleinbild.cli.failures import ENGINE_PACKAGES
from kleinbild.cli.terminal import progress, result, result_json
from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import KleinbildError, ModelError
from kleinbild.core.sizes import Size
from kleinbild.engine import machine

if TYPE_CHECKING:
    from kleinbild.model.placement import Placement

PROMPT = "a fox on a mint background"
FORECAST_SIDES = (512, 1024)


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: `value` for programs (--json), `text` for people."""

    name: str
    value: object
    text: str


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also ask whether the hub can be reached. Else no network is used.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Look at this machine, time a picture, and forecast what large models would take on it. At most 30 s.

    Exits with 3 if no picture can be made.
    """
    facts, failure = [], None
    with progress("looking at this machine"):
        try:
            for fact in examine(online):
                facts.append(fact)
                if not as_json:
                    result(f"{fact.name:<15}{fact.text}")
        except KleinbildError as error:
            failure = error
    if as_json:
        result_json({fact.name: fact.value for fact in facts})
    if failure:
        raise failure


def examine(online: bool) -> Iterator[Fact]:
    """All facts, cheap ones first. Raises KleinbildError where no picture can be made."""
    import platform

    yield Fact("kleinbild", kleinbild.__version__, f"{kleinbild.__version__} in {Path(kleinbild.__file__).parent}")
    yield Fact(
        "python", platform.python_version(), f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    )
    yield packages()
    yield processor()
    yield memory()
    yield from models()
    if online:
        yield hub()
    if missing := [name for name in ENGINE_PACKAGES if find_spec(name) is None]:
        raise ModelError(
            f"not installed, but needed to make pictures: {', '.join(missing)}", "pip install 'kleinbild[all]'"
        )
    yield from device()
    yield picture()
    yield from forecasts()


def packages() -> Fact:
    installed = {name: installed_version(name) for name in (*ENGINE_PACKAGES, "pillow", "huggingface_hub")}
    return Fact("packages", installed, ", ".join(f"{name} {number or 'MISSING'}" for name, number in installed.items()))


def installed_version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> Fact:
    flags, cores = machine.cpu_flags(), machine.num_cores()
    text = f"{cores} core{'s' if cores > 1 else ''}"
    if flags is not None:
        fast = [flag for flag in flags if flag in machine.FAST_BFLOAT16]
        speed = (
            f"bfloat16 at full speed ({', '.join(fast)})"
            if fast
            else "no bfloat16 units, so that large models are slow"
        )
        text += f"; {' '.join(flags) or 'no vector units known'}; {speed}"
    return Fact("cpu", {"cores": cores, "flags": flags}, text)


def memory() -> Fact:
    found = machine.memory()
    if found is None:
        return Fact("memory", None, "unknown on this system")
    total, available = found
    return Fact(
        "memory", {"bytes": total, "available": available}, f"{gigabytes(available)} available of {gigabytes(total)}"
    )


def models() -> Iterator[Fact]:
    """Which are here, and which of the others the memory would hold."""
    from kleinbild.model.catalog import entries, locate

    here = {entry.name: str(path) for entry in entries() if (path := locate(entry))}
    yield Fact("models", here, ", ".join(here) or "none here")
    found = machine.memory()
    if found is not None:
        fitting = [entry.name for entry in entries() if entry.size_bytes and entry.size_bytes < found[1]]
        text = ", ".join(fitting) or "none of the large models; the smallest needs 16 GB of memory"
        yield Fact("room for", fitting, text)


def hub() -> Fact:
    address, answer = machine.hub()
    text = f"answered in {answer:.2f} s" if isinstance(answer, float) else f"cannot be reached: {answer}"
    return Fact("hub", {"address": address, "answer": answer}, f"{address} {text}")


def device() -> Iterator[Fact]:
    import torch

    from kleinbild.engine.runtime import choose_device

    chosen = choose_device(None)
    why = {
        "cpu": "torch sees no GPU that it can use",
        "cuda": "a CUDA GPU is there: " + (torch.cuda.get_device_name() if torch.cuda.is_available() else ""),
        "mps": "Apple's GPU is there",
    }
    yield Fact("device", str(chosen), f"{chosen}: {why.get(chosen.type, '')}; torch {torch.__version__}")
    yield Fact(
        "threads", torch.get_num_threads(), f"{torch.get_num_threads()} for computing (OMP_NUM_THREADS changes it)"
    )


def picture() -> Fact:
    """nano loaded, and two pictures: the first also warms up."""
    from kleinbild.core.requests import PictureRequest
    from kleinbild.engine.runtime import Engine

    engine = Engine()
    times = []
    for seed in (1, 2):
        begun = time.perf_counter()
        engine.generate(PictureRequest(PROMPT, seed=seed))
        times.append(time.perf_counter() - begun)
    value = {
        "model": "nano",
        "dtype": engine.dtype,
        "load_seconds": round(engine.load_seconds, 3),
        "first_seconds": round(times[0], 3),
        "next_seconds": round(times[1], 3),
        "peak_bytes": machine.peak_memory(),
    }
    text = (
        f"nano in {value['dtype']} (small models; billions of parameters run in bfloat16): loaded in {engine.load_seconds:.2f} s, "
        f"first picture {times[0]:.2f} s, next {times[1]:.2f} s, peak memory {gigabytes(machine.peak_memory())}"
    )
    return Fact("picture", value, text)


def forecasts() -> Iterator[Fact]:
    """Seconds a picture of each large model, from a few of its blocks at their real size; whether it would fit, and how."""
    from kleinbild.engine.forecast import Plan, forecast, measure
    from kleinbild.engine.residence import best_placement
    from kleinbild.engine.runtime import available_memory, choose_device, own_memory
    from kleinbild.model.catalog import entries
    from kleinbild.model.official import SPECS
    from kleinbild.model.weights.settings import official

    device = choose_device(None)
    timed = Plan(Size(FORECAST_SIDES[0], FORECAST_SIDES[0]), (), steps=1, guided=False)
    available, own = available_memory(device), own_memory(device)  # before measuring, which keeps some
    speeds = measure(SPECS["klein-4b"], timed, device=device, precision="bfloat16")
    for entry in entries():
        if entry.family not in SPECS:
            continue
        settings = official(entry.variant)
        guided = settings.default_guidance != 1
        spec = replace(SPECS[entry.family], default_guidance=settings.default_guidance)
        placement = best_placement(spec, "bfloat16", own)
        made = {
            f"{side}x{side}": forecast(
                spec,
                Plan(Size(side, side), (), settings.default_steps, guided),
                speeds,
                precision="bfloat16",
                placement=placement,
            )
            for side in FORECAST_SIDES
        }
        needed = max(each.peak_bytes for each in made.values())
        value = {
            "seconds": {size: round(each.total_seconds, 2) for size, each in made.items()},
            "peak_bytes": needed, "dtype": "bfloat16", "steps": settings.default_steps, "offload": placement.offload,
        }  # fmt: skip
        times = ", ".join(f"{size} in {duration(each.total_seconds)}" for size, each in made.items())
        needs = f"needs {gigabytes(needed)}" + offloading(placement, own)
        if available and needed >= available:
            needs += f": more than the {gigabytes(available)} that are available"
        yield Fact(entry.name, value, f"{times}, {settings.default_steps} steps; {needs}")


def offloading(placement: Placement, memory: int | None) -> str:
    """What was chosen and why, where weights do not all stay on the device."""
    if placement.offload == "none" or memory is None:
        return ""
    how = {"components": "text encoder and transformer take turns", "blocks": "blocks come and go"}[placement.offload]
    why = f"all at once does not fit into the {gigabytes(memory)} that are free"
    return f" with offload {placement.offload} ({how}: {why})"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
