"""The catalog: names, licences, and where weights are found on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kleinbild.core.errors import UnknownModelError
from kleinbild.model import catalog

KLEIN = catalog.find("klein-4b")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lay_out(folder: Path, *, leave_out: str = "") -> Path:
    names = ("model_index.json", "tokenizer/tokenizer.json", "text_encoder/model-1.safetensors")
    for name in (*names, "vae/model.safetensors", "transformer/model.safetensors", "text_encoder/model-2.safetensors"):
        if name != leave_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(index)
    return folder


def test_names_licences_and_places() -> None:
    by_name = {entry.name: entry for entry in catalog.entries()}
    assert list(by_name) == [
        "nano", "nano-base", "klein-4b", "klein-base-4b", "klein-9b", "klein-base-9b", "klein-9b-kv",
    ]  # fmt: skip
    assert [name for name, entry in by_name.items() if entry.packaged] == ["nano", "nano-base"]
    assert {entry.licence for entry in by_name.values() if "9b" not in entry.name} == {"Apache-2.0"}
    assert {entry.licence for entry in by_name.values() if "9b" in entry.name} == {"FLUX Non-Commercial License"}
    assert by_name["klein-base-9b"].repo == "black-forest-labs/FLUX.2-klein-base-9B"
    assert by_name["klein-9b-kv"].variant == "kv"


@pytest.mark.parametrize("entry", [entry for entry in catalog.entries() if entry.repo], ids=lambda entry: entry.name)
def test_sizes_are_two_bytes_a_parameter(entry: catalog.Entry) -> None:
    assert entry.size_bytes is not None
    assert entry.num_parameters is not None
    assert entry.size_bytes == pytest.approx(2 * entry.num_parameters, rel=0.02)


def test_case_does_not_matter() -> None:
    assert catalog.find("Klein-4B") is KLEIN


def test_an_unknown_name_lists_the_known_and_guesses() -> None:
    with pytest.raises(UnknownModelError) as caught:
        catalog.find("klien-4b")
    assert "nano, nano-base, klein-4b" in caught.value.message
    assert "did you mean klein-4b?" in caught.value.hint


def test_nothing_is_located_in_an_empty_home(home: Path) -> None:
    assert catalog.locate(KLEIN) is None
    assert catalog.places(KLEIN) == (home / "home" / "models" / "klein-4b",)


def test_the_models_folder_comes_first(home: Path) -> None:
    snapshot = home / "cache" / "models--black-forest-labs--FLUX.2-klein-4B" / "snapshots" / "abc"
    lay_out(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert catalog.locate(KLEIN) == snapshot
    own = lay_out(home / "home" / "models" / "klein-4b")
    assert catalog.locate(KLEIN) == own


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "tokenizer/tokenizer.json", "vae/model.safetensors", "text_encoder/model-2.safetensors"],
)
def test_a_folder_that_lacks_a_file_is_not_located(home: Path, name: str) -> None:
    lay_out(home / "home" / "models" / "klein-4b", leave_out=name)
    assert catalog.locate(KLEIN) is None


def test_the_catalog_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'safetensors', 'numpy', 'huggingface_hub'}"
    code = f"import sys, kleinbild.model.catalog, kleinbild.model.hub; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
