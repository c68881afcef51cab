"""What is kept is what the engine computes, bit for bit, and is found again only where it is the same."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import Environment
from PIL import Image

from kleinbild.core.errors import MaskError, OutputError, PictureError, PromptError
from kleinbild.core.sizes import Size
from kleinbild.engine.encode import encode_picture
from kleinbild.engine.latents import to_tokens
from kleinbild.engine.prepare import size_range
from kleinbild.engine.references import open_picture, prepare_reference
from kleinbild.model.weights import Model, load_model
from kleinbild.train.data.buckets import Framing
from kleinbild.train.data.cache import prepare
from kleinbild.train.data.encoding import weights_of
from kleinbild.train.data.examples import Dataset, Example
from kleinbild.train.data.found import find_examples
from kleinbild.train.data.kept import Keys, is_whole
from kleinbild.train.data.pictures import look
from tests.unit.train.data.making import lay_out, picture


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("nano-base")


@pytest.fixture
def framing(model: Model) -> Framing:
    return Framing(size_range(model.settings, model.spec), (64,))


def files_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@torch.inference_mode()  # as the engine does
def engines_own(model: Model, image: Image.Image) -> torch.Tensor:
    return to_tokens(encode_picture(model, image))


def edits(root: Path) -> Dataset:
    for seed, name in enumerate(["a_start", "a_end", "b_start", "b_start2", "b_end", "b_mask"]):
        picture(root / f"{name}.png", (96, 64) if name.startswith("a") else (64, 64), seed)
    return find_examples(lay_out(root, {"a.txt": "a red apple", "b.txt": "a blue boat"}))


def test_samples_are_what_the_engine_makes(model: Model, framing: Framing, tmp_path: Path) -> None:
    dataset = edits(tmp_path / "d")
    encodings = prepare(model, dataset, replace(framing, sides=(64, 80)), folder=tmp_path / "c")
    assert [(each.example.name, each.grid) for each in encodings] == [
        ("a_end.png", (4, 6)),
        ("b_end.png", (4, 4)),
    ]
    whole, boat = encodings
    assert torch.equal(whole.target_NC, engines_own(model, open_picture((tmp_path / "d" / "a_end.png").read_bytes())))
    assert [(tuple(tokens.shape), grid) for tokens, grid in boat.references] == [((16, 128), (4, 4))] * 2
    second = open_picture((tmp_path / "d" / "b_start2.png").read_bytes())
    assert torch.equal(boat.references[1][0], engines_own(model, second))
    tokens = model.tokenizer("a blue boat")
    with torch.inference_mode():
        context = model.text_encoder(tokens.ids[None], tokens.mask[None])[0]
    assert torch.equal(boat.contexts[0], context)
    assert boat.weights_N1 is not None
    assert boat.weights_N1.shape == (16, 1)
    assert whole.weights_N1 is None
    assert not torch.equal(encodings.context(""), boat.contexts[0])


def test_free_references_are_what_the_engine_fits(model: Model, framing: Framing, tmp_path: Path) -> None:
    example = Example(
        picture(tmp_path / "t.png", (64, 64)), "x", (picture(tmp_path / "r.png", (150, 70), 1),), name="t"
    )
    encodings = prepare(model, Dataset((example,), ""), replace(framing, references="free"), folder=tmp_path / "c")
    fitted = prepare_reference(example.references[0].read_bytes(), "", framing.sizes)
    tokens, grid = encodings[0].references[0]
    assert grid == (fitted.height // 16, fitted.width // 16)
    assert torch.equal(tokens, engines_own(model, fitted))


def test_a_second_time_nothing_is_computed_and_everything_is_equal(
    model: Model, framing: Framing, tmp_path: Path
) -> None:
    dataset = edits(tmp_path / "d")
    done: list[str] = []
    first = prepare(model, dataset, framing, folder=tmp_path / "c", progress=lambda what, *_: done.append(what))
    assert set(done) == {"looking at pictures", "encoding captions", "encoding pictures"}
    before = files_in(tmp_path / "c")
    done.clear()
    second = prepare(model, dataset, framing, folder=tmp_path / "c", progress=lambda what, *_: done.append(what))
    assert set(done) == {"looking at pictures"}
    assert files_in(tmp_path / "c") == before
    anew = prepare(model, dataset, framing, folder=tmp_path / "other")
    for one, two, three in zip(first, second, anew, strict=True):
        assert torch.equal(one.target_NC, two.target_NC)
        assert torch.equal(one.target_NC, three.target_NC)
        assert torch.equal(one.contexts[0], three.contexts[0])


def test_each_caption_is_encoded(model: Model, framing: Framing, tmp_path: Path) -> None:
    example = Example(picture(tmp_path / "a.png", (64, 64)), "a fox", name="a", wordings=("an owl",))
    (one,) = prepare(model, Dataset((example,), ""), framing, folder=tmp_path / "c")
    fox, owl = one.contexts
    alone = prepare(
        model, Dataset((replace(example, caption="an owl", wordings=()),), ""), framing, folder=tmp_path / "c"
    )
    assert torch.equal(owl, alone[0].contexts[0])
    assert not torch.equal(fox, owl)


def test_the_networks_are_not_needed_afterwards(framing: Framing, tmp_path: Path) -> None:
    own = load_model("nano-base")
    encodings = prepare(own, edits(tmp_path / "d"), framing, folder=tmp_path / "c", texts=["a toy"])
    del own.text_encoder, own.autoencoder
    assert encodings[1].target_NC.isfinite().all()
    assert encodings.context("a toy").isfinite().all()
    assert not encodings[0].target_NC.is_inference(), "such tensors cannot be trained on"


def test_a_copy_of_a_data_set_shares_what_was_encoded(model: Model, framing: Framing, tmp_path: Path) -> None:
    prepare(model, edits(tmp_path / "d"), framing, folder=tmp_path / "c")
    before = files_in(tmp_path / "c")
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    prepare(model, find_examples(tmp_path / "copy"), framing, folder=tmp_path / "c")
    assert files_in(tmp_path / "c") == before


def keys_of(model: Model) -> tuple[str, str]:
    tokens, keys = model.tokenizer("a fox"), Keys.of(model)
    return keys.of_picture("0" * 64, Size(64, 64), None), keys.of_caption(tokens.ids.tolist(), tokens.mask.tolist())


def changed(model: Model, **changes: object) -> Model:
    other = copy.copy(model)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def nudged(network: torch.nn.Module) -> torch.nn.Module:
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 0.01
    return other


def models(model: Model) -> Iterator[tuple[str, Model, bool, bool]]:
    """Each with what is other in it, and whether pictures and captions come out otherwise."""
    text = model.spec.text_encoder
    yield "autoencoder", changed(model, autoencoder=nudged(model.autoencoder)), True, False
    yield "text encoder", changed(model, text_encoder=nudged(model.text_encoder)), False, True
    layers = replace(text, layers=tuple(layer - 1 if layer > 1 else layer for layer in text.layers))
    yield "layers", changed(model, spec=replace(model.spec, text_encoder=layers)), False, True
    shorter = copy.copy(model.tokenizer)
    shorter.max_tokens -= 1
    yield "max tokens", changed(model, tokenizer=shorter), False, True
    template = copy.copy(model.tokenizer)
    template._template = Environment().from_string("{{ messages[0].content }}")
    yield "template", changed(model, tokenizer=template), False, True
    yield "dtype", changed(model, precision="bfloat16"), True, True
    yield "precision", changed(model, precision="int8"), True, True
    yield "transformer", changed(model, transformer=nudged(model.transformer)), False, False


@pytest.mark.parametrize("index", range(8))
def test_keys_change_with_all_that_counts(model: Model, index: int) -> None:
    what, other, pictures, captions = list(models(model))[index]
    (picture_key, caption_key), (other_picture, other_caption) = keys_of(model), keys_of(other)
    assert (picture_key != other_picture) == pictures, what
    assert (caption_key != other_caption) == captions, what


def test_keys_change_with_content_size_and_crop(model: Model) -> None:
    keys = Keys.of(model)
    all_keys = {
        keys.of_picture("0" * 64, Size(64, 64), (0.0, 0.0, 64.0, 64.0)),
        keys.of_picture("1" * 64, Size(64, 64), (0.0, 0.0, 64.0, 64.0)),
        keys.of_picture("0" * 64, Size(64, 80), (0.0, 0.0, 64.0, 64.0)),
        keys.of_picture("0" * 64, Size(64, 64), (1.0, 0.0, 64.0, 64.0)),
        keys.of_picture("0" * 64, Size(64, 64), None),
    }
    assert len(all_keys) == 5


def test_a_damaged_file_is_made_anew(model: Model, framing: Framing, tmp_path: Path) -> None:
    dataset = edits(tmp_path / "d")
    encodings = prepare(model, dataset, framing, folder=tmp_path / "c")
    target = encodings.entries[0].target
    whole = target.read_bytes()
    target.write_bytes(whole[:-8])
    assert not is_whole(target)
    with pytest.raises(OutputError, match="gone or damaged"):
        encodings[0]
    prepare(model, dataset, framing, folder=tmp_path / "c")
    assert target.read_bytes() == whole


def test_little_stays_in_memory(model: Model, framing: Framing, tmp_path: Path) -> None:
    encodings = prepare(model, edits(tmp_path / "d"), framing, folder=tmp_path / "c")
    few = type(encodings)(encodings.entries, {}, (), kept_bytes=20_000)
    for sample in few:
        assert sample.target_NC.isfinite().all()
    assert few._kept.counters.num_bytes <= 20_000


def test_all_broken_pictures_are_named_before_anything_is_encoded(
    model: Model, framing: Framing, tmp_path: Path
) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "a", "b.png": b"no", "b.txt": "b", "c.png": None, "c.txt": "c"})
    cut = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(PictureError) as caught:
        prepare(model, find_examples(tmp_path), framing, folder=tmp_path / "c")
    assert "2 pictures cannot be used" in caught.value.message
    assert "b.png is not a picture" in caught.value.message
    assert "c.png is damaged" in caught.value.message
    assert not (tmp_path / "c" / "latents").exists()


def test_captions_too_long_name_their_picture(model: Model, framing: Framing, tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.png": None, "a.txt": "apple " * 600})
    with pytest.raises(PromptError, match=r"a\.png: its caption takes"):
        prepare(model, find_examples(tmp_path), framing, folder=tmp_path / "c")


def test_pictures_of_every_kind_are_read_as_the_engine_reads_them(
    model: Model, framing: Framing, tmp_path: Path
) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    image = Image.fromarray(colours)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(colours[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.putalpha(Image.fromarray(colours[:, :, 0]))
    image.save(tmp_path / "clear.png")
    dataset = find_examples(tmp_path, root_caption="x")
    encodings = prepare(model, dataset, replace(framing, sides=(78,)), folder=tmp_path / "c")
    assert {each.example.name: each.grid for each in encodings}["turned.jpg"] == (6, 4)
    for sample in encodings:
        upright = open_picture(sample.example.target.read_bytes())
        assert torch.equal(sample.target_NC, engines_own(model, upright)), sample.example.name
    assert encodings.notes == ("1 picture partly transparent, put on white: clear.png",)


def test_masks_weigh_tokens() -> None:
    mask = Image.new("L", (64, 32))
    mask.paste(255, (16, 0, 40, 16))
    assert weights_of(mask, (2, 4)).reshape(2, 4).tolist() == [[0, 1, 0.5, 0], [0, 0, 0, 0]]


def test_alpha_is_a_mask_only_if_told(model: Model, framing: Framing, tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), "red")
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    dataset = find_examples(tmp_path, root_caption="x")
    plain = prepare(model, dataset, framing, folder=tmp_path / "c")
    assert plain[0].weights_N1 is None
    told = prepare(model, dataset, replace(framing, alpha_masks=True), folder=tmp_path / "c")
    assert told[0].weights_N1 is not None
    assert told[0].weights_N1.reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 4


def test_a_mask_of_another_shape_is_an_error(model: Model, framing: Framing, tmp_path: Path) -> None:
    example = Example(picture(tmp_path / "a.png", (64, 64)), "x", mask=picture(tmp_path / "m.png", (64, 32)), name="a")
    with pytest.raises(MaskError, match="the mask of a is 64x32, its picture 64x64"):
        prepare(model, Dataset((example,), ""), framing, folder=tmp_path / "c")


def test_what_was_seen_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, memory = picture(tmp_path / "a.png"), tmp_path / "m.json"
    first = look([path], memory=memory).seen[path]
    kept = json.loads(memory.read_text())
    next(iter(kept["pictures"].values()))["thumb"] = "from memory"
    memory.write_text(json.dumps(kept))
    assert look([path], memory=memory).seen[path].thumb == "from memory"
    picture(path, seed=5)
    assert look([path], memory=memory).seen[path].sha256 != first.sha256
    memory.write_text("{")
    assert look([path], memory=memory).seen[path].width == 32
