"""What is kept from request to request: it is bounded, and a hit is what would have been computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kleinbild.engine import caches as caching
from kleinbild.engine.caches import Layouts, Modulator, TensorCache
from kleinbild.model.packing import Segment
from tests import tiny


def ones(count: int) -> Tensor:
    return torch.ones(count)  # four bytes each


def test_a_hit_computes_nothing() -> None:
    cache = TensorCache(100)
    first = cache.get("a", lambda: ones(5))
    assert cache.get("a", lambda: pytest.fail("computed twice")) is first
    assert (cache.counters.num_hits, cache.counters.num_misses, cache.counters.num_bytes) == (1, 1, 20)


def test_what_was_not_used_for_longest_goes() -> None:
    cache = TensorCache(100)
    for key in "abc":
        cache.get(key, lambda: ones(8))
    cache.get("a", lambda: ones(8))
    cache.get("d", lambda: ones(8))
    assert (cache.counters.num_bytes, cache.counters.num_evicted) == (96, 1)
    cache.get("a", lambda: pytest.fail("was used last but one"))
    cache.get("b", lambda: ones(8))
    assert cache.counters.num_misses == 5


def test_what_is_too_large_is_not_kept() -> None:
    cache = TensorCache(100)
    cache.get("a", lambda: ones(5))
    cache.get("large", lambda: ones(26))
    cache.get("a", lambda: pytest.fail("was driven out"))
    assert cache.counters.num_bytes == 20


@torch.inference_mode()
def test_modulations_are_those_of_the_times() -> None:
    network = tiny.transformer()
    modulator = Modulator(network, torch.device("cpu"))
    kept, expected = modulator([1.0, 0.25, 1.0]), network.modulations(torch.tensor([1.0, 0.25, 1.0]))
    for ours, theirs in zip(kept.final, expected.final, strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(kept.single, expected.single, strict=True))


def test_each_time_and_layout_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, device = tiny.transformer(), torch.device("cpu")
    modulator, layouts = Modulator(network, device), Layouts(network.spec, device)
    one, other = Segment(4, (2, 2)), Segment(4, (2, 3))
    modulator([0.5]), layouts((one, other))
    monkeypatch.setattr(network, "modulations", lambda _times: pytest.fail("computed twice"))
    monkeypatch.setattr(caching, "pack", lambda *_, **__: pytest.fail("laid out twice"))
    modulator([0.5, 0.5]), layouts((one, other))
    with pytest.raises(pytest.fail.Exception):
        layouts((other, one))
