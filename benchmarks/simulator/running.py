"""The process: each account listens at a port of its own, which refuses connections while it is down; the control port
serves all of them below their names, and `/_sim`.

    GET  /_sim                      accounts and where they are
    PUT  /_sim/{account}/faults     {name: share or {share, billed, …}, …}; all others are gone. ?seed= begins anew
    PUT  /_sim/{account}/speed      {"latency": seconds, "spread": sigma, "honours_keys": bool}
    PUT  /_sim/{account}/outage     {"state": "up" | "down" | "flapping", "up_seconds", "down_seconds"}
    GET  /_sim/{account}/bill       what it charged. ?after= leaves out so many of the first items, not their sums
    GET  /_sim/{account}/counts     purchases by what went wrong with them
    POST /_sim/reset                bills, tasks, faults and outages, of all
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from simulator import in_the_request, polled
from simulator.accounts import Account, AccountSettings
from simulator.faults import Script
from simulator.pictures import picture
from simulator.serving import Connection, Reply, Request, no_answer, told

HOST = "127.0.0.1"
SLOW_SECONDS = 0.5
KINDS: dict[str, Callable[[Account, Request], Awaitable[Reply]]] = {
    "openai": in_the_request.openai,
    "together": in_the_request.together,
    "stability": in_the_request.stability,
    "bfl": polled.bfl,
    "replicate": polled.replicate,
    "fal": polled.fal,
}
_FILE = re.compile(r"/files/(\w+)/(\d+)x(\d+)/[^/]+\.(\w+)")


class Listener:
    """One account and its port. It stays the same through outages."""

    def __init__(self, account: Account) -> None:
        if account.settings.kind not in KINDS:
            raise ValueError(f"there is no kind {account.settings.kind!r}; known are {', '.join(KINDS)}")
        self.account, self.port = account, account.settings.port
        self.is_up = False
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._flapping: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def up(self) -> None:
        if self.is_up:
            return
        loop = asyncio.get_running_loop()
        while self._server is None:
            try:
                self._server = await loop.create_server(
                    lambda: Connection(self.answer, self.connections), HOST, self.port, backlog=4096
                )
            except OSError:
                if self.port == self.account.settings.port:
                    raise
                await asyncio.sleep(0.05)  # somebody has borrowed it meanwhile
        self.port = self._server.sockets[0].getsockname()[1]
        self.is_up = True

    def down(self) -> None:
        """Connections are refused; those that there are, break."""
        self.is_up = False
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self.connections):
            connection.abort()

    async def outage(self, state: str, up_seconds: float = 1.0, down_seconds: float = 1.0) -> None:
        if state not in ("up", "down", "flapping"):
            raise ValueError(f"an outage is not {state!r}; it is up, down or flapping")
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        if state == "flapping":
            self._flapping = asyncio.ensure_future(self._flap(up_seconds, down_seconds))
        elif state == "down":
            self.down()
        else:
            await self.up()

    async def answer(self, request: Request) -> Reply:
        if not self.is_up:
            return no_answer()
        account = self.account
        if request.path.startswith("/files/"):
            return _file(request.path)
        key = request.headers.get("idempotency-key")
        if not account.honours_keys or key is None or request.method != "POST":
            return await KINDS[account.settings.kind](account, request)
        if key not in account.answered:
            account.answered[key] = asyncio.ensure_future(KINDS[account.settings.kind](account, request))
        return await asyncio.shield(account.answered[key])

    async def _flap(self, up_seconds: float, down_seconds: float) -> None:
        while True:
            self.down()
            await asyncio.sleep(down_seconds)
            await self.up()
            await asyncio.sleep(up_seconds)


class Simulator:
    """`url` is the control port's. Its coroutines are of the loop that it runs in."""

    def __init__(self, accounts: Sequence[AccountSettings], port: int = 0) -> None:
        self.listeners = {each.name: Listener(Account(each)) for each in accounts}
        self.port = port
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def where(self) -> dict[str, dict[str, str]]:
        """Accounts by name."""
        return {
            name: {"kind": each.account.settings.kind, "url": each.url, "below": f"{self.url}/{name}"}
            for name, each in self.listeners.items()
        }

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._answer, self._connections), HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        for listener in self.listeners.values():
            await listener.up()

    async def stop(self) -> None:
        for listener in self.listeners.values():
            await listener.outage("down")
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()

    async def _answer(self, request: Request) -> Reply:
        _, first, rest = (request.path + "/").split("/", 2)
        if first in self.listeners:
            request.base, request.path = f"{request.base}/{first}", "/" + rest.rstrip("/")
            return await self.listeners[first].answer(request)
        try:
            return await self._control(request)
        except (ValueError, TypeError) as error:
            return told({"error": str(error)}, 400)

    async def _control(self, request: Request) -> Reply:
        parts = request.path.strip("/").split("/")
        match request.method, *parts:
            case "GET", "_sim":
                return told(self.where())
            case "POST", "_sim", "reset":
                for each in self.listeners.values():
                    each.account.reset()
                    await each.outage("up")
                return told({})
            case method, "_sim", name, what if name in self.listeners:
                return await _changed(self.listeners[name], method, what, request)
        return told({"error": f"nothing is at {request.path}; accounts are {', '.join(self.listeners)}"}, 404)


async def _changed(listener: Listener, method: str, what: str, request: Request) -> Reply:
    account, body = listener.account, request.json()
    match method, what:
        case "GET", "bill":
            return told(account.bill.shown(int(request.query.get("after", 0))))
        case "GET", "counts":
            return told(account.counts)
        case "PUT", "faults":
            script = Script(body, int(request.query.get("seed", 0)))
            if "seed" not in request.query:
                script.random = account.script.random
            account.script = script
        case "PUT", "speed":
            account.latency, account.spread = body.get("latency", account.latency), body.get("spread", account.spread)
            account.honours_keys = body.get("honours_keys", account.honours_keys)
        case "PUT", "outage":
            await listener.outage(**body)
        case _:
            return told({"error": f"{method} {what}: there is no such thing"}, 404)
    return told({})


def _file(path: str) -> Reply:
    found = _FILE.fullmatch(path)
    if found is None or found[1] == "gone":
        return told({"detail": "there is no such file"}, 404)
    if found[1] == "expired":
        return told({"detail": "the file has expired"}, 410)
    kind = "jpeg" if found[4] == "jpg" else found[4]
    file = picture(int(found[2]), int(found[3]), kind, black=found[1] == "black")
    return Reply(200, file, f"image/{kind}", drip=SLOW_SECONDS if found[1] == "slow" else 0.0)


@asynccontextmanager
async def running(accounts: Sequence[AccountSettings], port: int = 0) -> AsyncIterator[Simulator]:
    simulator = Simulator(accounts, port)
    await simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()


@contextmanager
def in_background(accounts: Sequence[AccountSettings]) -> Iterator[Simulator]:
    """In a thread of its own, for blocking clients."""
    simulator, loop, is_ready = Simulator(accounts), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        await simulator.start()
        is_ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await simulator.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    task = loop.create_task(run())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,), daemon=True)
    thread.start()
    is_ready.wait(10)
    try:
        yield simulator
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        loop.close()


def quick() -> None:
    """Garbage collection looks at all that is billed again and again; nothing here is in circles for long."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
