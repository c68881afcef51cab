"""Every stage equals diffusers', within a relative error of 1e-5 in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import ReferenceMode, Segment, pack
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


@torch.no_grad()
def test_kept_references_are_those_of_a_joint_pass() -> None:
    """At the time at which they were kept, nothing but rows is missing. (Later they are out of date.)"""
    network, segments = tiny.transformer(), comparisons.SEGMENTS
    rows = [comparisons.inputs(segment, seed) for seed, segment in enumerate(segments)]
    stream, text = (torch.cat(parts) for parts in zip(*rows, strict=True))
    images = [own[: segment.num_image] for (own, _), segment in zip(rows, segments, strict=True)]
    times, caches = torch.tensor([1.0, 0.7, 0.4]), [ReferenceCache() for _ in segments]

    def run(mode: ReferenceMode, stream: Tensor) -> Tensor:
        packing = pack([replace(segment, mode=mode) for segment in segments], network.spec)
        velocity: Tensor = network(stream, text, times, packing, caches)
        return velocity

    joint, kept = run("joint", stream), run("keep", stream)
    assert torch.equal(kept, joint)
    of_images = [
        own[: len(image)] for own, image in zip(joint.split([len(own) for own, _ in rows]), images, strict=True)
    ]
    assert_close(run("stored", torch.cat(images)), torch.cat(of_images))


def test_text_context(tmp_path: Path) -> None:
    comparisons.compare_text_context(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (16, 16), (96, 32)])
def test_encoding(height: int, width: int) -> None:
    comparisons.compare_encoding(height, width)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 1), (6, 2)])
def test_decoding(rows: int, columns: int) -> None:
    comparisons.compare_decoding(rows, columns)


def test_decoding_by_a_decoder_of_its_own_width() -> None:
    comparisons.compare_decoding(spec=replace(tiny.SPEC.autoencoder, decoder_base_channels=4))


def test_schedule() -> None:
    comparisons.compare_schedule()
