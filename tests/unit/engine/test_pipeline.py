"""Requests to pictures: a picture in a pass with others is the picture made alone, with any number of threads."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kleinbild.core.errors import KleinbildError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.batcher import Batcher
from kleinbild.engine.decode import to_image
from kleinbild.engine.runtime import Engine
from kleinbild.model.weights import Model
from kleinbild.nano.specs import NANO
from tests import tiny


def reference(width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hole(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    """A mask that is transparent in `box`."""
    image = Image.new("RGBA", (width, height), "white")
    image.paste((0, 0, 0, 0), box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


A, B, C = reference(64, 64, 1), reference(96, 48, 2), reference(80, 130, 3)
HOLE = hole(64, 64, (20, 10, 40, 35))


def request(engine: Engine, seed: int, prompt: str = "a red cat", **fields: Any) -> PictureRequest:
    return PictureRequest(prompt, engine.name, seed=seed, **fields)


def mixed(engine: Engine) -> list[PictureRequest]:
    """Equal and different sizes, steps, prompts and numbers of references, some neighbours alike."""
    return [
        request(engine, 1),
        request(engine, 2),
        request(engine, 3, steps=1),
        request(engine, 4, size=Size(80, 32), steps=2),
        request(engine, 5, "two blue dogs", references=(A,), steps=3),
        request(engine, 6, references=(A,), steps=6),
        request(engine, 7, references=(A, B, C), size=Size(64, 64)),
        request(engine, 8, references=(A,), steps=6),
        request(engine, 9, size=Size(48, 48)),
        request(engine, 10, references=(A,), mask=HOLE),
        request(engine, 11, references=(C, A), canvas=Size(97, 140), place=(17, 3), steps=2),
        request(engine, 12, references=(C,)),
        request(engine, 13, references=(A,), cache_references=True),
        request(engine, 14, references=(A, C), mask=HOLE, cache_references=True),
    ]


@pytest.fixture(params=["engine", "base", "kv"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_picture_in_a_pass_is_the_picture_alone(any_engine: Engine) -> None:
    requests = mixed(any_engine)
    together = any_engine.generate_all(requests)
    for one, picture in zip(requests, together, strict=True):
        alone = any_engine.generate(one)
        assert picture.to_bytes() == alone.to_bytes(), one
    assert len({picture.pil.tobytes() for picture in together}) == len(requests)


def with_threads(model: Model, requests: list[PictureRequest], counts: tuple[int, ...]) -> list[list[bytes]]:
    """The pixels made with each number of threads."""
    made = []
    for count in counts:
        torch.set_num_threads(count)
        made.append([picture.pil.tobytes() for picture in Batcher(model).make(requests)])
    return made


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_does_not_matter(any_engine: Engine) -> None:
    requests = [request(any_engine, 1, size=Size(208, 112)), request(any_engine, 2, references=(C, B), steps=2)]
    first, *others = with_threads(any_engine.model, requests, (1, 2, 1, 2))
    assert all(other == first for other in others)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_does_not_matter_at_nanos_widths(engine: Engine) -> None:
    """The tiny model's own widths are too odd for the library's kernels from three threads on; nano's are not."""
    model = replace(
        engine.model,
        spec=NANO,
        transformer=tiny.transformer(spec=NANO.transformer),
        text_encoder=tiny.text_encoder(spec=NANO.text_encoder),
        autoencoder=tiny.autoencoder(spec=NANO.autoencoder),
    )
    requests = [request(engine, 1, size=Size(208, 112)), request(engine, 2, references=(C, B), steps=2)]
    first, *others = with_threads(model, requests, (1, 2, 3, 5, 16))
    assert all(other == first for other in others)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [(80, 80), (160, 80), (112, 112), (144, 144), (96, 48)])
