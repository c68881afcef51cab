"""Every stage equals diffusers', within a relative error of 1e-5 in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kleinbild.model.packing import Segment, pack
from tests import tiny
from tests.parity import comparisons
from tests.parity.reference import assert_close


@pytest.mark.parametrize("segment", comparisons.SEGMENTS, ids=["no reference", "one", "three of different sizes"])
def test_velocity_of_one_request(segment: Segment) -> None:
    comparisons.compare_velocity([segment], [0.7])


def test_velocity_of_mixed_requests_in_one_pass() -> None:
    comparisons.compare_velocity()


def test_velocity_of_equal_requests_in_one_pass() -> None:
    comparisons.compare_velocity([comparisons.ONE_REFERENCE] * 3, [1.0, 0.5, 0.2])


@torch.no_grad()
def test_a_request_in_a_batch_is_the_request_alone() -> None:
    network = tiny.transformer()
    segments = [*comparisons.SEGMENTS, comparisons.ONE_REFERENCE, comparisons.ONE_REFERENCE]
    times = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2])
    rows = [comparisons.inputs(segment, seed) for seed, segment in enumerate(segments)]
    stream, text = (torch.cat(parts) for parts in zip(*rows, strict=True))
    together = network(stream, text, times, pack(segments, network.spec)).split([len(own) for own, _ in rows])
    for i, (own_stream, own_text) in enumerate(rows):
        alone = network(own_stream, own_text, times[i : i + 1], pack([segments[i]], network.spec))
        assert_close(together[i], alone)


def test_reference_caching() -> None:
    comparisons.compare_reference_caching()


def test_reference_caching_of_one_request() -> None:
    comparisons.compare_reference_caching([comparisons.ONE_REFERENCE])


def test_reference_caching_of_equal_requests() -> None:
    comparisons.compare_reference_caching([comparisons.ONE_REFERENCE] * 2)


def test_reference_caching_of_requests_that_differ_in_their_references_alone() -> None:
    other = Segment(7, (4, 6), ((3, 3), (1, 2)))
    comparisons.compare_reference_caching([comparisons.ONE_REFERENCE, other, comparisons.ONE_REFERENCE])


def test_text_context(tmp_path: Path) -> None:
    comparisons.compare_text_context(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (16, 16), (96, 32)])
def test_encoding(height: int, width: int) -> None:
    comparisons.compare_encoding(height, width)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 1), (6, 2)])
def test_decoding(rows: int, columns: int) -> None:
    comparisons.compare_decoding(rows, columns)


def test_schedule() -> None:
    comparisons.compare_schedule()
