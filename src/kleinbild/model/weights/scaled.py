"""Weights in eight-bit floats, which are to be multiplied by the scale that lies beside them.

Files in fp8 hold `layer.weight` in float8 and `layer.weight_scale`, one number for all or one a row; some call it
`layer.scale_weight`. What else lies beside it tells engines how to round activations, and is not needed to read the weights.
The names are those of ComfyUI's and BFL's files. Whoever only looks at a file needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kleinbild.core.errors import WeightsError
from kleinbild.model.weights.headers import StoredTensors, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale", "scale_weight")
PASSED_OVER = ("input_scale", "scale_input", "comfy_quant")
MARKER = "scaled_fp8"  # an empty tensor that says that there are scales


def with_scales(stored: StoredTensors) -> StoredTensors:
    """The same with each float8 weight joined to its scale, so that only weights are left."""
    tensors = {name: info for name, info in stored.tensors.items() if name.rpartition(".")[2] != MARKER}
    for name, info in stored.tensors.items():
        if info.dtype in FLOAT8 and name.endswith(".weight"):
            layer = name.removesuffix("weight")
            scale = next((layer + each for each in SCALES if layer + each in tensors), None)
            if scale is not None:
                tensors[name] = replace(info, scale=(tensors[scale].path, scale))
            for beside in (*SCALES, *PASSED_OVER):
                tensors.pop(layer + beside, None)
    return replace(stored, tensors=tensors)


def read_scaled(read: Callable[[Path, str], Tensor], info: TensorInfo, name: str) -> Tensor:
    """A tensor's numbers by `read` (a file, a name); of float8 in float32, times their scale.

    Raises WeightsError for scales of blocks, which other kinds of eight-bit files have.
    """
    tensor = read(info.path, name)
    if info.dtype not in FLOAT8:
        return tensor
    if info.scale is None:
        return tensor.float()
    scale = read(*info.scale).float()
    if scale.numel() not in (1, len(tensor)):
        what = f"{scale.numel()} scales for its {len(tensor)} rows"
        raise WeightsError(
            f"{info.path}: {name} has {what}", "use a file in bfloat16, GGUF, or fp8 with a scale a layer or row"
        )
    return tensor.float() * scale.reshape(-1, *[1] * (tensor.ndim - 1))  # one for all, or one a row
