"""Engines: what they run on, whom they serve, and pictures made again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from kleinbild.core.errors import KleinbildError, PictureError, RequestError
from kleinbild.core.precision import choose_precision
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.picture import read_record
from kleinbild.engine.runtime import Engine, choose_device
from tests.unit.engine.test_pipeline import HOLE, A, B, C, request


def test_an_engine_says_what_it_chose(engine: Engine) -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert engine.device.type == best
    assert engine.dtype == "float32"
    assert engine.load_seconds > 0
    assert str(engine.sizes).startswith("sides are multiples of 16 from 32 to 256")


def test_bfloat16_on_request(engine: Engine) -> None:
    half = Engine(engine.name, device="cpu", dtype="bfloat16")
    picture = half.generate(request(engine, 1))
    assert half.dtype == "bfloat16"
    assert picture.record.dtype == "bfloat16"
    assert picture.record.fingerprint == engine.model.fingerprint


@pytest.mark.parametrize("device", ["abc", "", "cuda:99", "xpu", "meta"])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(RequestError, match="device") as caught:
        choose_device(device)
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["abc", "", "float16", torch.float16, torch.int16])
def test_types_that_models_are_not_run_in(dtype: str | torch.dtype) -> None:
    with pytest.raises(RequestError, match="not a type") as caught:
        choose_precision(dtype)
    assert "float32, bfloat16, int8, fp8" in caught.value.hint


def test_a_request_for_another_model_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="for the model 'nano'"):
        engine.generate(PictureRequest("a red cat"))
    engine.generate(PictureRequest("a red cat", "tiny", steps=1))


def test_threads_wait_for_each_other(engine: Engine) -> None:
    requests = [request(engine, seed, steps=2) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        at_once = [picture.to_bytes() for picture in pool.map(engine.generate, requests)]
    assert at_once == [engine.generate(one).to_bytes() for one in requests]


def test_a_picture_is_made_again_from_its_file(base: Engine) -> None:
    asked = request(base, 5, references=(A, B), reference_names=("a.png", "b.png"), size=Size(64, 48), guidance=2.5)
    picture = base.generate_all([request(base, 1), asked])[1]
    for kind in ("png", "jpeg", "webp"):
        again = base.replay(read_record(picture.to_bytes(kind)), [A, B])
        assert again.pil.tobytes() == picture.pil.tobytes()
        assert again.record == picture.record


def test_edits_with_masks_canvases_and_odd_sizes_are_made_again(engine: Engine) -> None:
    for asked in (
        request(engine, 5, references=(A, B), mask=HOLE, mask_name="hole.png"),
        request(engine, 6, references=(C,), canvas=Size(97, 140)),
        request(engine, 7, references=(C,), size=Size(80, 130)),
    ):
        picture = engine.generate(asked)
        again = engine.replay(read_record(picture.to_bytes()), asked.references, asked.mask)
        assert again.pil.tobytes() == picture.pil.tobytes()
        assert again.record == picture.record


def test_a_picture_is_not_made_again_from_something_else(base: Engine) -> None:
    record = base.generate(request(base, 5, references=(A,))).record
    with pytest.raises(PictureError, match="not the file used then"):
        base.replay(record, [B])
    for change, words in [
        ({"fingerprint": "0123"}, "weights 0123 then"),
        ({"dtype": "bfloat16"}, "dtype bfloat16 then, float32 now"),
        ({"device": "abacus"}, "device abacus then"),
    ]:
        with pytest.raises(RequestError, match=words) as caught:
            base.replay(replace(record, **change), [A])
        assert caught.value.hint


def test_errors_are_kleinbilds_own(engine: Engine) -> None:
    with pytest.raises(KleinbildError):
        engine.generate(request(engine, 1, size=Size(0, 0)))
