"""Decoding large pictures in strips: what `Autoencoder.decode` makes, in a fraction of its memory and without seams.

A convolution needs only the rows beside its own, but a group norm needs the mean and variance of the whole map: strips
with statistics of their own would show. So a map here is a promise of any of its rows (`FeatureMap`). A norm goes over
all of them once for its statistics before it lets any through. What is small enough is stored in strips, and each strip
is freed as soon as the next map needs it no more; what is too large to store is computed again when it is asked for.

That leaves about one activation of full size (base channels, all pixels) and some strips, where the plain decode holds
six and more. The price is arithmetic: each block computes its first convolution twice, and the last upsampling's, which
has twice the channels at full size, is computed three times: 1.6 times the plain decode's at the official spec.

Shape suffixes: B batch, C channels, G groups, S strips, H rows of a map, R rows asked for, W columns, D Z r c h w as in
`autoencoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.core.heap import large_blocks_apart
from kleinbild.model.activation import silu
from kleinbild.model.autoencoder import Autoencoder, Level, ResnetBlock

STRIP_ROWS = 32
"""Of every map. At a height of 2048 the strips in flight take a quarter of an activation; each strip computes up to six
rows more than it returns, which fewer rows would make a large share."""


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """`rows(first, end)` computes those rows (B, C, R, W) of the H there are; `forget(row)` promises that no row above
    `row` will be asked for again."""

    height: int
    rows: Callable[[int, int], Tensor]
    forget: Callable[[int], None]

    def cut(self, strip_rows: int) -> list[tuple[int, int]]:
        """First and end of each strip; the last may be shorter."""
        return [(first, min(first + strip_rows, self.height)) for first in range(0, self.height, strip_rows)]


@torch.no_grad()
@large_blocks_apart()
def decode_in_strips(autoencoder: Autoencoder, latent_BDrc: Tensor, strip_rows: int = STRIP_ROWS) -> Tensor:
    """Normalised latents (B, D, r, c) to pixels (B, 3, 16·r, 16·c), as `Autoencoder.decode`; without gradients."""
    decoder = autoencoder.decoder
    x = whole(decoder.bottom(autoencoder.unpack(latent_BDrc)))
    for i, level in reversed(list(enumerate(decoder.up))):
        assert isinstance(level, Level)
        for block in level.block:
            assert isinstance(block, ResnetBlock)
            x = stored(residual(block, x, strip_rows), strip_rows)
        if i > 0:
            x = convolved(level.upsample.conv, upsampled(x))
            x = stored(x, strip_rows) if i > 1 else latest(x)
    picture = stored(convolved(decoder.conv_out, activated(decoder.norm_out, x, strip_rows)), strip_rows)
    return picture.rows(0, picture.height)


def whole(x_BCHW: Tensor) -> FeatureMap:
    return FeatureMap(x_BCHW.shape[2], lambda first, end: x_BCHW[:, :, first:end], lambda _: None)


def convolved(conv: nn.Module, x: FeatureMap) -> FeatureMap:
    """A 3x3 convolution. Beyond the picture there are zeros, as it pads; rows that it pads within are thrown away."""

    def rows(first: int, end: int) -> Tensor:
        top = max(first - 1, 0)
        out_BCRW: Tensor = conv(x.rows(top, min(end + 1, x.height)))
        return out_BCRW[:, :, first - top : end - top]

    return FeatureMap(x.height, rows, lambda row: x.forget(row - 1))


def upsampled(x: FeatureMap) -> FeatureMap:
    """Every cell becomes 2x2."""

    def rows(first: int, end: int) -> Tensor:
        top = first // 2
        out_BCRW = F.interpolate(x.rows(top, (end + 1) // 2), scale_factor=2.0, mode="nearest")
        return out_BCRW[:, :, first - 2 * top : end - 2 * top]

    return FeatureMap(2 * x.height, rows, lambda row: x.forget(row // 2))


def activated(norm: nn.GroupNorm, x: FeatureMap, strip_rows: int) -> FeatureMap:
    """The norm with the statistics of the whole map, and SiLU. Computes all of `x` once, now."""
    scale_BC11, shift_BC11 = _scale_and_shift(norm, x, strip_rows)

    def rows(first: int, end: int) -> Tensor:
        x_BCRW = x.rows(first, end)
        return silu((x_BCRW * scale_BC11).add_(shift_BC11).to(x_BCRW.dtype))  # in float32, as the plain norm computes

    return FeatureMap(x.height, rows, x.forget)


def residual(block: ResnetBlock, x: FeatureMap, strip_rows: int) -> FeatureMap:
    """A block of the autoencoder. Computes all of `x` once and the block's first convolution once, now."""
    hidden = convolved(block.conv1, activated(block.norm1, x, strip_rows))
    change = convolved(block.conv2, activated(block.norm2, hidden, strip_rows))

    def rows(first: int, end: int) -> Tensor:
        change_BCRW = change.rows(first, end)  # asks `x` for more rows than the shortcut, so it goes first: `latest`
        out_BCRW: Tensor = block.nin_shortcut(x.rows(first, end)) + change_BCRW
        return out_BCRW

    return FeatureMap(x.height, rows, change.forget)


