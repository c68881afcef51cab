from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer file with everything else beside it; weights are random, so its pictures are noise."""
    return write_model(tmp_path_factory.mktemp("model"))
