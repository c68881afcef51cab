"""From an order to a model that loads, or an adapter that is registered; and what is said of orders that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kleinbild.cli.main import run as command
from kleinbild.core.adapters import AdapterUse, read_use
from kleinbild.core.errors import OutputError, RequestError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.training import Finished, Started, from_line
from kleinbild.engine.runtime import Engine
from kleinbild.model.adapters import registry
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.weights import Model, load_model
from kleinbild.model.weights.settings import read_settings, write_settings
from kleinbild.train.distill.job import Order, distill
from kleinbild.train.distill.recipe import Recipe, read_recipe, recipe_for, with_settings, write_recipe
from kleinbild.train.distill.samples import samples_of_folder, samples_of_prompts

SHORT = (
    "num_updates=2", "batch_size=2", "num_substeps=1", "num_rollouts=2", "num_validated=1", "num_seeds=2",
)  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 64), "red").save(tmp_path / "red.png")
    file = tmp_path / "prompts.txt"
    file.write_text("a fox on blue\n\nchange the background to blue\tred.png\n", "utf-8")
    return file


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))


def test_a_base_becomes_a_model_of_four_steps(prompts: Path, tmp_path: Path) -> None:
    made = distill(Order("nano-base", tmp_path / "quick", prompts=prompts, settings=SHORT))
    assert made is not None
    result, report = made
    assert result.path == tmp_path / "quick" / "quick.safetensors"
    model = load_model(result.path)
    assert (model.settings.distilled, model.settings.default_steps, model.settings.default_guidance) == (True, 4, 1.0)
    assert model.settings.vocabulary == "nano"
    picture = Engine(result.path).generate(PictureRequest("a fox on blue", model="quick", seed=1))
    assert picture.record.steps == 4
    saved = json.loads((tmp_path / "quick" / "report.json").read_text("utf-8"))
    assert saved["after"]["distance"] == report.after.distance
    assert saved["recipe"]["guidance"] == 1.5, "the model's own"
    events = [from_line(line)[0] for line in (tmp_path / "quick" / "events.jsonl").read_text("utf-8").splitlines()]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert events[-1].sha256 == result.sha256 == registry.digest(result.path)
    again = distill(Order("nano-base", tmp_path / "quick", prompts=prompts, settings=SHORT))
    assert again is not None
    assert again[0].sha256 == result.sha256, "what is finished stays as it is"
    with pytest.raises(OutputError, match="num_updates 2 then, 3 now"):
        distill(Order("nano-base", tmp_path / "quick", prompts=prompts, settings=(*SHORT, "num_updates=3")))


def test_a_base_becomes_quick_by_an_adapter_that_is_registered(prompts: Path, tmp_path: Path, nano_base: Model) -> None:
    made = distill(
        Order("nano-base", tmp_path / "speed", prompts=prompts, product="adapter", settings=(*SHORT, "rank=2"))
    )
    assert made is not None
    found = registry.find("speed")
    assert found.card is not None
    assert (found.card.family, found.card.base, found.card.report["steps"]) == ("nano", "nano-base", 4)
    assert found.card.base_fingerprint == nano_base.fingerprint
    adapter = read_adapter(found.path, nano_base.spec.transformer).adapter
    assert len(adapter.entries) == 2 * 2 * 6 + 6 * 2
    onward = Order(
        "nano-base", tmp_path / "on", (AdapterUse("speed", 0.5),), prompts=prompts, settings=SHORT
    )  # a customised base
    again = distill(onward)
    assert again is not None
    assert not again[0].adapter
    assert json.loads((tmp_path / "on" / "report.json").read_text("utf-8"))["adapters"] == ["speed"]


def test_a_model_of_ones_own_brings_its_other_networks_along(prompts: Path, tmp_path: Path, nano_base: Model) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for kind in ("transformer", "text_encoder", "autoencoder"):
        state = getattr(nano_base, kind).state_dict()
        save_file({k: v.contiguous() for k, v in state.items() if "num_batches" not in k}, own / f"{kind}.safetensors")
    write_settings(own / "kleinbild.json", nano_base.settings)
    made = distill(Order(str(own / "transformer.safetensors"), tmp_path / "fast", prompts=prompts, settings=SHORT))
    assert made is not None
    assert {path.name for path in (tmp_path / "fast").glob("*.safetensors")} == {
        "fast.safetensors", "text_encoder.safetensors", "autoencoder.safetensors"
    }  # fmt: skip
    assert read_settings(tmp_path / "fast" / "kleinbild.json").distilled
    assert load_model(made[0].path).settings.text_layers == nano_base.settings.text_layers


def test_pictures_with_captions_are_real_ones(tmp_path: Path, nano_base: Model) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i, size in enumerate(((128, 128), (160, 96))):
        Image.new("RGB", size, "blue").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a fox on blue", "utf-8")
    samples = samples_of_folder(nano_base, folder)
    assert [sample.grid for sample in samples] == [(8, 8), (6, 10)]
    assert all(
        sample.target_NC is not None and sample.target_NC.shape == (sample.num_tokens, 128) for sample in samples
    )
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*.safetensors")}
    again = samples_of_folder(nano_base, folder)
    assert len(kept) == 4, "two pictures, their one caption, the empty one"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*.safetensors")} == kept
    assert all(torch.equal(one.context_LX, other.context_LX) for one, other in zip(samples, again, strict=True))


def test_prompts_may_name_pictures(prompts: Path, nano_base: Model) -> None:
    plain, edit = samples_of_prompts(nano_base, prompts)
    assert (plain.grid, plain.references, plain.target_NC) == ((8, 8), (), None)
    assert edit.grid == (4, 6)
    assert edit.references[0][0].shape == (24, 128)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": None}, "--data DIR and --prompts FILE"),
        ({"model": "nano"}, "a base model"),
        ({"settings": ("rang=3",)}, "known are product"),
        ({"settings": ("batch_size=many",)}, "for example 16"),
        ({"settings": ("batch_size=0",)}, "1 or more"),
        ({"settings": ("own_share=2",)}, "0 to 1"),
        ({"settings": ("loss=cube",)}, "huber or mse"),
        ({"product": "adapter", "folder": Path("No Name")}, "a-z"),
    ],
)
def test_what_cannot_be_is_told_before_it_begins(
    changes: dict[str, object], words: str, prompts: Path, tmp_path: Path
) -> None:
    order = {"model": "nano-base", "folder": tmp_path / "out", "prompts": prompts, **changes}
    with pytest.raises(RequestError) as caught:
        distill(Order(**order))  # type: ignore[arg-type]
    assert words in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path, nano_base: Model) -> None:
    recipe = with_settings(recipe_for(nano_base.spec, "adapter"), ["polish=true", "rate=3e-4", "loss=mse", "seed=7"])
    write_recipe(tmp_path, recipe)
    assert read_recipe(tmp_path) == recipe
    assert recipe.guidance == nano_base.settings.default_guidance
    assert recipe.first_polished == 1950
    assert Recipe(num_steps=2).window_weights == (1.0, 1.0)


def test_the_command_makes_a_model(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [part for setting in SHORT[1:] for part in ("--set", setting)]
    line = ["distill", "nano-base", "--prompts", str(prompts), "--steps", "1", *settings, "-o", str(tmp_path / "fast")]
    assert command(line) in (0, 3), "one update: the bounds may not be met"
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "fast" / "fast.safetensors")
    assert "1 updates from 0" in said.err


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("style", AdapterUse("style")),
        ("style:0.8", AdapterUse("style", 0.8)),
        ("c:/here/style.safetensors", AdapterUse("c:/here/style.safetensors")),
        ("here/style.safetensors:-1", AdapterUse("here/style.safetensors", -1.0)),
    ],
)
def test_an_adapter_is_named_with_its_strength(text: str, use: AdapterUse) -> None:
    assert read_use(text) == use
