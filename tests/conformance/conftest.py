from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server import Server, keyed_server, server

__all__ = ["keyed_server", "server"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Iterator[Any]:
    """A test that fails shows what the servers that it used have logged."""
    report = yield
    if report.failed:
        for name, used in item.funcargs.items():
            if isinstance(used, Server):
                report.sections.append((f"log of {name}", used.log))
    return report
