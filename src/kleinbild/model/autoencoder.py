"""The picture autoencoder: pixels to normalised, patch-packed latents and back.

Stands at both ends of a request: references are encoded, the finished latent is decoded. Module names are those of the
BFL checkpoint (`encoder.down.0.block.0.conv1`, `decoder.up.3…`, `bn.running_mean`), so that code and file can be read
side by side. The latent is the mean of the posterior; nothing is sampled at inference.

Shape suffixes: B batch, C channels, H W pixels, h w latent cells (8 px), r c tokens (16 px), D packed channels (4·Z).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kleinbild.model.activation import silu
from kleinbild.model.convolution import Convolution, Pointwise, convolve
from kleinbild.model.spec import AutoencoderSpec

GROUP_NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, num_in, eps=GROUP_NORM_EPS)
        self.conv1 = Convolution(num_in, num_out)
        self.norm2 = nn.GroupNorm(groups, num_out, eps=GROUP_NORM_EPS)
        self.conv2 = Convolution(num_out, num_out)
        self.nin_shortcut: nn.Module = Pointwise(num_in, num_out) if num_in != num_out else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(silu(self.norm2(h_BCHW)))
        out: Tensor = self.nin_shortcut(x_BCHW) + h_BCHW
        return out


class AttnBlock(nn.Module):
    """Single-head attention over all cells; the projections are 1x1 convolutions, as in the checkpoint."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        self.q = Pointwise(channels, channels)
        self.k = Pointwise(channels, channels)
        self.v = Pointwise(channels, channels)
        self.proj_out = Pointwise(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Contiguous: over transposed views the last bits depend on the number of threads. Transposed before the projections,
        # not after: of that the compiler makes code for bfloat16 on CPUs whose results are NaN (torch 2.13).
        tokens_B1NC = self.norm(x_BCHW).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        q_B1NC, k_B1NC, v_B1NC = (projection.of_tokens(tokens_B1NC) for projection in (self.q, self.k, self.v))
        h_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)
        h_BCHW = h_B1NC.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape)
        out: Tensor = x_BCHW + self.proj_out(h_BCHW)
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return convolve(self.conv, F.pad(x_BCHW, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution, and the step to the next (absent at the last)."""

    block: nn.ModuleList
    downsample: Downsample
    upsample: Upsample

    def __init__(self, num_in: int, num_out: int, num_blocks: int, groups: int) -> None:
        super().__init__()
        widths = [num_in] + [num_out] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(widths[i], widths[i + 1], groups) for i in range(num_blocks))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class Encoder(nn.Module):
    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.encoder_widths
        groups = spec.num_groups
        self.conv_in = Convolution(3, widths[0])
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, spec.num_res_blocks, groups)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = Convolution(widths[-1], 2 * spec.latent_channels)
        self.quant_conv = Pointwise(2 * spec.latent_channels, 2 * spec.latent_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to the posterior's moments (B, 2·Z, h, w): mean, then log variance."""
        h_BCHW = self.conv_in(x_BCHW)
        for i, level in enumerate(self.down):
            h_BCHW = level(h_BCHW)
            if i < len(self.down) - 1:
                h_BCHW = level.get_submodule("downsample")(h_BCHW)
        h_BCHW = self.conv_out(silu(self.norm_out(self.mid(h_BCHW))))
        moments: Tensor = self.quant_conv(h_BCHW)
        return moments


class Decoder(nn.Module):
    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.decoder_widths
        groups = spec.num_groups
        self.post_quant_conv = Pointwise(spec.latent_channels, spec.latent_channels)
        self.conv_in = Convolution(spec.latent_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        levels = []
        for i, width in enumerate(widths):
            level = Level(widths[min(i + 1, len(widths) - 1)], width, spec.num_res_blocks + 1, groups)
            if i > 0:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(levels)  # up.0 is the highest resolution, run last
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=GROUP_NORM_EPS)
        self.conv_out = Convolution(widths[0], 3)

    def bottom(self, z_BZhw: Tensor) -> Tensor:
        """Everything at the latent's own resolution that comes before the levels: (B, C, h, w)."""
        out: Tensor = self.mid(self.conv_in(self.post_quant_conv(z_BZhw)))
        return out

    def forward(self, z_BZhw: Tensor) -> Tensor:
        h_BCHW = self.bottom(z_BZhw)
        for i in reversed(range(len(self.up))):
            h_BCHW = self.up[i](h_BCHW)
            if i > 0:
                h_BCHW = self.up[i].get_submodule("upsample")(h_BCHW)
        out: Tensor = self.conv_out(silu(self.norm_out(h_BCHW)))
        return out


class Autoencoder(nn.Module):
    """Encoder, decoder and the fixed per-channel normalisation between them."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.bn = nn.BatchNorm2d(spec.packed_channels, eps=spec.batch_norm_eps, affine=False)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1], sides multiples of 16, to normalised latents (B, D, H/16, W/16)."""
        mean_BZhw = self.encoder(x_BCHW).chunk(2, dim=1)[0]
        packed_BDrc = F.pixel_unshuffle(mean_BZhw, 2)  # channel, row in patch, column in patch
        return (packed_BDrc - self._mean()) / self._std()

    def decode(self, latent_BDrc: Tensor) -> Tensor:
        """Normalised latents (B, D, r, c) to pixels (B, 3, 16·r, 16·c), about [-1, 1], not clipped."""
        out: Tensor = self.decoder(self.unpack(latent_BDrc))
        return out

    def unpack(self, latent_BDrc: Tensor) -> Tensor:
        """Normalised latents (B, D, r, c) to what the decoder takes: (B, Z, 2·r, 2·c)."""
        return F.pixel_shuffle(latent_BDrc * self._std() + self._mean(), 2)

    def _mean(self) -> Tensor:
        return self._buffer("running_mean")

    def _std(self) -> Tensor:
        return torch.sqrt(self._buffer("running_var") + self.spec.batch_norm_eps)

    def _buffer(self, name: str) -> Tensor:
        return self.bn.get_buffer(name).view(1, -1, 1, 1)
