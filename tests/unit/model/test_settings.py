"""`kleinbild.json`: what it may hold, and that nothing in it is dropped silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kleinbild.core.errors import WeightsError
from kleinbild.model.weights import Settings
from kleinbild.model.weights.settings import official, read_settings, write_settings
from tests import tiny


def test_there_and_back(tmp_path: Path) -> None:
    write_settings(tmp_path / "kleinbild.json", tiny.SETTINGS)
    assert read_settings(tmp_path / "kleinbild.json") == tiny.SETTINGS


def test_what_is_not_said_is_official(tmp_path: Path) -> None:
    (tmp_path / "kleinbild.json").write_text('{"default_steps": 8, "default_guidance": 2}')
    assert read_settings(tmp_path / "kleinbild.json") == Settings(default_steps=8, default_guidance=2)


def test_official_variants() -> None:
    assert official("distilled") == Settings()
    assert (official("base").default_steps, official("base").default_guidance) == (50, 4.0)
    assert [official(variant).variant for variant in ("distilled", "base", "kv")] == ["distilled", "base", "kv"]


def test_an_unknown_key_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown colour; known are text_layers, max_text_tokens"):
        Settings.from_json({"colour": "red"})


@pytest.mark.parametrize(
    "values",
    [
        {"text_layers": []},
        {"text_layers": [1.5]},
        {"text_layers": 9},
        {"default_steps": "4"},
        {"default_steps": True},
        {"distilled": 1},
        {"default_guidance": None},
        {"vocabulary": 3},
    ],
)
def test_values_of_another_type(values: dict[str, object]) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"{name} cannot be"):
        Settings.from_json(values)


def test_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "kleinbild.json").write_text(json.dumps([1]))
    with pytest.raises(WeightsError, match=r"kleinbild\.json: not a table"):
        read_settings(tmp_path / "kleinbild.json")
