"""A model that was trained whole is a model: opened by its path, made quick, and independent of how its base lay there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kleinbild.core.requests import PictureRequest
from kleinbild.core.training import Finished, TrainingEvent
from kleinbild.engine.runtime import Engine
from kleinbild.model import catalog
from kleinbild.model.weights import load_model
from kleinbild.train import worker
from kleinbild.train.distill.job import Order, distill
from kleinbild.train.loop import train
from kleinbild.train.processes import Processes
from tests.unit.train.made import pictures


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))


def picture(engine: Engine) -> bytes:
    made = engine.generate(PictureRequest("a fox on blue", model=engine.model.name, seed=1, steps=2))
    return made.pil.tobytes()


def trained(folder: Path, **recipe: object) -> Path:
    """A run of all weights; the file that it gives."""
    data = folder.with_name("data")
    if not data.exists():
        pictures(data, num=2)
    folder.mkdir()
    values = {
        "data": str(data), "method": "full", "steps": 2, "batch_size": 1, "learning_rate": 1e-3, "checkpoint_every": 1,
        **recipe,
    }  # fmt: skip
    (folder / "recipe.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items()), "utf-8")
    told: list[TrainingEvent] = []
    train(worker.prepare(folder, Processes(torch.device("cpu")), told.append, worker.Stop()))
    assert isinstance(told[-1], Finished)
    return folder / told[-1].path


def test_a_model_that_was_trained_whole_is_opened_by_its_path_and_made_quick(tmp_path: Path) -> None:
    file = trained(tmp_path / "foxes")
    assert file == tmp_path / "foxes" / "model" / "foxes.safetensors"
    base, usual = load_model("nano-base"), picture(Engine("nano-base"))
    made = []
    for path in (file, file.parent, tmp_path / "foxes" / "checkpoints" / "step-1.safetensors"):
        engine = Engine(path)
        assert engine.model.settings == base.settings, path
        made.append(picture(engine))
    ours, of_folder, earlier = made
    assert ours == of_folder != earlier
    assert usual not in (ours, earlier)

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox on blue\n", "utf-8")
    short = ("num_updates=1", "batch_size=1", "num_substeps=1", "num_rollouts=1", "num_validated=1", "num_seeds=2")
    quick = distill(Order(str(file.parent), tmp_path / "quick", prompts=prompts, settings=short))
    assert quick is not None
    assert load_model(quick[0].path).settings.distilled


def test_a_base_with_networks_of_its_own_hands_them_on(tmp_path: Path) -> None:
    entry = catalog.find("nano-base")
    packaged = catalog.locate(entry)
    assert packaged is not None
    own = tmp_path / "own"
    own.mkdir()
    for name in ("nano-base.safetensors", "nano-base.json", "text_encoder.safetensors", "autoencoder.safetensors"):
        shutil.copy(packaged.with_name(name), own / name)
    shutil.copytree(packaged.parent / "tokenizer", own / "tokenizer")
    file = trained(tmp_path / "run", model=str(own / "nano-base.safetensors"))
    shutil.rmtree(own)
    assert {path.name for path in file.parent.iterdir()} == {
        "run.safetensors", "kleinbild.json", "text_encoder.safetensors", "autoencoder.safetensors", "tokenizer"
    }  # fmt: skip
    assert len(picture(Engine(file.parent))) == 128 * 128 * 3
