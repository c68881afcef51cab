"""`kleinbild.generate` and `kleinbild.edit`: pictures in two lines of Python, and an import that costs nothing."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kleinbild
from kleinbild import api
from kleinbild.core.errors import PictureError, PromptError, RequestError, SizeError, UnknownModelError
from kleinbild.core.requests import digest
from kleinbild.core.sizes import Size
from kleinbild.engine.picture import read_record
from tests.tiny import write_model

PROMPT = "a red cat on a beach"


@pytest.fixture
def model(tiny_model: Path) -> str:
    return str(tiny_model)


@pytest.fixture
def drawing() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def python(code: str, *arguments: str) -> Any:
    """What the code prints as JSON, in another process."""
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_a_picture_in_two_lines(model: str, tmp_path: Path) -> None:
    picture = kleinbild.generate(PROMPT, model=model)
    path = picture.save(tmp_path / "out.png")
    assert isinstance(picture, kleinbild.Picture)
    assert picture.pil.size == (64, 64)
    assert isinstance(picture.seed, int)
    assert picture.timings["denoise"] > 0
    assert picture._repr_png_() == path.read_bytes()


def test_offloading_changes_no_pixel_and_words_for_it_are_checked(model: str) -> None:
    plain, offloaded = (kleinbild.generate(PROMPT, model=model, seed=3, offload=way) for way in (None, "blocks"))
    assert plain.to_bytes() == offloaded.to_bytes()
    assert api.engine(model, offload="blocks").offload == "blocks"
    with pytest.raises(RequestError, match="not a way to offload"):
        kleinbild.generate(PROMPT, model=model, offload="all")  # type: ignore[arg-type]


def test_the_same_request_is_the_same_picture(model: str) -> None:
    pictures = [kleinbild.generate(PROMPT, model=model, seed=seed).to_bytes() for seed in (3, 3, 4)]
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("size", ["80x48", (80, 48), Size(80, 48)])
def test_a_size_is_text_or_numbers(model: str, size: Any) -> None:
    assert kleinbild.generate(PROMPT, model=model, size=size, steps=1).pil.size == (80, 48)


def test_an_aspect(model: str) -> None:
    assert kleinbild.generate(PROMPT, model=model, aspect="2:1", steps=1).pil.size == (96, 48)


def test_steps_are_taken(model: str) -> None:
    assert kleinbild.generate(PROMPT, model=model, steps=2).record.steps == 2


def test_a_picture_from_any_kind_of_picture(model: str, drawing: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "drawing.png"
    drawing.save(path)
    kinds = [path, str(path), path.read_bytes(), drawing, [drawing], (path,)]
    edits = [kleinbild.edit("remove the hat", kind, model=model, seed=1) for kind in kinds]
    assert {edit.pil.tobytes() for edit in edits} == {edits[0].pil.tobytes()}
    assert edits[0].pil.size == (80, 48)
    assert edits[0].record.references[0].name == "drawing.png"
    assert edits[3].record.references[0].name == ""
    assert kleinbild.edit("remove the hat", drawing.transpose(0), model=model, seed=1).pil != edits[0].pil


def test_a_picture_from_a_picture_made_here(model: str, tmp_path: Path) -> None:
    first = kleinbild.generate(PROMPT, model=model, seed=1, size="80x32")
    edits = [
        kleinbild.edit("remove the hat", given, model=model, seed=1)
        for given in (first, first.pil, first.save(tmp_path / "first.png"), first.save(tmp_path / "first.webp"))
    ]
    assert {edit.pil.tobytes() for edit in edits} == {edits[0].pil.tobytes()}
    assert edits[0].record.references[0].sha256 == edits[2].record.references[0].sha256  # saved as PNG: the same file


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_pillow_images_of_any_mode(model: str, drawing: Image.Image, mode: str) -> None:
    image = drawing.convert("I").convert("I;16") if mode == "I;16" else drawing.convert(mode)
    assert kleinbild.edit("remove the hat", image, model=model, steps=1).pil.size == (80, 48)


def test_pillow_images_stand_upright(model: str, drawing: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    drawing.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as turned:
        edits = [kleinbild.edit("remove the hat", image, model=model, seed=1) for image in (turned, drawing)]
    assert edits[0].pil == edits[1].pil


def test_several_pictures_count_in_their_order(model: str, drawing: Image.Image) -> None:
    other = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, two = (
        kleinbild.edit("image 1 on image 2", images, model=model, seed=1)
        for images in ([drawing, other], [other, drawing])
    )
    assert one.pil != two.pil
    assert len(one.record.references) == 2


def test_a_picture_is_made_again_from_its_file(model: str, drawing: Image.Image, tmp_path: Path) -> None:
    drawing.save(tmp_path / "drawing.png")
    made = kleinbild.edit("remove the hat", tmp_path / "drawing.png", model=model, steps=3).save(tmp_path / "made.webp")
    again = kleinbild.replay(made, tmp_path / "drawing.png", model=model)
    assert again.record == read_record(made)
    with Image.open(made) as image:
        assert image.convert("RGB").tobytes() == again.pil.tobytes()


def test_a_mask_is_any_kind_of_picture(model: str, drawing: Image.Image, tmp_path: Path) -> None:
    hole = Image.new("RGBA", drawing.size, "black")
    hole.paste((0, 0, 0, 0), (30, 10, 60, 40))
    hole.save(tmp_path / "hole.png")
    masks = (hole, tmp_path / "hole.png", (tmp_path / "hole.png").read_bytes())
    edits = [kleinbild.edit("remove the hat", drawing, mask=mask, model=model, seed=1) for mask in masks]
    assert {edit.pil.tobytes() for edit in edits} == {edits[0].pil.tobytes()}
    kept = np.asarray(hole)[..., 3] == 255
    assert (np.asarray(edits[0].pil)[kept] == np.asarray(drawing)[kept]).all()
    made = edits[1].save(tmp_path / "made.png")
    assert edits[1].record.mask is not None
    assert edits[1].record.mask.name == "hole.png"
    assert api.replay(made, drawing, mask=tmp_path / "hole.png", model=model).pil == edits[1].pil


def test_a_canvas_is_text_or_numbers(model: str, drawing: Image.Image) -> None:
    for canvas in ("100x64", (100, 64), Size(100, 64)):
        wide = kleinbild.edit("remove the hat", drawing, canvas=canvas, place=(20, 0), model=model, steps=1)
        assert wide.pil.size == (100, 64)
        assert wide.pil.crop((20, 0, 100, 48)).tobytes() == drawing.tobytes()
    with pytest.raises(RequestError, match="not a place"):
        kleinbild.edit("remove the hat", drawing, canvas=(100, 64), place=(0.5, 0), model=model)  # type: ignore[arg-type]


def test_cached_references_are_asked_for(model: str, drawing: Image.Image) -> None:
    exact, cached = (
        kleinbild.edit("remove the hat", drawing, cache_references=cache, model=model, seed=1)
        for cache in (False, True)
    )
    assert (exact.record.cache_references, cached.record.cache_references) == (False, True)
    assert exact.pil != cached.pil


def test_the_second_picture_reads_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    path = str(write_model(folder))
    first = kleinbild.generate(PROMPT, model=path, seed=1)
    shutil.rmtree(folder)
    second = kleinbild.generate(PROMPT, model=path, seed=1)
    third = kleinbild.edit("remove the hat", first, model=path, seed=1)
    assert first.pil == second.pil != third.pil


def test_engines_are_kept(model: str) -> None:
    assert api.engine(model) is api.engine(model)
    api.engine(model, dtype="bfloat16")
    api.engine(model, device="cpu")
    assert len(api._engines) == api.KEPT_ENGINES


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (PromptError, {"prompt": ""}),
        (UnknownModelError, {"model": "nanoo"}),
        (SizeError, {"size": "abc"}),
        (SizeError, {"size": "0x0"}),
        (SizeError, {"size": (64,)}),
        (SizeError, {"size": (64.0, 64.0)}),
        (SizeError, {"aspect": "3/2"}),
        (SizeError, {"aspect": "1:1", "size": "64x64"}),
    ],
)
def test_what_is_wrong_is_told(model: str, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        kleinbild.generate(**{"prompt": PROMPT, "model": model, **arguments})
    assert caught.value.hint


def test_references_that_are_not_there(model: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no such file"):
        kleinbild.edit(PROMPT, tmp_path / "missing.png", model=model)


def test_everything_public_is_there() -> None:
    assert all(hasattr(kleinbild, name) for name in kleinbild.__all__)
    assert set(kleinbild.__all__) <= set(dir(kleinbild))
    with pytest.raises(AttributeError, match="colour"):
        _ = kleinbild.colour


def test_the_import_takes_milliseconds_and_no_torch() -> None:
    code = """
