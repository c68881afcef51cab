"""A row's last bits are its own, however many rows there are beside it, and however many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kleinbild.model import linear as products
from kleinbild.model.convolution import Convolution, Pointwise, convolve
from kleinbild.model.linear import Linear, add_linear_, linear

NANO = [(128, 224), (224, 224), (224, 672), (224, 1344), (224, 2016), (256, 224), (576, 224), (672, 224), (896, 224)]
"""Inputs and outputs of nano's products."""
OTHERS = [(800, 96), (1000, 64), (1536, 96), (2048, 64)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [*NANO, *OTHERS])
@torch.inference_mode()
def test_rows_depend_neither_on_their_number_nor_on_threads(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Linear(*shape)
    x_ND = torch.randn(640, shape[0])
    whole = layer(x_ND)
    for num_threads in (1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for num_rows in [*range(1, 16), *range(16, 640, 37), 640]:
            assert torch.equal(layer(x_ND[:num_rows]), whole[:num_rows]), f"{num_rows} rows, {num_threads} threads"


@pytest.fixture
def not_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which MKL has no strict mode."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "mkl_is_strict", lambda: False)


class Names(TorchDispatchMode):
    """Those of the operations that torch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def by_onednn(call: Callable[[], Tensor]) -> Tensor:
    """What `call` gives; all of its products are oneDNN's."""
    with Names() as names:
        out = call()
    assert names.seen & {"_linear_pointwise", "mkldnn_convolution"}
    assert not names.seen & {"linear", "mm", "addmm", "addmm_", "bmm", "matmul", "conv2d", "convolution"}
    return out


@pytest.mark.usefixtures("not_strict")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 24), (7, 24), (2, 3, 24), (1, 1, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_what_onednn_computes_is_the_product(shape: tuple[int, ...], biased: bool) -> None:
    x, weight_OI, bias_O = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if biased else None
    out = by_onednn(lambda: linear(x, weight_OI, bias_O))
    torch.testing.assert_close(out, F.linear(x, weight_OI, bias_O), rtol=1e-5, atol=1e-5)
    spread = torch.stack((x, x), dim=-1)[..., 0]  # the same numbers, each with a gap behind it
    assert torch.equal(by_onednn(lambda: linear(spread, weight_OI, bias_O)), out)


@pytest.mark.usefixtures("not_strict")
@pytest.mark.parametrize("num_rows", [1, 9])
def test_what_onednn_adds_is_the_product(num_rows: int) -> None:
    x_MI, weight_OI, before_MO = torch.randn(num_rows, 24), torch.randn(16, 24), torch.randn(num_rows, 40)
    out_MO = before_MO.clone()
    by_onednn(lambda: add_linear_(out_MO[:, 8:24], x_MI, weight_OI, 0.5) or out_MO)
    before_MO[:, 8:24] += 0.5 * F.linear(x_MI, weight_OI)
    torch.testing.assert_close(out_MO, before_MO, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("not_strict")
@pytest.mark.parametrize("layer", [Pointwise(16, 24), Convolution(16, 24), nn.Conv2d(16, 16, 3, stride=2)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_onednn_convolves_is_the_convolution(layer: nn.Conv2d, batch: int) -> None:
    x_BCHW = torch.randn(batch, 16, 5, 9)
    out = by_onednn(lambda: layer(x_BCHW) if layer.stride == (1, 1) else convolve(layer, x_BCHW))
    torch.testing.assert_close(out, nn.Conv2d.forward(layer, x_BCHW).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("not_strict")
def test_gradients_other_types_and_nothing_at_all_are_none_of_onednns() -> None:
    weight_OI = torch.randn(8, 4, requires_grad=True)
    linear(torch.randn(3, 4), weight_OI).sum().backward()
    assert weight_OI.grad is not None
    with torch.inference_mode():
        assert linear(torch.randn(3, 4).bfloat16(), weight_OI.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.randn(3, 4), weight_OI).dtype == torch.bfloat16
        assert linear(torch.empty(3, 4, device="meta"), torch.empty(8, 4, device="meta")).shape == (3, 8)
        assert linear(torch.empty(0, 4), weight_OI).shape == (0, 8)
