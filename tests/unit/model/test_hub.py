"""Fetching a model, against a hub on this machine: what is fetched, resuming, checksums, and errors in words."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kleinbild.core.errors import MissingWeightsError, ModelError, NetworkError, OutputError, WeightsError
from kleinbild.model import catalog
from kleinbild.model.hub import pull
from tests.unit.model.hub_server import Hub, serve

ENTRY = catalog.find("klein-4b")
LARGE = "transformer/diffusion_pytorch_model.safetensors"
WANTED = {
    "model_index.json": b'{"_class_name": "Flux2KleinPipeline"}',
    "LICENSE.md": b"Apache-2.0",
    "transformer/config.json": b"{}",
    LARGE: random.Random(1).randbytes(1_000_000),
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"small",
    "text_encoder/config.json": b'{"model_type": "qwen3"}',
    "text_encoder/model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
    "text_encoder/model-1.safetensors": b"first",
    "text_encoder/model-2.safetensors": b"second",
    "tokenizer/tokenizer.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
}
UNWANTED = {
    "flux-2-klein-4b.safetensors": b"the transformer once more",
    "text_encoder/pytorch_model.bin": b"a pickle",
    "README.md": b"",
    "teaser.png": b"",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kleinbild.model.hub.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("kleinbild.model.hub.CHUNK", 100_000)  # so that a small file has parts
    with serve(Hub(str(ENTRY.repo), {**WANTED, **UNWANTED})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_verified_set_arrives_and_is_located(hub: Hub) -> None:
    heard: list[tuple[int, int]] = []
    folder = pull(ENTRY, progress=lambda here, total: heard.append((here, total)))
    assert files_in(folder) == WANTED
    assert catalog.locate(ENTRY) == folder
    total = sum(map(len, WANTED.values()))
    assert heard == sorted(heard)
    assert heard[-1] == (total, total)
    assert len(heard) > len(WANTED)  # the large file in steps


def test_what_is_here_is_not_fetched_again(hub: Hub) -> None:
    pull(ENTRY)
    hub.gets.clear()
    assert pull(ENTRY) == catalog.locate(ENTRY)
    assert hub.gets == []


def test_a_folder_may_be_named(hub: Hub, tmp_path: Path) -> None:
    assert files_in(pull(ENTRY, destination=tmp_path / "elsewhere")) == WANTED
    assert catalog.locate(ENTRY) is None


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub) -> None:
    def stop_at_half(here: int, total: int) -> None:
        if here > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(ENTRY, progress=stop_at_half)
    assert catalog.locate(ENTRY) is None
    hub.gets.clear()
    heard: list[int] = []
    assert files_in(pull(ENTRY, progress=lambda here, _: heard.append(here))) == WANTED
    starts = dict(hub.gets)
    assert starts[LARGE] >= 400_000
    assert "transformer/config.json" not in starts


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub) -> None:
    hub.break_after = 300_000
    assert files_in(pull(ENTRY)) == WANTED
    starts = [start for name, start in hub.gets if name == LARGE]
    assert len(starts) > 2
    assert starts == sorted(starts)


def test_a_connection_that_stays_broken_is_said(hub: Hub) -> None:
    hub.break_after = 0
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull(ENTRY)


def test_a_damaged_file_is_refused_and_fetched_again(hub: Hub) -> None:
    hub.damaged.add(LARGE)
    with pytest.raises(WeightsError, match="arrived damaged") as caught:
        pull(ENTRY)
    assert LARGE in caught.value.message
    assert catalog.locate(ENTRY) is None
    hub.damaged.clear()
    hub.gets.clear()
    assert files_in(pull(ENTRY)) == WANTED
    assert hub.gets[0] == (LARGE, 0)  # and none of those before it


def test_a_damaged_small_file_is_refused_too(hub: Hub) -> None:
    hub.damaged.add("text_encoder/config.json")
    with pytest.raises(WeightsError, match=r"text_encoder/config\.json arrived damaged"):
        pull(ENTRY)


def test_a_licence_that_must_be_accepted_is_named(hub: Hub) -> None:
    hub.repo, hub.gated = "black-forest-labs/FLUX.2-klein-9B", True
    with pytest.raises(MissingWeightsError, match="FLUX Non-Commercial License") as caught:
        pull(catalog.find("klein-9b"))
    assert "/black-forest-labs/FLUX.2-klein-9B" in caught.value.hint


def test_a_repository_without_a_model_is_refused(hub: Hub) -> None:
    del hub.files["model_index.json"]
    with pytest.raises(WeightsError, match="no model in the layout"):
        pull(ENTRY)


def test_offline_is_one_line_of_what_and_one_of_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        pull(ENTRY)
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint.startswith("check the connection")


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(ModelError, match="needs the hub's client") as caught:
        pull(ENTRY)
    assert "kleinbild[hub]" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_said(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        pull(ENTRY, destination=tmp_path / "file" / "model")
