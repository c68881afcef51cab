"""Work that is taken on and polled: when it is done it is charged, and its webhook told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from simulator.accounts import Account, Purchase

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"simulated webhooks' own secret").decode()
State = Literal["running", "done", "failed", "filtered", "cancelled"]


@dataclass(slots=True)
class Task:
    """`finished` is set with its end. `tell` posts its webhook, if it has one."""

    purchase: Purchase
    seconds: float
    base: str
    tell: Callable[[Task], None]
    input: dict[str, Any] = field(default_factory=dict)
    state: State = "running"
    polls: int = 0
    began: float = field(default_factory=time.time)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def poll_fails(self) -> bool:
        """Counts a poll."""
        self.polls += 1
        fault = self.purchase.fault
        return fault is not None and fault.name == "poll_errors" and self.polls <= fault.count

    def end(self, account: Account, state: State) -> None:
        if self.state != "running":
            return
        self.state = state
        if state != "cancelled":
            account.charge(self.purchase)
        self.finished.set()
        self.tell(self)

    def cancel(self, account: Account) -> bool:
        """Whether it could be."""
        if self.purchase.has("late_cancel"):
            self.end(account, "done")
        self.end(account, "cancelled")
        return self.state == "cancelled"


def take_on(account: Account, task: Task) -> Task:
    """Ends by itself, unless it hangs."""
    account.tasks[task.purchase.id] = task
    loop = asyncio.get_running_loop()
    if task.purchase.has("hang"):
        loop.call_later(task.seconds, account.charge, task.purchase)
        return task
    ends: State = "failed" if task.purchase.has("failed") else "filtered" if task.purchase.has("filtered") else "done"
    loop.call_later(task.seconds, task.end, account, ends)
    return task


def find(account: Account, task_id: str) -> Task | None:
    task = account.tasks.get(task_id)
    return None if task is None or task.purchase.has("lost") else task


def no_webhook(_: Task) -> None:
    """Of a task that nobody is told of."""


_POSTS: set[asyncio.Task[None]] = set()


def webhook(
    url: str | None, content: Callable[[Task], object], sign: Callable[[bytes], dict[str, str]]
) -> Callable[[Task], None]:
    """Posts what `content` makes of a task to `url`; as its fault says, again and again."""
    if not url:
        return no_webhook

    def tell(task: Task) -> None:
        body = json.dumps(content(task)).encode()
        fault = task.purchase.fault
        waits = (0.0, 0.0, fault.seconds) if fault and fault.name == "webhook_twice" else (0.0,)
        for seconds in waits:
            post = asyncio.ensure_future(_post(url, body, sign(body), seconds))
            _POSTS.add(post)
            post.add_done_callback(_POSTS.discard)

    return tell


def standard_signature(task_id: str) -> Callable[[bytes], dict[str, str]]:
    """By Standard Webhooks, with WEBHOOK_SECRET."""

    def sign(body: bytes) -> dict[str, str]:
        at = str(int(time.time()))
        secret = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
        digest = hmac.new(secret, f"{task_id}.{at}.".encode() + body, hashlib.sha256).digest()
        signature = f"v1,{base64.b64encode(digest).decode()}"
        return {"webhook-id": task_id, "webhook-timestamp": at, "webhook-signature": signature}

    return sign


async def _post(url: str, body: bytes, headers: dict[str, str], after: float) -> None:
    await asyncio.sleep(after)
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"host": parts.netloc, "content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "connection: close"]
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        await asyncio.wait_for(reader.readline(), 10.0)
        writer.close()
    except (OSError, TimeoutError):
        return  # whoever does not listen is not told
