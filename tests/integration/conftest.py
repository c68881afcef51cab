from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer file with everything else beside it; weights are random, so its pictures are noise."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session", autouse=True)
def no_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have a server running; commands must not use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KLEINBILD_BASE_URL", raising=False)
        patch.setenv("KLEINBILD_HOME", str(tmp_path_factory.mktemp("home")))
        yield
