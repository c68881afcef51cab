"""In which numbers a model computes, and the proof that this machine computes them right.

float32 and bfloat16 are plain. int8 and fp8 are bfloat16 with the linear layers of all blocks in eight bits: those of
the transformer and of the text encoder. They are used only where a product of theirs came out as it should, on the very
device; that is tried before any weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kleinbild.core.errors import ModelError
from kleinbild.core.precision import Precision
from kleinbild.model.fp8 import Fp8Linear, require_fp8
from kleinbild.model.int8 import Int8Linear

QUANTIZED: dict[Precision, Callable[[Tensor], nn.Module]] = {"int8": Int8Linear, "fp8": Fp8Linear}
BLOCKS = ("double_blocks", "single_blocks", "model.layers")  # what holds the layers that are quantized
TOLERANCE: dict[Precision, float] = {"int8": 0.02, "fp8": 0.05}  # of a product of normal numbers, relative norm
TRIED = (70, 512, 768)  # rows, inputs and outputs of the product that is tried


def compute_dtype(precision: Precision) -> torch.dtype:
    """The type of everything that is not quantized."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def prove(precision: Precision, device: torch.device) -> str | None:
    """Tries a product of `precision` on `device`. Gives what is wrong with it, or None."""
    if precision not in QUANTIZED:
        return None
    num_rows, num_in, num_out = TRIED
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(rows, num_in, generator=generator).to(device, torch.bfloat16) for rows in (num_rows, num_out)
    )
    try:
        if precision == "fp8":
            require_fp8(device)
        made = QUANTIZED[precision](weight)(x).double()
    except (ModelError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    expected = x.double() @ weight.double().t()
    off = float((made - expected).norm() / expected.norm())
    if not off <= TOLERANCE[precision]:
        return f"a product is off by {off:.1%} instead of {TOLERANCE[precision]:.0%} at most"
    return None


def quantizable(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Every linear layer in a network's blocks: its parent, its name there, and its whole name."""
    for name, module in network.named_modules():
        if name in BLOCKS:
            yield from _linear_layers(module, name)


def quantize(block: nn.Module, precision: Precision) -> None:
    """Replaces the linear layers of a block, or of several, one by one; plain numbers stay as they are."""
    if precision in QUANTIZED:
        for parent, name, _ in list(_linear_layers(block, "")):
            setattr(parent, name, QUANTIZED[precision](parent.get_parameter(f"{name}.weight").detach()))


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight (output, input features) of a linear layer in float32, wherever it is now; of a quantized one, rounded."""
    if isinstance(layer, Int8Linear | Fp8Linear):
        return layer.plain_weight()
    return layer.get_parameter("weight").detach().float()


def _linear_layers(block: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str]]:
    for place, parent in block.named_modules(prefix=prefix):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, f"{place}.{name}"
