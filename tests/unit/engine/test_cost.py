"""The model of what a request costs holds against what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from kleinbild.core.messages import Terms
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine import cost
from kleinbild.engine.batcher import Batcher, Collector, Job
from kleinbild.engine.decode import decode
from kleinbild.engine.denoise import step
from kleinbild.engine.pipeline import begin
from kleinbild.engine.runtime import Engine
from tests.unit.engine.test_pipeline import A, B

KERNELS = {  # torch's counter does not know its own for the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * prod(x) * weight[0],
}
SIZES = [Size(128, 128), Size(256, 128)]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are alive, as far as torch made them while it watched."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@contextmanager
def begun(batcher: Batcher, **fields: Any) -> Iterator[Job]:
    request = PictureRequest("a red cat", batcher.model.name, seed=1, **fields)
    job = batcher.job("a", request, Terms(), Collector())
    with torch.inference_mode():
        job.sequence = begin(batcher.model, batcher.caches, job.prepared, job.watch)
        yield job


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("references", [(), (A,), (A, B)], ids=len)
def test_arithmetic_is_that_of_the_matrix_products(engine: Engine, size: Size, references: tuple[bytes, ...]) -> None:
    batcher = Batcher(engine.model)
    with begun(batcher, size=size, references=references) as job:
        batcher.caches.modulator([job.running.time])  # counted once for all, not by step
        expected = cost.step_flops(engine.model.spec.transformer, job.running.segment)
        with FlopCounterMode(display=False, custom_mapping=KERNELS) as counted:
            step(engine.model, batcher.caches, [job.running])
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("references", [(), (A, B)], ids=len)
def test_memory_is_enough_and_not_far_too_much(base: Engine, size: Size, references: tuple[bytes, ...]) -> None:
    batcher = Batcher(base.model)
    with begun(batcher, size=size, references=references) as job:
        with LiveBytes() as in_step:
            step(base.model, batcher.caches, [job.running])
        with LiveBytes() as in_decode:
            decode(base.model, job.running)
    assert 0.3 * job.need.step <= in_step.peak <= job.need.step
    assert 0.3 * job.need.decode <= in_decode.peak <= job.need.decode
