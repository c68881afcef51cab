"""Running the server: uvicorn, with a graceful end on SIGTERM and settings read again on SIGHUP."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kleinbild.client import running
from kleinbild.core.errors import KleinbildError, RequestError
from kleinbild.core.heap import give_back_freed_memory
from kleinbild.gateway.app import create_app
from kleinbild.gateway.deployments import require_secrets
from kleinbild.gateway.lifespan import fetching, open_services
from kleinbild.gateway.opened import configured_callers, open_fleet, settle_budgets
from kleinbild.gateway.services import Services
from kleinbild.gateway.settings import Configuration, ConfigurationError, Settings

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server that listens everywhere is reached here
BACKLOG = 2048  # connections that wait to be taken
_settling: list[
    asyncio.Task[None]
] = []  # budgets that were read again: the event loop itself does not hold on to tasks
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
        self.interrupted = False
        super().__init__(
            uvicorn.Config(
                self.asgi,
                lifespan="off",  # `serve` opens what the routes work with, so that what goes wrong there is raised
                timeout_graceful_shutdown=max(1, round(settings.server.drain_seconds)),
                log_level="warning",
                server_header=False,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    @property
    def services(self) -> Services | None:
        return getattr(self.asgi.state, "services", None)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Until it is told to stop. Raises core.errors for what it cannot start with, KeyboardInterrupt after Ctrl-C."""
        allow_many_connections()
        give_back_freed_memory()
        gc.disable()  # until all is opened
        with ExitStack() as stack:
            listening = sockets or listen(self.settings.server.host, self.settings.server.port)
            for each in listening:
                stack.enter_context(each)
            super().run(listening)
        if self.interrupted:
            raise KeyboardInterrupt

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with open_services(self.settings) as services:
            self.asgi.state.services = services
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()  # all this stays: looking through it for garbage would hold requests up, by 80 to 160 ms each time
        gc.enable()
        with suppress(ValueError, AttributeError):  # not in the main thread, not on this system
            signal.signal(signal.SIGHUP, lambda *_: self.reload())
        url = self.address()
        try:
            running.announce(url)
        except (KleinbildError, OSError) as error:
            log.warning("the command on this machine will not find the server: %s", error)
        self.announce(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running.withdraw()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: no new work; streams end, running requests may until the drain's end."""
        if self.services is not None:
            self.services.draining = True
            self.services.hub.close()
        super().handle_exit(sig, frame)
        self.interrupted |= sig == signal.SIGINT
        self._captured_signals.clear()  # else uvicorn raises them once more before the services are closed

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
    """Raises ConfigurationError if what needs a restart has changed, or a secret is not there; then nothing changes.

    The engine, the database and the pictures are opened once, and what is under way uses them. All that is of the gateway
    may change: who is under way goes on with what he began with.
    """
    if services is None:
        return
    fixed = (
        ("server", None),
        ("engine", None),
        ("storage", ("database_url", "blobs_url")),
        ("limits", ("shared_url",)),
    )
    for section, fields in fixed:
        before, after = getattr(old, section), getattr(new, section)
        for name in fields or type(before).model_fields:
            if getattr(before, name) != getattr(after, name):
                raise ConfigurationError(f"{section}.{name} cannot change while the server runs", "restart the server")
    require_secrets(new)
    fleet = open_fleet(
        new, services.provider, services.fetcher, waiting=services.fleet.waiting, counters=services.counters
    )
    callers = configured_callers(new, services.secrets.derive("api keys"))
    services.settings = new
    services.fleet.become(fleet)
    services.checks.watch(fleet.places, fleet.listed)
    services.authenticator.configure(callers)
    _settling.append(asyncio.get_running_loop().create_task(settle_budgets(new, services.database, services.budgets)))
    services.media.seconds = new.storage.url_minutes * 60
    services.admission.set_limits(new.limits.max_queue, new.limits.callers)
    services.fetcher.set_limits(*fetching(new.limits))


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address that `host` stands for, all on one port. Raises RequestError where that cannot be."""
    listening: list[socket.socket] = []
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            place = (str(address[0]), port or (listening[0].getsockname()[1] if listening else 0))
            each = socket.create_server(place, family=family, backlog=BACKLOG)
            # asyncio sets it only where the protocol's number was given. Without it, whoever keeps his connection waits 40 ms
            # for the second packet of each answer.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.append(each)
    except OSError as error:
        for each in listening:
            each.close()
        reason = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else str(error)
        taken = error.errno == errno.EADDRINUSE
        hint = "stop what listens there, or choose another with --port" if taken else "check --host and --port"
        raise RequestError(f"{host}:{port} cannot be listened on: {reason}", hint) from error
    return listening


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
