"""What a training run needs, before it begins: tokens a step, memory, disk. Counted from shapes, nothing is loaded.

Weights, parameters and moments are exact. Activations are a model with measured factors: what torch keeps for the
backward pass of a block is so many bytes for each row and unit of width (`tests/unit/train/data/test_needs.py` holds
them to it). What allocators lose and kernels take for a moment comes on top, as one factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from kleinbild.core.precision import Precision as ModelPrecision
from kleinbild.model.placement import BLOCK, NetworkBytes
from kleinbild.model.spec import ModelSpec, TransformerSpec
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights.fit import expected_shapes
from kleinbild.train.frozen import NF4_BLOCK
from kleinbild.train.networks import trained_from
from kleinbild.train.recipe import Optimizer, Precision, Recipe

MODEL_PRECISION: dict[Precision, ModelPrecision] = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
MOMENTS: dict[Optimizer, float] = {"adamw": 2, "adamw8bit": 0.5, "prodigy": 4, "muon": 1}
"""Numbers of 4 bytes that an optimizer keeps for each parameter."""
BLOCK_BYTES = {2: 51.0, 4: 90.0}
"""Kept of a block for each row and unit of width, by the bytes of a number; what is in float32 in either is included."""
IN_FLIGHT = 1.5  # blocks' worth: one made again, and the gradients inside it
LOST = 1.15
PARAMETER = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device during a step. The text encoder and the autoencoder have left by then."""

    weights: int
    parameters: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.parameters + self.gradients + self.moments + self.activations


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one example, text and references included: the smallest, the mean, the largest; and of a step's batch."""

    smallest: int
    mean: float
    largest: int
    a_step: float


def tokens_of(num_rows: Sequence[int], samples_a_step: int) -> Tokens:
    mean = sum(num_rows) / len(num_rows)
    return Tokens(min(num_rows), mean, max(num_rows), mean * samples_a_step)


def memory(spec: ModelSpec, recipe: Recipe, num_rows: int) -> Memory:
    """`num_rows` are the tokens of the largest batch that goes through the transformer at once."""
    number = num_parameters(spec.transformer, recipe)
    full = recipe.method == "full"
    element = 4 if recipe.precision == "fp32" else 2
    size = element if full else PARAMETER
    return Memory(
        weights=weight_bytes(spec.transformer, recipe.precision),
        parameters=(0 if full else PARAMETER * number) + (PARAMETER * number if recipe.ema else 0),
        gradients=size * number,
        moments=int(MOMENTS[recipe.optimizer] * size * number),
        activations=activation_bytes(spec.transformer, num_rows, element, checkpointing=recipe.gradient_checkpointing),
    )


def choices(spec: ModelSpec, recipe: Recipe, num_rows: int) -> dict[str, tuple[int, int]]:
    """Bytes in all by precision of the base: without gradient checkpointing, and with it."""
    precisions: tuple[Precision, ...] = ("bf16", "int8", "nf4") if recipe.method in ("lora", "lokr") else ("bf16",)
    if recipe.precision not in precisions:
        precisions = (recipe.precision, *precisions)

    def total(precision: Precision, checkpointing: bool) -> int:
        other = replace(recipe, precision=precision, gradient_checkpointing=checkpointing)
        return memory(spec, other, num_rows).total

    return {each: (total(each, checkpointing=False), total(each, checkpointing=True)) for each in precisions}


def weight_bytes(spec: TransformerSpec, precision: Precision) -> int:
    shapes = expected_shapes(spec)
    if precision != "nf4":
        return NetworkBytes.of(shapes, MODEL_PRECISION[precision]).whole
    in_blocks = sum(prod(shape) for name, shape in shapes.items() if BLOCK.match(name) and len(shape) == 2)
    others = sum(prod(shape) for shape in shapes.values()) - in_blocks
    return in_blocks // 2 + 4 * in_blocks // NF4_BLOCK + 2 * others


def num_parameters(spec: TransformerSpec, recipe: Recipe) -> int:
    """What is trained, counted in the very network that would be, without its numbers."""
    with torch.device("meta"):
        transformer = Flux2Transformer(spec)
    return sum(parameter.numel() for parameter in trained_from(transformer, recipe).parameters.values())


def activation_bytes(spec: TransformerSpec, num_rows: int, element: int, *, checkpointing: bool) -> int:
    """Of all rows of a pass. With checkpointing only what goes into each block is kept, and one block is made again."""
    num_blocks = spec.num_double_blocks + spec.num_single_blocks
    a_block = num_rows * spec.hidden_size * BLOCK_BYTES[element]
    if checkpointing:
        return int(LOST * (num_rows * spec.hidden_size * element * num_blocks + IN_FLIGHT * a_block))
    return int(LOST * (num_blocks + IN_FLIGHT - 1) * a_block)


def cache_bytes(spec: ModelSpec, num_stream: int, num_captions: int, element: int) -> int:
    """On disk: latents of all pictures and references (`num_stream` tokens), and a context for each caption."""
    text = spec.text_encoder
    return element * (num_stream * spec.transformer.in_channels + num_captions * text.max_tokens * text.context_size)
