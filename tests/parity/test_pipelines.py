"""Whole pictures equal diffusers': its own pipelines, loaded from our export, from the noise of the same seed.

Random weights in float32, non-square sizes. Our side makes all requests of a test in one packed pass; diffusers makes
them one by one. Latents and pixels agree within a relative error of 1e-4.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from PIL import Image

from kleinbild.core.errors import MissingWeightsError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.caches import Caches
from kleinbild.engine.decode import decode, to_image
from kleinbild.engine.denoise import step
from kleinbild.engine.encode import encode_prompt, encode_references
from kleinbild.engine.latents import start
from kleinbild.engine.prepare import prepare
from kleinbild.engine.references import fit
from kleinbild.model.weights import Model, Settings, load_model
from tests import tiny
from tests.parity import reference
from tests.parity.reference import assert_close

PROMPT = "a red cat on a beach"
LIMIT = 1e-4


@dataclass(frozen=True)
class Pair:
    """Our model and diffusers' pipeline with the same weights."""

    model: Model
    pipe: Any


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    fine = rng.integers(-40, 40, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


SIZES_OF_REFERENCES = ((96, 64), (70, 131), (64, 80))
REFERENCES = tuple(noise_picture(*size, seed=i) for i, size in enumerate(SIZES_OF_REFERENCES))
Factory = Callable[..., Pair]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    made: dict[Settings, Pair] = {}

    def make(**changes: Any) -> Pair:
        settings = replace(tiny.SETTINGS, **changes)
        if settings not in made:
            folder = tmp_path_factory.mktemp("pair")
            path = tiny.write_model(folder / "ours", settings=settings)
            made[settings] = Pair(load_model(path), reference.pipeline(path, folder / "theirs"))
        return made[settings]

    return make


def request(pair: Pair, seed: int, pictures: Sequence[Image.Image] = (), **fields: Any) -> PictureRequest:
    return PictureRequest(PROMPT, pair.model.name, seed=seed, references=tuple(map(encoded, pictures)), **fields)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@torch.inference_mode()
def ours(pair: Pair, requests: Sequence[PictureRequest]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Final latents, as the pipeline gives them out (no longer normalised), and pixels from 0 to 1."""
    model = pair.model
    prepared = [prepare(one, model) for one in requests]
    caches = Caches.of(model)
    sequences = [
        start(model, one, encode_prompt(model, caches, one), encode_references(model, caches, one)) for one in prepared
    ]
    while under_way := [sequence for sequence in sequences if not sequence.finished]:
        step(model, caches, under_way)
    ae = model.autoencoder
    packed = [one.grid * ae._std() + ae._mean() for one in sequences]
    latents = [torch.nn.functional.pixel_shuffle(one, 2) for one in packed]
    pixels = [(decode(model, one) / 2 + 0.5).clamp(0, 1) for one in sequences]
    return list(zip(latents, pixels, strict=True))


def theirs(pair: Pair, one: PictureRequest, output_type: str) -> Any:
    settings = pair.model.settings
    images = [Image.open(io.BytesIO(file)) for file in one.references] or None
    size = one.size or Size(None, None)
    arguments = {
        "image": images,
        "prompt": one.prompt,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": one.steps or settings.default_steps,
        "generator": torch.Generator("cpu").manual_seed(one.seed),
        "max_sequence_length": settings.max_text_tokens,
        "text_encoder_out_layers": settings.text_layers,
        "output_type": output_type,
    }
    if not isinstance(pair.pipe, Flux2KleinKVPipeline):
        arguments["guidance_scale"] = one.guidance or settings.default_guidance
    return pair.pipe(**arguments).images


def compare(pair: Pair, requests: Sequence[PictureRequest]) -> None:
    for one, (latents, pixels) in zip(requests, ours(pair, requests), strict=True):
        assert_close(latents, theirs(pair, one, "latent"), LIMIT)
        assert_close(pixels, torch.from_numpy(theirs(pair, one, "np")).permute(0, 3, 1, 2), LIMIT)
        assert share_that_differs(to_image(pixels * 2 - 1), theirs(pair, one, "pil")[0]) == 0


def share_that_differs(a: Image.Image, b: Image.Image) -> float:
    """The share of pixels of which a channel differs by more than 2 of 255."""
    assert a.size == b.size
    apart = np.abs(np.asarray(a).astype(int) - np.asarray(b)).max(axis=-1) > 2
    return float(apart.mean())


def test_text_to_image(pair: Factory) -> None:
    both = pair()
    assert isinstance(both.pipe, Flux2KleinPipeline)
    compare(both, [request(both, 1, size=Size(48, 80)), request(both, 2**40, size=Size(96, 32), steps=7)])


def test_one_reference(pair: Factory) -> None:
    both = pair()
    compare(both, [request(both, 3, REFERENCES[:1], size=Size(48, 64))])


def test_the_size_of_the_first_reference(pair: Factory) -> None:
    """Where it is one that the model makes; of others the pipeline cuts a part off, and we don't."""
    both = pair()
    compare(both, [request(both, 4, REFERENCES[:1])])


def test_three_references_of_different_sizes(pair: Factory) -> None:
    both = pair()
    compare(both, [request(both, 5, REFERENCES, size=Size(80, 48))])


def test_guidance_of_a_base_model(pair: Factory) -> None:
    both = pair(distilled=False, default_guidance=4.0)
    compare(
        both,
        [
            request(both, 6, size=Size(48, 80)),
            request(both, 7, REFERENCES[:2], size=Size(64, 32), guidance=2.5, steps=3),
            request(both, 8, size=Size(32, 64), guidance=1.0),
        ],
    )


def test_cached_references(pair: Factory) -> None:
    both = pair(reference_caching=True)
    assert isinstance(both.pipe, Flux2KleinKVPipeline)
    compare(
        both,
        [
            request(both, 9, REFERENCES[:1], size=Size(48, 80)),
            request(both, 10, REFERENCES, size=Size(48, 80), steps=2),
            request(both, 11, size=Size(48, 80)),
            request(both, 12, REFERENCES[:1], size=Size(48, 80), steps=6),
        ],
    )


def test_everything_in_one_pass(pair: Factory) -> None:
    both = pair()
    compare(
        both,
        [
            request(both, 13, size=Size(48, 80)),
            request(both, 14, REFERENCES[:1], size=Size(48, 80), steps=2),
            request(both, 15, REFERENCES, size=Size(32, 32), steps=6),
        ],
    )


@pytest.mark.parametrize("size", [(1500, 1100), (1024, 1024), (70, 131), (64, 512), (2000, 600), (1031, 1030)])
def test_references_are_cut_to_the_same_pixels(pair: Factory, size: tuple[int, int]) -> None:
    """The pipeline's own steps: shrink to 1024² pixels, cut to multiples of 16 around the middle, scale to [-1, 1]."""
    processor = pair().pipe.image_processor
    image = noise_picture(*size, seed=9)
    shrunk = processor._resize_if_exceeds_area(image, 1024 * 1024)
    width, height = (side // 16 * 16 for side in shrunk.size)
    expected = processor.preprocess(shrunk, height=height, width=width, resize_mode="crop")
    klein = Settings()
    fitted = fit(image, "it", SizeRange(klein.min_side, klein.max_side, klein.max_pixels, 16))
    ours = torch.from_numpy(np.array(fitted)).float() / 255.0 * 2.0 - 1.0
    assert torch.equal(ours, expected[0].permute(1, 2, 0))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    def make(name: str) -> Pair:
        try:
            model = load_model(name)
        except MissingWeightsError:
            pytest.skip(f"the weights of {name} are not packaged")
        return Pair(model, reference.pipeline(name, tmp_path_factory.mktemp(name) / "theirs"))

    return make


@pytest.mark.parametrize("name", ["nano", "nano-base"])
def test_the_real_pipeline_makes_nanos_picture(nano: Factory, name: str, tmp_path: Path) -> None:
    both = nano(name)
    side = both.model.settings.default_size
    scene = next(iter(ours(both, [replace(request(both, 1, steps=4), prompt="a fox in the middle, mint background")])))[
        1
    ]
    shown = to_image(scene * 2 - 1)
    assert shown.size == (side, side)
    requests = [
        replace(request(both, 1, size=Size(side, side), steps=4), prompt="a fox in the middle, mint background"),
        replace(request(both, 2, [shown], steps=4), prompt="change the background to pink"),
        replace(
            request(both, 3, [shown, shown.rotate(180)], steps=4),
            prompt="the object of image 1 on the background of image 2",
        ),
    ]
    for one, (_, pixels) in zip(requests, ours(both, requests), strict=True):
        assert share_that_differs(to_image(pixels * 2 - 1), theirs(both, one, "pil")[0]) <= 0.005
