"""Preparing: defaults follow from the model, and everything wrong is told before anything is computed."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from kleinbild.core.errors import PictureError, PromptError, RequestError, SizeError
from kleinbild.core.requests import MAX_SEED, PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.latents import noise
from kleinbild.engine.prepare import Prepared, check, prepare
from kleinbild.engine.runtime import Engine


def reference(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def prepared(engine: Engine, **fields: Any) -> Prepared:
    return prepare(PictureRequest(**{"prompt": "a red cat", "model": engine.name, **fields}), engine.model)


def test_what_is_left_open_follows_from_the_model(engine: Engine, base: Engine) -> None:
    one, other = prepared(engine), prepared(base)
    assert (one.size, one.steps, one.guidance, one.references) == (Size(64, 64), 4, 1.0, ())
    assert (other.steps, other.guidance) == (3, 4.0)


def test_a_seed_is_drawn(engine: Engine) -> None:
    seeds = {prepared(engine).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_what_is_given_is_taken(engine: Engine) -> None:
    one = prepared(engine, size=Size(96, 48), seed=MAX_SEED, steps=200, guidance=1)
    assert (one.size, one.seed, one.steps, one.guidance) == (Size(96, 48), MAX_SEED, 200, 1.0)
    assert prepared(engine, seed=0, steps=1).seed == 0


def test_a_picture_made_from_another_has_its_size(engine: Engine) -> None:
    files = (reference(100, 70), reference(100, 70))
    one = prepared(engine, references=files)
    assert (one.inputs.frame.size, one.size) == (Size(100, 70), Size(112, 80))
    assert [picture.size for picture in one.references] == [(112, 80), (96, 64)]
    other = prepared(engine, references=files, size=Size(32, 32))
    assert (other.inputs.frame.size, other.size) == (Size(32, 32), Size(32, 32))
    assert [picture.size for picture in other.references] == [(96, 64), (96, 64)]


def test_an_aspect_is_at_the_models_area(engine: Engine) -> None:
    assert prepared(engine, aspect=2.0).size == Size(96, 48)
    assert prepared(engine, aspect=0.5, references=(reference(64, 64),)).size == Size(48, 96)


WRONG = [
    (PromptError, "the prompt is empty", {"prompt": ""}),
    (PromptError, "the prompt is empty", {"prompt": " \n"}),
    (PromptError, "the prompt is a int", {"prompt": 3}),
    (PromptError, "not valid text", {"prompt": "a \udcff cat"}),
    (SizeError, "does not make 0x64", {"size": Size(0, 64)}),
    (SizeError, "does not make 31x64", {"size": Size(31, 64)}),
    (SizeError, "does not make -64x64", {"size": Size(-64, 64)}),
    (SizeError, "does not make 272x64", {"size": Size(272, 64)}),
    (SizeError, "too extreme", {"aspect": 9.0}),
    (SizeError, "too extreme", {"aspect": math.nan}),
    (SizeError, "both given", {"aspect": 1.0, "size": Size(64, 64)}),
    (RequestError, "-1 is not a seed", {"seed": -1}),
    (RequestError, "is not a seed", {"seed": MAX_SEED + 1}),
    (RequestError, "'abc' is not a seed", {"seed": "abc"}),
    (RequestError, "1.5 is not a seed", {"seed": 1.5}),
    (RequestError, "True is not a seed", {"seed": True}),
    (RequestError, "0 is not a number of steps", {"steps": 0}),
    (RequestError, "201 is not a number of steps", {"steps": 201}),
    (RequestError, "2.0 is not a number of steps", {"steps": 2.0}),
    (RequestError, "nan is not a guidance", {"guidance": math.nan}),
    (RequestError, "inf is not a guidance", {"guidance": math.inf}),
    (RequestError, "0.5 is not a guidance", {"guidance": 0.5}),
    (RequestError, "21 is not a guidance", {"guidance": 21}),
    (RequestError, "distilled: it works without guidance", {"guidance": 2.0}),
    (PictureError, "reference 1 is empty", {"references": (b"",)}),
    (
        PictureError,
        r"reference 2 \(b.png\) is not a picture",
        {"references": (reference(64, 64), b"text"), "reference_names": ("a.png", "b.png")},
    ),
]


@pytest.mark.parametrize(("error", "words", "fields"), WRONG)
def test_what_is_wrong_is_told_with_what_to_do(
    engine: Engine, error: type[RequestError], words: str, fields: dict[str, Any]
) -> None:
    request = PictureRequest(**{"prompt": "a red cat", "model": engine.name, **fields})
    for examine in (lambda: prepare(request, engine.model), lambda: check(request)):
        with pytest.raises(error, match=words) as caught:
            examine()
        assert type(caught.value) is error
        assert caught.value.hint


def test_a_prompt_over_the_limit_is_not_cut(engine: Engine) -> None:
    with pytest.raises(PromptError, match="the model reads at most 40"):
        prepared(engine, prompt="a red cat " * 40)


def test_the_check_without_the_model_passes_what_is_right(engine: Engine) -> None:
    check(
        PictureRequest("a red cat", engine.name, size=Size(32, 256), seed=1, steps=2, references=(reference(70, 70),))
    )


@pytest.mark.parametrize("seed", [0, 1, 2**32, MAX_SEED])
def test_a_seed_means_the_noise_that_torch_draws(engine: Engine, seed: int) -> None:
    expected = torch.randn((1, 128, 2, 5), generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(noise(engine.model, Size(80, 32), seed), expected)


def test_nanos_words_are_checked(engine: Engine) -> None:
    model = replace(engine.model, settings=replace(engine.model.settings, vocabulary="nano"))
    with pytest.raises(PromptError, match="nano does not know"):
        prepare(PictureRequest("a quixotic zeppelin", engine.name), model)
