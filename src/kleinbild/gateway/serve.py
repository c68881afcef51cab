"""Running the server: uvicorn, with a graceful end on SIGTERM and settings read again on SIGHUP."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kleinbild.client import running
from kleinbild.core.errors import KleinbildError
from kleinbild.core.heap import give_back_freed_memory
from kleinbild.gateway.app import create_app
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Configuration, ConfigurationError, Settings

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server that listens everywhere is reached here
log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """`announce` is called once it listens, with its address; `reread` gives the settings of a SIGHUP."""

    def __init__(
        self,
        settings: Settings,
        announce: Callable[[str], None],
        reread: Callable[[], Configuration],
    ) -> None:
        self.settings, self.announce, self.reread = settings, announce, reread
        self.asgi: FastAPI = create_app(settings)
        super().__init__(
            uvicorn.Config(
                self.asgi,
                host=settings.server.host,
                port=settings.server.port,
                timeout_graceful_shutdown=max(1, round(settings.server.drain_seconds)),
                log_level="warning",
                server_header=False,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    @property
    def services(self) -> Services | None:
        return getattr(self.asgi.state, "services", None)

    def run(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        allow_many_connections()
        give_back_freed_memory()
        super().run(sockets)  # type: ignore[arg-type]

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.should_exit:
            return
        with suppress(ValueError, AttributeError):  # not in the main thread, not on this system
            signal.signal(signal.SIGHUP, lambda *_: self.reload())
        url = self.address()
        try:
            running.announce(url)
        except (KleinbildError, OSError) as error:
            log.warning("the command on this machine will not find the server: %s", error)
        self.announce(url)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        running.withdraw()
        await super().shutdown(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: no new work; streams end, running requests may until the drain's end."""
        if self.services is not None:
            self.services.draining = True
            self.services.hub.close()
        super().handle_exit(sig, frame)

    def address(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = WILDCARDS.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def reload(self) -> None:
        """Takes over what can change while the server runs: limits and times. All of it or, if anything is wrong, none."""
        try:
            apply(self.reread().settings, self.settings, self.services)
        except KleinbildError as error:
            log.warning("settings stay as they were: %s; %s", error.message, error.hint)
        else:
            log.warning("settings were read again")


def apply(new: Settings, old: Settings, services: Services | None) -> None:
    """Raises ConfigurationError if what needs a restart has changed; then nothing changes."""
    if services is None:
        return
    for section, fields in (("server", None), ("engine", None), ("storage", ("database_url", "blobs_url"))):
        before, after = getattr(old, section), getattr(new, section)
        for name in fields or type(before).model_fields:
            if getattr(before, name) != getattr(after, name):
                raise ConfigurationError(f"{section}.{name} cannot change while the server runs", "restart the server")
    services.settings = new
    services.media.seconds = new.storage.url_minutes * 60
    services.admission.set_limits(new.limits.max_queue, new.limits.callers)


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
