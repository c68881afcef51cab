"""`kleinbild plan`: what a picture would take on this machine, told before it is made and before weights are fetched."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.doctor import duration
from kleinbild.cli.pictures import given
from kleinbild.cli.terminal import progress, result, result_json
from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import MissingWeightsError
from kleinbild.core.offload import Offload
from kleinbild.core.precision import Precision
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.model.spec import ModelSpec
from kleinbild.model.weights.settings import Settings


def plan(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture would show, in quotes.")],
    images: Annotated[
        list[str] | None, typer.Option("--image", "-i", metavar="IMAGE", help="A picture to start from; repeatable.")
    ] = None,
    model: options.Model = None,
    size: options.SizeOption = None,
    aspect: options.Aspect = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    dtype: options.Dtype = None,
    cache_references: options.CacheReferences = False,
    offload: options.OffloadOption = None,
    as_json: options.Json = False,
) -> None:
    """Forecast time and memory of a picture without making it.

    Measures a few of the model's blocks at the picture's size; its weights need not be here.
    """
    from kleinbild.cli.inputs import read_references

    files, names = read_references(images or [])
    asked = given(
        model=model, size=size, aspect=aspect, steps=steps, guidance=guidance, cache_references=cache_references
    )
    request = replace(PictureRequest(prompt, references=files, reference_names=names), **asked)
    with progress("measuring"):
        facts = foresee(request, dtype, offload)
    if as_json:
        result_json(facts)
        return
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in facts["seconds"].items() if seconds)
    result(f"{facts['size']}, {facts['steps']} steps, {facts['model']} on {facts['device']} in {facts['dtype']}")
    result(f"time      {duration(facts['total_seconds'])} ({stages})")
    offloaded = "" if facts["offload"] == "none" else f" (offload {facts['offload']})"
    result(
        f"memory    {gigabytes(facts['weight_bytes'])} for the weights{offloaded}, {gigabytes(facts['picture_bytes'])} for the picture"
    )
    if (available := facts["available_bytes"]) is not None:
        fits = facts["weight_bytes"] + facts["picture_bytes"] <= available
        result(f"available {gigabytes(available)}: {'it fits' if fits else 'it does not fit'}")


def foresee(request: PictureRequest, dtype: Precision | None, offload: Offload | None) -> dict[str, Any]:
    """The forecast for `request`, in plain values. Raises what making the picture would, but for missing weights or memory."""
    from kleinbild.engine.forecast import Plan, forecast, measure
    from kleinbild.engine.prepare import settle
    from kleinbild.engine.residence import best_placement
    from kleinbild.engine.runtime import choose_device, free_memory, own_memory
    from kleinbild.model.weights.load import default_precision

    name, settings, spec = numbers_of(request.model)
    settled = settle(request, name, settings, spec)
    inputs = settled.inputs
    sizes = tuple(Size(*image.size) for image in inputs.references)
    wanted = Plan(inputs.frame.made, sizes, settled.steps, guided=settled.guidance != 1)
    device, precision = choose_device(None), dtype or default_precision(spec)
    available, own = free_memory(device), own_memory(device)  # before measuring, which keeps some
    placement = best_placement(spec, precision, own, offload)
    speeds = measure(spec, wanted, device=device, precision=precision)
    told = forecast(
        spec, wanted, speeds, precision=precision, caching=settled.reference_mode != "joint", placement=placement
    )
    return {
        "model": name,
        "device": str(device),
        "dtype": precision,
        "offload": placement.offload,
        "size": str(inputs.frame.size),
        "steps": settled.steps,
        "seconds": {stage: round(seconds, 4) for stage, seconds in told.seconds.items()},
        "total_seconds": round(told.total_seconds, 4),
        "weight_bytes": told.weight_bytes,
        "picture_bytes": told.picture_bytes,
        "available_bytes": available,
        "notes": list(inputs.notes),
    }


def numbers_of(model: str) -> tuple[str, Settings, ModelSpec]:
    """Name, settings and spec of a model here, or of an official one that is not."""
    from kleinbild.model.catalog import find
    from kleinbild.model.official import SPECS
    from kleinbild.model.weights.settings import official
    from kleinbild.model.weights.sources import locate_parts, model_spec

    try:
        name, parts = locate_parts(model)
    except MissingWeightsError:
        entry = find(model)
        settings = official(entry.variant)
        return entry.name, settings, replace(SPECS[entry.family], default_guidance=settings.default_guidance)
    return name, parts.settings, model_spec(parts)
