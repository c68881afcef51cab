"""Engines with tiny random models: distilled, base (guidance) and kv (references cached)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kleinbild.engine.runtime import Engine
from tests import tiny


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tiny.write_model(tmp_path_factory.mktemp("distilled")))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    settings = replace(tiny.SETTINGS, distilled=False, default_guidance=4.0, default_steps=3)
    return Engine(tiny.write_model(tmp_path_factory.mktemp("base"), settings=settings))


@pytest.fixture(scope="session")
def kv(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(
        tiny.write_model(tmp_path_factory.mktemp("kv"), settings=replace(tiny.SETTINGS, reference_caching=True))
    )