def stored(x: FeatureMap, strip_rows: int) -> FeatureMap:
    """All of `x`, computed now and kept in strips, each until it is forgotten. `x` is of no use afterwards."""
    strips: dict[int, Tensor] = {}
    for i, (first, end) in enumerate(x.cut(strip_rows)):
        strips[i] = x.rows(first, end).contiguous()  # a view would keep the rows around it alive
        x.forget(end)

    def rows(first: int, end: int) -> Tensor:
        parts = [
            strips[i][:, :, max(first - i * strip_rows, 0) : end - i * strip_rows]
            for i in range(first // strip_rows, (end - 1) // strip_rows + 1)
        ]
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def forget(row: int) -> None:
        for i in [i for i in strips if (i + 1) * strip_rows <= row]:
            del strips[i]

    return FeatureMap(x.height, rows, forget)


def latest(x: FeatureMap) -> FeatureMap:
    """Keeps the rows computed last, for whoever asks for some of them again."""
    kept: list[tuple[int, Tensor]] = []

    def rows(first: int, end: int) -> Tensor:
        if not kept or first < kept[0][0] or end > kept[0][0] + kept[0][1].shape[2]:
            kept.clear()  # before the next are computed, so that there are never two
            kept.append((first, x.rows(first, end)))
        top, x_BCRW = kept[0]
        return x_BCRW[:, :, first - top : end - top]

    return FeatureMap(x.height, rows, x.forget)


def _scale_and_shift(norm: nn.GroupNorm, x: FeatureMap, strip_rows: int) -> tuple[Tensor, Tensor]:
    """The norm as x · scale + shift, both (B, C, 1, 1) in float32."""
    mean_BG, variance_BG = _statistics(norm.num_groups, x, strip_rows)
    deviation_BG = (variance_BG + norm.eps).sqrt()
    mean_BC, deviation_BC = (
        of_groups_BG.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
        for of_groups_BG in (mean_BG, deviation_BG)
    )
    scale_BC = norm.weight.cpu() / deviation_BC
    shift_BC = norm.bias.cpu() - mean_BC * scale_BC
    scale_BC11, shift_BC11 = (
        each_BC.to(norm.weight.device, torch.float32)[:, :, None, None] for each_BC in (scale_BC, shift_BC)
    )
    return scale_BC11, shift_BC11


def _statistics(num_groups: int, x: FeatureMap, strip_rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, G) of each group over the whole map, from those of its strips: no sums of squares.

    In float64 on the CPU, since not every device has it. Each strip counts by its share of rows; to the variance within
    strips comes that of their means.
    """
    strips = x.cut(strip_rows)
    moments_S2BG = torch.stack([_moments(num_groups, x.rows(first, end)) for first, end in strips]).cpu().double()
    variance_SBG, mean_SBG = moments_S2BG.unbind(1)
    share_S11 = torch.tensor([[[(end - first) / x.height]] for first, end in strips], dtype=torch.float64)
    mean_BG = (share_S11 * mean_SBG).sum(0)
    return mean_BG, (share_S11 * (variance_SBG + (mean_SBG - mean_BG).square())).sum(0)


def _moments(num_groups: int, x_BCRW: Tensor) -> Tensor:
    """Variance and mean (2, B, G) of each group of one strip, in float32."""
    grouped_BGN = x_BCRW.float().unflatten(1, (num_groups, -1)).flatten(2)
    return torch.stack(torch.var_mean(grouped_BGN, dim=2, correction=0))
