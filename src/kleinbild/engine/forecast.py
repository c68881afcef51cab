"""How long a picture will take and what memory it needs, before it is made and before any weights are here.

The time is measured, not guessed from data sheets: one block of each kind, of random numbers, runs once at the
picture's own shapes, and counts as often as the model has it. The autoencoder runs on a part of the picture. That is
right within 30 % on a quiet CPU (`benchmarks/forecast.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.core.precision import Precision
from kleinbild.core.sizes import LARGE_PICTURE, Size
from kleinbild.engine import cost
from kleinbild.engine.latents import segment_for
from kleinbild.model.adapters.applied import Adapted
from kleinbild.model.attention import BlockCaches
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.packing import Segment, pack
from kleinbild.model.placement import Placement, WeightBytes
from kleinbild.model.precision import compute_dtype, quantize
from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TextEncoderSpec
from kleinbild.model.text_encoder import Layer, rotations, visible
from kleinbild.model.transformer import DoubleBlock, Modulated, SingleBlock

PART_SIDE = 256  # pixels of the part of a picture that the autoencoder is timed on
STRIPS_FACTOR = 1.7  # what decoding in strips takes, to decoding whole: `benchmarks/strips.py`
COPIED_BYTES = 64_000_000  # what moving weights to the device is timed on
REPEATS, LONG_ENOUGH = 5, 0.5  # a timing is the best of so many, or the only one if it takes so many seconds


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made, in numbers: enough to know its cost."""

    size: Size
    references: tuple[Size, ...]
    steps: int
    guided: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """`seconds` by stage (text, references, denoise, decode, and what moving offloaded weights adds to them).

    `weight_bytes` is the most that is on the device at a time, `picture_bytes` what the picture needs beside that.
    """

    seconds: dict[str, float]
    weight_bytes: int
    picture_bytes: int

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.picture_bytes


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured: operations a second in the blocks and in the text encoder, seconds a pixel and a pair of cells,
    bytes a second from the host to the device."""

    blocks: float
    text: float
    decode: float
    encode: float
    attention: float
    moving: float


@torch.inference_mode()
def measure(spec: ModelSpec, plan: Plan, *, device: torch.device, precision: Precision) -> Speeds:
    """Some seconds of work: exact for this very plan, good for others of about its size and for other models."""
    segment, branches = _segment(spec, plan), 2 if plan.guided else 1
    step = _step_seconds(spec, segment, branches, device, precision)
    decode, encode = _autoencoder_seconds(spec.autoencoder, device, precision)
    return Speeds(
        blocks=branches * cost.step_flops(spec.transformer, segment) / step,
        text=_text_flops(spec.text_encoder) / _text_seconds(spec.text_encoder, device, precision),
        decode=decode / PART_SIDE**2,
        encode=encode / PART_SIDE**2,
        attention=_attention_seconds(spec.autoencoder, device, precision),
        moving=COPIED_BYTES / _moving_seconds(device),
    )


def forecast(
    spec: ModelSpec,
    plan: Plan,
    speeds: Speeds,
    *,
    precision: Precision,
    caching: bool = False,
    placement: Placement | None = None,
) -> Forecast:
    """What `plan` will take. `caching`: references are cached after the first step (kv variant).

    `placement` says where the weights are; None: all on the device.
    """
    weights = WeightBytes.of(spec, precision)
    placement = placement or next(weights.placements())
    branches, segment = 2 if plan.guided else 1, _segment(spec, plan)
    caching = caching and bool(plan.references)
    first, later = (
        branches * cost.step_flops(spec.transformer, each) / speeds.blocks
        for each in (segment, replace(segment, mode="stored") if caching else segment)
    )
    strips = STRIPS_FACTOR if plan.size.area > LARGE_PICTURE else 1.0
    seconds = {
        "text": branches * _text_flops(spec.text_encoder) / speeds.text,
        "references": sum(speeds.encode * size.area + _attention(spec, size, speeds) for size in plan.references),
        "denoise": first + (plan.steps - 1) * later,
        "decode": strips * speeds.decode * plan.size.area + _attention(spec, plan.size, speeds),
    }
    seconds["moving"] = _moving(weights, placement, branches, plan.steps, seconds, speeds)
    held = replace(segment, mode="store") if caching else segment
    need = cost.need(spec, held, branches, plan.size, compute_dtype(precision).itemsize).beside(placement)
    return Forecast(seconds, placement.most, need.peak)


def _moving(
    weights: WeightBytes, placement: Placement, branches: int, steps: int, seconds: dict[str, float], speeds: Speeds
) -> float:
    """Seconds that are not spent on anything else meanwhile: blocks come while others compute, networks do not."""
    if placement.offload == "components":
        return (weights.text_encoder.whole + weights.transformer.whole) / speeds.moving
    if placement.offload == "blocks":
        text = branches * weights.text_encoder.blocks / speeds.moving
        denoise = steps * weights.transformer.blocks / speeds.moving
        return max(0.0, text - seconds["text"]) + max(0.0, denoise - seconds["denoise"])
    return 0.0


def _segment(spec: ModelSpec, plan: Plan) -> Segment:
    return segment_for(spec.autoencoder, spec.text_encoder.max_tokens, plan.size, plan.references)


def _step_seconds(
    spec: ModelSpec, segment: Segment, branches: int, device: torch.device, precision: Precision
) -> float:
    transformer = spec.transformer
    packing = pack([segment] * branches, transformer, device=device)
    text, stream = (branches * number for number in (segment.num_text, segment.num_stream))
    width = transformer.hidden_size

    def rows(count: int) -> Tensor:
        return torch.randn(count, width, device=device, dtype=compute_dtype(precision))

    mods = [Modulated(*(rows(branches) for _ in range(3))) for _ in range(2)]
    none = BlockCaches("", [None] * branches)
    img, txt, x = rows(stream), rows(text), rows(text + stream)
    in_double = _seconds(
        partial(
            _random(lambda: DoubleBlock(transformer), device, precision), img, txt, mods, mods, packing, none, Adapted()
        ),
        device,
    )
    in_single = _seconds(
        partial(_random(lambda: SingleBlock(transformer), device, precision), x, mods[0], packing, none, Adapted()),
        device,
    )
    return transformer.num_double_blocks * in_double + transformer.num_single_blocks * in_single


def _text_flops(spec: TextEncoderSpec) -> float:
    heads = 2 * (spec.num_heads + spec.num_key_value_heads) * spec.head_dim
    per_token = spec.hidden_size * (heads + 3 * spec.mlp_size) + 2 * spec.max_tokens * spec.num_heads * spec.head_dim
    return 2.0 * spec.num_layers_needed * spec.max_tokens * per_token


def _text_seconds(spec: TextEncoderSpec, device: torch.device, precision: Precision) -> float:
    layer = _random(lambda: Layer(spec), device, precision)
    x_BLD = torch.randn(1, spec.max_tokens, spec.hidden_size, device=device, dtype=compute_dtype(precision))
    turns = rotations(spec.max_tokens, spec, x_BLD)
    seen = visible(torch.ones(1, spec.max_tokens, device=device))
    return spec.num_layers_needed * _seconds(lambda: layer(x_BLD, turns, seen), device)


def _autoencoder_seconds(spec: AutoencoderSpec, device: torch.device, precision: Precision) -> tuple[float, float]:
    """Of decoding and of encoding a part of a picture."""
    network, dtype = _random(lambda: Autoencoder(spec), device, precision), compute_dtype(precision)
    side = PART_SIDE // spec.pixels_per_token
    latent = torch.randn(1, spec.packed_channels, side, side, device=device, dtype=dtype)
    pixels = torch.randn(1, 3, PART_SIDE, PART_SIDE, device=device, dtype=dtype)
    return _seconds(lambda: network.decode(latent), device), _seconds(lambda: network.encode(pixels), device)


def _attention_seconds(spec: AutoencoderSpec, device: torch.device, precision: Precision) -> float:
    """Of the autoencoder's one attention, for each pair of its cells."""
    channels = spec.decoder_widths[-1]
    cells = 4 * (2 * PART_SIDE // spec.pixels_per_token) ** 2
    x = torch.randn(1, 1, cells, channels, device=device, dtype=compute_dtype(precision))
    return _seconds(lambda: F.scaled_dot_product_attention(x, x, x), device) / cells**2


def _attention(spec: ModelSpec, size: Size, speeds: Speeds) -> float:
    """Seconds that a picture's attention takes beyond its pixels' share of the part's: it grows with the square."""
    a_cell = (spec.autoencoder.pixels_per_token // 2) ** 2
    cells, part = size.area / a_cell, PART_SIDE**2 / a_cell
    return speeds.attention * max(0.0, cells**2 - part * cells)


def _moving_seconds(device: torch.device) -> float:
    resting = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    place = torch.empty_like(resting, device=device)
    return _seconds(lambda: place.copy_(resting), device)


def _random(build: Callable[[], Network], device: torch.device, precision: Precision) -> Network:
    """A network of random numbers, made where and in the numbers that it is wanted."""
    with torch.device("meta"):
        network = build()
    network = network.to(compute_dtype(precision)).to_empty(device=device).requires_grad_(False).eval()
    for parameter in network.parameters():
        parameter.normal_(std=0.02)
    for name, buffer in network.named_buffers():
        buffer.fill_(1.0 if name.endswith("running_var") else 0.0)
    quantize(network, precision)
    return network


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
        if best > LONG_ENOUGH:
            break
    return best
