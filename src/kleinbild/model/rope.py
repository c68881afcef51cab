"""Positions of tokens and their rotary embedding.

Every token has four coordinates (t, h, w, l). Text token i is (0, 0, 0, i); the image token at row r, column c is
(0, r, c, 0); reference k's are (10 + 10·k, r, c, 0). Each coordinate rotates its own share of the head's channels,
adjacent pairs (2i, 2i+1), computed in float64 and applied in float32.

Shape suffixes: N tokens, A axes (4), H heads, d head dim, p pairs (d/2).
"""

from __future__ import annotations

import torch
from torch import Tensor

REFERENCE_TIME_OFFSET = 10


def text_ids(num_tokens: int) -> Tensor:
    """Positions (num_tokens, 4) of a text."""
    ids_NA = torch.zeros(num_tokens, 4)
    ids_NA[:, 3] = torch.arange(num_tokens)
    return ids_NA


def image_ids(rows: int, columns: int, reference: int | None = None) -> Tensor:
    """Positions (rows·columns, 4), row by row, of the image being made or of reference number `reference`."""
    time = 0 if reference is None else REFERENCE_TIME_OFFSET * (1 + reference)
    axes = torch.meshgrid(
        torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.tensor([0]), indexing="ij"
    )
    return torch.stack(axes, dim=-1).reshape(-1, 4).float()


def rotations(ids_NA: Tensor, axes: tuple[int, ...], theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, 1, 1, p) of every token's angles, float32, ready to broadcast over queries, keys and heads."""
    angles = []
    for axis, width in enumerate(axes):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=ids_NA.device) / width
        angles.append(ids_NA[:, axis, None].double() * theta**-exponents)
    angles_N11p = torch.cat(angles, dim=-1)[:, None, None]
    return angles_N11p.cos().float(), angles_N11p.sin().float()


def rotate(x_N2Hd: Tensor, cos_N11p: Tensor, sin_N11p: Tensor) -> Tensor:
    """Rotates each pair of channels of queries and keys, in float32."""
    real, imaginary = x_N2Hd.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((real * cos_N11p - imaginary * sin_N11p, real * sin_N11p + imaginary * cos_N11p), dim=-1)
    return turned.flatten(-2)