import json, sys, time
begun = time.process_time()
import kleinbild
print(json.dumps([time.process_time() - begun, [name for name in ("torch", "numpy", "PIL") if name in sys.modules]]))
"""
    seconds, loaded = min(python(code) for _ in range(3))
    assert seconds < 0.1
    assert loaded == []


def test_what_is_wrong_is_told_before_torch_is_imported(model: str) -> None:
    code = """
import json, sys
import kleinbild
try:
    kleinbild.edit("a red cat", b"text", model=sys.argv[1])
except kleinbild.KleinbildError as error:
    print(json.dumps([error.message, "torch" in sys.modules]))
"""
    assert python(code, model) == ["reference 1 is not a picture in a known format", False]


def test_another_process_with_other_threads_makes_the_same_file(model: str, drawing: Image.Image) -> None:
    code = """
import hashlib, json, sys
import torch
torch.set_num_threads(1)
import kleinbild
files = [kleinbild.generate("a red cat on a beach", model=sys.argv[1], seed=5, size="112x208").to_bytes()]
files.append(kleinbild.edit("remove the hat", bytes.fromhex(sys.argv[2]), model=sys.argv[1], seed=6).to_bytes())
heavy = [name for name in ("transformers", "diffusers", "torch._dynamo", "sympy") if name in sys.modules]
print(json.dumps([[hashlib.sha256(file).hexdigest() for file in files], heavy]))
"""
    buffer = io.BytesIO()
    drawing.save(buffer, "PNG")
    here = [
        kleinbild.generate(PROMPT, model=model, seed=5, size="112x208"),
        kleinbild.edit("remove the hat", buffer.getvalue(), model=model, seed=6),
    ]
    digests, heavy = python(code, model, buffer.getvalue().hex())
    assert digests == [digest(picture.to_bytes()) for picture in here]
    assert heavy == []  # each would take longer to import than a picture takes to make
