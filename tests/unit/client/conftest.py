from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kleinbild.client import retrying
from kleinbild.client.sync import Client
from tests.unit.client.blocking import blocking
from tests.unit.client.contract import Contract, contract


@pytest.fixture
def server() -> Iterator[Contract]:
    with contract() as running:
        yield running


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("KLEINBILD_BASE_URL", "KLEINBILD_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.02)


@pytest.fixture(params=["blocking", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of either kind; both have one surface."""
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Any:
            if request.param == "async":
                return stack.enter_context(blocking(*arguments, **options))
            return stack.enter_context(Client(*arguments, **options))

        yield make


@pytest.fixture
def client(connect: Callable[..., Any], server: Contract) -> Any:
    return connect(server.url)
