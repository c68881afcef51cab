"""What a request costs: arithmetic for fairness and forecasts, memory for admission. No tensors here.

Both are counted from shapes. The arithmetic is exact for the matrix products, which are nearly all of it. The memory is
a model: what a sequence holds while it waits for its turn, what a step takes on top, what decoding takes; its factors
were measured (`tests/unit/engine/test_cost.py` holds them to it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kleinbild.core.sizes import LARGE_PICTURE, Size
from kleinbild.model.packing import Segment
from kleinbild.model.placement import Placement
from kleinbild.model.spec import AutoencoderSpec, ModelSpec, TransformerSpec

STEP_FACTOR = 1.3  # allocators round up, and buffers of the matrix library come on top
DECODE_MAPS = 5.0  # feature maps of the full size, at the widest of the two highest levels, that decoding holds at once
STRIP_MAPS = 2.5  # at the base width, in strips: one whole, and the strips in flight
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: held from the first step to the end, on top during a step, on top while decoding."""

    held: int
    step: int
    decode: int

    @property
    def peak(self) -> int:
        return self.held + max(self.step, self.decode)

    def beside(self, placement: Placement) -> Need:
        """What it comes to beside the most weights that are ever on the device: some may leave while it is decoded."""
        return replace(self, decode=max(0, self.decode - (placement.most - placement.autoencoder)))

    def peak_with(self, placement: Placement) -> int:
        """The most of weights and picture together."""
        return placement.most + self.beside(placement).peak


def step_flops(spec: TransformerSpec, segment: Segment) -> int:
    """Floating-point operations (a multiply and an add are two) of one segment's share of a step."""
    width, mlp = spec.hidden_size, spec.mlp_size
    text, stream = segment.num_text, segment.num_stream
    per_row = 4 * width * width + 3 * width * mlp  # qkv and out, gate, up and down; the same in both kinds of block
    num_blocks = spec.num_double_blocks + spec.num_single_blocks
    keys = segment.num_text + segment.num_image + segment.num_references
    ends = stream * 2 * spec.in_channels * width + text * spec.context_size * width
    not_needed = text * (width + mlp) * width  # the text's rows of the last product
    return 2 * ((text + stream) * (per_row * num_blocks + 2 * keys * width * num_blocks) + ends - not_needed)


def need(
    spec: ModelSpec, segment: Segment, num_branches: int, size: Size, element: int, adapter_work: int = 0
) -> Need:  # fmt: skip
    """The memory of one picture; `num_branches` is 2 with guidance, `element` the bytes of a number.

    `adapter_work` is what applying its adapters takes for a moment. They themselves, which requests share, are not counted.
    """
    transformer = spec.transformer
    width, num_blocks = transformer.hidden_size, transformer.num_double_blocks + transformer.num_single_blocks
    cached = 0 if segment.mode == "joint" else 2 * segment.num_references * width * num_blocks * element
    held = num_branches * (segment.num_text * transformer.context_size * element + cached)
    held += 3 * FLOAT32 * segment.num_image * transformer.in_channels  # latent, velocity, estimate
    held += element * segment.num_references * transformer.in_channels
    rows = num_branches * (segment.num_text + segment.num_image + segment.num_references)
    # The widest moment is in a single block: fused rows, their products, queries and keys turned in float32.
    per_row = element * (6 * width + 4 * transformer.mlp_size) + FLOAT32 * 5 * width
    return Need(held, int(STEP_FACTOR * rows * per_row) + adapter_work, decode_bytes(spec.autoencoder, size, element))


def decode_bytes(spec: AutoencoderSpec, size: Size, element: int) -> int:
    if size.area > LARGE_PICTURE:
        return int(STRIP_MAPS * spec.decoder_widths[0] * size.area * element)
    widest = max(spec.decoder_widths[:2])
    return int(DECODE_MAPS * widest * size.area * element)
