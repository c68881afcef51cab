"""A picture decoded in strips is the picture decoded whole, and takes a fraction of the memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kleinbild.model.autoencoder import GROUP_NORM_EPS, Autoencoder
from kleinbild.model.spec import AutoencoderSpec
from kleinbild.model.strips import activated, decode_in_strips, whole
from kleinbild.nano.specs import NANO
from tests import tiny

OFFICIAL_BUT_NARROW = replace(AutoencoderSpec(), base_channels=16, num_groups=8)


def latent(rows: int, columns: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn((batch, 128, rows, columns), generator=torch.Generator().manual_seed(seed))


def assert_same(strips: Tensor, plain: Tensor) -> None:
    assert strips.shape == plain.shape
    assert plain.abs().max() > 0.5  # there is something to compare
    assert (strips - plain).abs().max() <= 1e-4


@pytest.mark.parametrize("strip_rows", [1, 2, 5, 7, 32])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (5, 2)])
@torch.inference_mode()
def test_strips_of_any_height_are_the_whole(rows: int, columns: int, strip_rows: int) -> None:
    network, noise = tiny.autoencoder(), latent(rows, columns)
    assert_same(decode_in_strips(network, noise, strip_rows), network.decode(noise))


@pytest.mark.parametrize(
    "spec",
    [
        NANO.autoencoder,
        OFFICIAL_BUT_NARROW,
        AutoencoderSpec(base_channels=8, channel_multipliers=(2,), num_res_blocks=1, num_groups=1),
        AutoencoderSpec(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_groups=4),
    ],
    ids=["nano", "official, but narrow", "one level", "two levels"],
)
@torch.inference_mode()
def test_any_spec(spec: AutoencoderSpec) -> None:
    network, noise = tiny.autoencoder(spec=spec), latent(3, 4)
    assert_same(decode_in_strips(network, noise, 6), network.decode(noise))


@torch.inference_mode()
def test_each_picture_of_a_batch_has_its_own_statistics() -> None:
    network, noise = tiny.autoencoder(), latent(3, 2, batch=2) * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    assert_same(decode_in_strips(network, noise, 8), network.decode(noise))


@pytest.mark.parametrize("strip_rows", [8, 32])
@torch.inference_mode()
def test_bfloat16(strip_rows: int) -> None:
    network = Autoencoder(OFFICIAL_BUT_NARROW)
    network = tiny.randomize(network, 3).to(torch.bfloat16)
    noise = latent(6, 5).to(torch.bfloat16)
    strips, plain = decode_in_strips(network, noise, strip_rows), network.decode(noise)
    assert strips.dtype == torch.bfloat16
    mean_square = (strips.float() - plain.float()).square().mean().item()
    assert 10 * math.log10(2**2 / max(mean_square, 1e-12)) >= 45  # pixels are about [-1, 1]


@torch.inference_mode()
def test_no_seams_where_top_and_bottom_differ() -> None:
    network = tiny.autoencoder()
    noise = latent(8, 3)
    noise[:, :, :4] *= 0.1
    noise[:, :, 4:] = 3 * noise[:, :, 4:] + 2
    plain = network.decode(noise)
    assert_same(decode_in_strips(network, noise, 8), plain)
    # With statistics of its own the upper half, even where it knows nothing of the lower, is another picture.
    assert (network.decode(noise[:, :, :4]) - plain[:, :, :64])[:, :, :16].abs().mean() > 0.05


@torch.inference_mode()
def test_no_precision_is_lost_to_a_mean_far_from_zero() -> None:
    """Sums of squares in float32 would lose it."""
    norm = nn.GroupNorm(2, 4, eps=GROUP_NORM_EPS)
    x = 3000 + torch.randn((1, 4, 30, 8), generator=torch.Generator().manual_seed(0))
    x[:, :, 15:] += 2
    exact = F.silu(F.group_norm(x.double(), 2, eps=GROUP_NORM_EPS))
    assert (activated(norm, whole(x), 8).rows(0, 30) - exact).abs().max() <= 2e-3


def test_no_gradients_are_kept() -> None:
    network = Autoencoder(tiny.SPEC.autoencoder)
    assert not decode_in_strips(network, latent(1, 1)).requires_grad


@torch.inference_mode()
def test_at_2048_rows_strips_take_a_quarter_of_the_memory() -> None:
    """Both peaks grow with width and base channels alike, so a narrow picture of an official height tells."""
    network, noise = tiny.autoencoder(spec=OFFICIAL_BUT_NARROW), latent(128, 1)
    plain = peak_bytes(network, lambda: network.decode(noise))
    strips = peak_bytes(network, lambda: decode_in_strips(network, noise))
    full_size = 2048 * 16 * OFFICIAL_BUT_NARROW.base_channels * noise.element_size()
    assert plain >= 6 * full_size
    assert strips <= 1.3 * full_size
    assert strips <= plain / 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, until they are freed."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())

    def freed(self, name: int, num_bytes: int) -> None:
        self.known.discard(name)
        self.now -= num_bytes


def peak_bytes(network: Autoencoder, decode: Callable[[], Tensor]) -> int:
    with LiveBytes(network) as live:
        picture = decode()
    assert live.now <= 2 * picture.untyped_storage().nbytes()  # what is freed is seen to be
    return live.peak
