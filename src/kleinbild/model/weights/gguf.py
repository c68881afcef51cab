"""Tensors from GGUF files, with quantized blocks turned back into numbers one tensor at a time.

The reading of blocks is the `gguf` package's, which knows all of the format's types; it is an extra, because only those
who have such files need it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kleinbild.core.errors import ModelError, WeightsError


def gguf_reader(paths: tuple[Path, ...]) -> Callable[[str], Tensor]:
    """A function from a tensor's name to the tensor, float32, or F16 as stored. ModelError without the package."""
    try:
        import gguf  # an extra: absent is a message, not a crash
    except ImportError as error:
        raise ModelError(f"{paths[0]} is a GGUF file", "`pip install 'kleinbild[gguf]'` makes them readable") from error
    try:
        tensors = {tensor.name: tensor for path in paths for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise WeightsError(f"{paths[0]} cannot be read: {error}", "fetch it again") from error

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        shape = tuple(int(n) for n in reversed(tensor.shape))  # GGML counts axes from the last
        if tensor.tensor_type == gguf.GGMLQuantizationType.F16:
            return torch.from_numpy(np.array(tensor.data)).reshape(shape)
        try:
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            what = f"{name} is of type {tensor.tensor_type.name}, which cannot be read"
            raise WeightsError(f"{paths[0]}: {what}", "take a file of another type, such as Q8_0") from error
        return torch.from_numpy(np.array(numbers, dtype=np.float32)).reshape(shape)

    return read
