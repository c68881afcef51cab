"""What of a model is on the device and when: foreseen in bytes, chosen by the memory there is, brought about.

The dial turns by itself: all weights on the device if they fit beside a picture of the model's own size; else text encoder
and transformer in turns; else both of them block by block (`model.offload`).
"""

from __future__ import annotations

from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import CapacityError
from kleinbild.core.offload import Offload
from kleinbild.core.precision import Precision
from kleinbild.core.sizes import Size
from kleinbild.engine import cost, machine
from kleinbild.engine.latents import segment_for
from kleinbild.model.offload import offload, tensors_of
from kleinbild.model.placement import Placement, WeightBytes
from kleinbild.model.precision import compute_dtype
from kleinbild.model.spec import ModelSpec
from kleinbild.model.weights import Model

PINNED_SHARE = 0.6  # of the host's free memory, that weights may take for good; blocks of it are rounded up


def usual_need(spec: ModelSpec, precision: Precision) -> cost.Need:
    """Of a picture of the model's own size from words: room for it is kept when weights are placed."""
    size = Size(spec.default_size, spec.default_size)
    segment = segment_for(spec.autoencoder, spec.text_encoder.max_tokens, size, ())
    return cost.need(spec, segment, 1 if spec.default_guidance == 1 else 2, size, compute_dtype(precision).itemsize)


def best_placement(
    spec: ModelSpec, precision: Precision, memory: int | None, wanted: Offload | None = None
) -> Placement:
    """The first that fits into `memory` beside a picture, else the smallest; of all or of those that are `wanted`.

    `memory` None is a device that shares the host's memory, or does not tell: nothing is gained there.
    """
    placements = [each for each in WeightBytes.of(spec, precision).placements() if wanted in (None, each.offload)]
    if memory is None:
        return placements[0]
    need = usual_need(spec, precision)
    return next((each for each in placements if need.peak_with(each) <= memory), placements[-1])


def choose(
    name: str, spec: ModelSpec, precision: Precision, memory: int | None, wanted: Offload | None = None
) -> Placement:  # fmt: skip
    """`best_placement`, where it fits. One that is asked for only has to fit with its weights; pictures may be small.

    Raises CapacityError with the numbers.
    """
    placement, need = best_placement(spec, precision, memory, wanted), usual_need(spec, precision)
    least = placement.most if wanted else need.peak_with(placement)
    if memory is None or least <= memory:
        return placement
    weights, have = gigabytes(placement.most), f"{gigabytes(memory)} are free"
    if wanted:
        raise CapacityError(
            f"{name} with offload {wanted!r} keeps {weights} of weights on the device, {have}",
            "leave the choice to Kleinbild"
            if wanted != "blocks"
            else "free some of the device's memory, or use the CPU",
        )
    side = spec.default_size
    raise CapacityError(
        f"{name} needs {gigabytes(least)} on the device even with its blocks offloaded "
        f"({weights} of weights, {gigabytes(least - placement.most)} for a picture of {side}x{side}), {have}",
        "free some of the device's memory, use the CPU, or ask for offload 'blocks' and smaller pictures",
    )


def place(model: Model, placement: Placement) -> None:
    """Makes `model`, whose weights are on the CPU, compute on its device, with its weights placed so."""
    networks = (model.transformer, model.text_encoder, model.autoencoder)
    pinned = model.device.type == "cuda" and _may_be_pinned(model)
    model.offloaded = offload(*networks, placement, model.device, pinned=pinned)


def _may_be_pinned(model: Model) -> bool:
    """Whether the host has the memory; else weights rest where they were loaded, in the file's mapped pages if they can."""
    free = machine.memory()
    travelling = (model.transformer, model.text_encoder)
    num_bytes = sum(tensor.nbytes for network in travelling for tensor in tensors_of(network).values())
    return free is None or num_bytes <= PINNED_SHARE * free[1]