@torch.inference_mode()
def test_no_bit_of_the_autoencoder_depends_on_threads(size: tuple[int, int]) -> None:
    """Sizes at which cells are left over when the work is shared out."""
    width, height = size
    network = tiny.autoencoder(spec=NANO.autoencoder)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, 3, height, width), generator=generator) * 2 - 1
    latent = torch.randn((1, 128, height // 16, width // 16), generator=generator)
    made = []
    for count in (1, 2, 4, 8, 16):
        torch.set_num_threads(count)
        made.append((network.encode(pixels), network.decode(latent)))
    assert all(torch.equal(made[0][i], others[i]) for others in made for i in range(2))


def test_every_part_of_a_request_matters(base: Engine) -> None:
    original = request(base, 1, references=(A,))
    changes: list[dict[str, Any]] = [
        {"prompt": "two blue dogs"},
        {"seed": 2},
        {"steps": 4},
        {"guidance": 2.0},
        {"guidance": 1.0},
        {"references": ()},
        {"references": (reference(64, 64, 4),)},
        {"references": (A, B)},
        {"references": (B, A), "size": Size(64, 64)},
        {"mask": HOLE},
        {"mask": hole(64, 64, (21, 10, 40, 35))},
        {"canvas": Size(64, 80)},
        {"canvas": Size(64, 80), "place": (0, 0)},
        {"cache_references": True},
    ]
    pictures = base.generate_all([original, *(replace(original, **change) for change in changes)])
    assert len({picture.pil.tobytes() for picture in pictures}) == len(pictures)


def test_a_model_that_caches_references_by_itself_need_not_be_asked(kv: Engine) -> None:
    asked, unasked = (kv.generate(request(kv, 1, references=(A, B), cache_references=cache)) for cache in (True, False))
    assert asked.to_bytes() == unasked.to_bytes()


def test_without_references_there_is_nothing_to_cache(base: Engine) -> None:
    asked, unasked = (base.generate(request(base, 1, cache_references=cache)) for cache in (True, False))
    assert asked.to_bytes() == unasked.to_bytes()


def test_that_references_were_cached_is_recorded_and_replayed(base: Engine) -> None:
    made = base.generate(request(base, 1, references=(A, B), cache_references=True))
    assert made.record.cache_references
    assert base.replay(made.record, (A, B)).to_bytes() == made.to_bytes()


def test_with_a_mask_all_else_is_the_input_bit_for_bit(any_engine: Engine) -> None:
    for file, size in ((A, (64, 64)), (C, (80, 130)), (reference(300, 270, 5), (300, 270))):
        mask = hole(*size, (20, 10, 41, 35))
        picture = any_engine.generate(request(any_engine, 1, references=(file, B), mask=mask))
        before, after = (np.asarray(image) for image in (Image.open(io.BytesIO(file)), picture.pil))
        assert after.shape == before.shape
        same = (before == after).all(axis=-1)
        assert same[np.asarray(Image.open(io.BytesIO(mask)))[..., 3] == 255].all()
        assert same[15:30, 25:36].mean() < 0.1


def test_on_a_canvas_the_input_stays_bit_for_bit(any_engine: Engine) -> None:
    picture = any_engine.generate(request(any_engine, 1, references=(C,), canvas=Size(97, 140), place=(17, 3)))
    assert picture.pil.size == (97, 140)
    assert picture.pil.crop((17, 3, 97, 133)).tobytes() == Image.open(io.BytesIO(C)).tobytes()
    assert len(picture.pil.crop((0, 0, 17, 140)).getcolors(10_000)) > 100


def test_a_picture_has_the_size_of_its_input_and_says_if_that_was_scaled(engine: Engine) -> None:
    for width, height in [(33, 32), (70, 131), (255, 256), (300, 40), (1000, 700), (9, 8)]:
        picture = engine.generate(request(engine, 1, references=(reference(width, height, 1),), steps=1))
        assert picture.pil.size == (width, height)
        assert picture.record.size == Size(width, height)
        assert bool(picture.notes) == (not engine.sizes.contains(Size(width, height)))
    assert engine.generate(request(engine, 1, size=Size(70, 70), steps=1)).notes == (
        "70x70 was rounded to 64x64: sides are multiples of 16",
    )


def test_steps_are_reported(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    requests = [request(engine, 1, steps=2), request(engine, 2, steps=4)]
    engine.generate_all(requests, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_picture_tells_how_it_was_made(base: Engine) -> None:
    asked = request(base, 3, references=(A, B), reference_names=("a.png", ""), size=Size(80, 48))
    picture = base.generate(asked)
    record = picture.record
    assert picture.pil.size == (80, 48)
    assert picture.pil.mode == "RGB"
    assert (record.prompt, record.seed, record.steps, record.guidance) == ("a red cat", 3, 3, 4.0)
    assert (record.model, record.fingerprint) == ("tiny", base.model.fingerprint)
    assert (record.size, record.dtype, record.device) == (Size(80, 48), "float32", "cpu")
    assert [reference.name for reference in record.references] == ["a.png", ""]
    assert list(picture.timings) == ["prepare", "text", "references", "denoise", "decode", "finish"]
    assert all(seconds >= 0 for seconds in picture.timings.values())


def test_nothing_asked_nothing_made(engine: Engine) -> None:
    assert engine.generate_all([]) == []


def test_one_wrong_request_stops_the_pass_before_it_starts(engine: Engine) -> None:
    seen: list[int] = []
    with pytest.raises(KleinbildError, match="not a seed"):
        engine.generate_all([request(engine, 1), request(engine, -1)], on_step=lambda done, _: seen.append(done))
    assert seen == []


def test_an_interruption_reaches_the_caller_and_the_engine_goes_on(engine: Engine) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(request(engine, 1), on_step=interrupt)
    engine.generate(request(engine, 1, steps=1))


def test_pixels_that_are_no_numbers_are_an_error_not_a_black_picture(engine: Engine) -> None:
    broken = copy.deepcopy(tiny.transformer())  # the original is every test's
    with torch.no_grad():
        broken.final_layer.linear.weight[0, 0] = torch.nan
    with pytest.raises(KleinbildError, match="not a picture") as caught:
        Batcher(replace(engine.model, transformer=broken)).make([request(engine, 1)])
    assert caught.value.hint
    with pytest.raises(KleinbildError):
        to_image(torch.full((1, 3, 16, 16), torch.inf))


def test_pixels_are_clipped_and_rounded() -> None:
    levels = torch.tensor([-9.0, -1.0, -0.996, 0.0, 0.5, 1.0, 9.0]).expand(1, 3, 1, 7)
    row = np.array(to_image(levels))[0, :, 0]
    assert row.tolist() == [0, 0, 1, 128, 191, 255, 255]
