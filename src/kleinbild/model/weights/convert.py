"""Tensors from a file's form to ours and back, by the tables of `layouts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kleinbild.model.weights.layouts import Source, Sources


def to_ours(source: Source, read: Callable[[str], Tensor]) -> Tensor:
    """One of our tensors; `read` gives a tensor of the file by its name."""
    parts = [read(name) for name in source.names]
    if source.form == "joined":
        return torch.cat(parts)
    if source.form == "swapped":
        return _swap_halves(parts[0])
    return parts[0][:, :, None, None] if source.form == "linear" else parts[0]


def from_ours(source: Source, tensor: Tensor) -> dict[str, Tensor]:
    """What the file holds for one of our tensors, by name."""
    if source.form == "joined":
        parts = tensor.chunk(len(source.names))
        return {name: part.contiguous() for name, part in zip(source.names, parts, strict=True)}
    if source.form == "swapped":
        tensor = _swap_halves(tensor)
    return {source.names[0]: tensor.flatten(1) if source.form == "linear" else tensor}


def convert_to_ours(sources: Sources, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state dict in our names. Raises KeyError where one is missing."""
    return {ours: to_ours(source, stored.__getitem__) for ours, source in sources.items()}


def convert_from_ours(sources: Sources, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state dict in the other naming. Raises KeyError where one of ours is missing."""
    stored: dict[str, Tensor] = {}
    for ours, source in sources.items():
        stored.update(from_ours(source, state[ours]))
    return stored


def _swap_halves(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])
