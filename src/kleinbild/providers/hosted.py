"""Services that make pictures for money, each in one file behind `Hosted`: what is asked, answered, and can go wrong.

A call goes `start` → `Answer`, or → `Accepted`, whose handle `collect` follows to its `Answer`, in this process or, after
a crash, in another: handles are plain JSON. Every failure is a `ProviderError`, which says whether the service had taken
the work on; on that, and on nothing else, it is decided whether asking elsewhere could pay twice.

Nobody here retries: `gateway.flow.attempt` does, the one owner of retries. (Polling goes on through single failures.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, Protocol

from kleinbild.core.deployments import Can
from kleinbild.core.errors import KleinbildError
from kleinbild.core.jobs import ImageWork
from kleinbild.core.prices import BilledTokens
from kleinbild.core.tokens import NO_TOKENS, Tokens
from kleinbild.providers.base import Inputs, Listener

NO_TIMINGS: Mapping[str, float] = MappingProxyType({})

Acceptance = Literal["refused", "accepted", "unknown"]
"""Whether a service took work on: proven not to (it costs nothing), taken, or nobody knows."""
Cause = Literal[
    "connection",  # not reached, or cut off
    "timeout",
    "rate_limited",
    "overloaded",  # or broken, for now: 5xx
    "credentials",  # of the operator: key wrong, without rights
    "credit",  # of the operator: none left
    "invalid",  # the request
    "not_found",  # the model, or the handle
    "moderated",  # the prompt, a picture given, or the picture made
    "failed",  # the service says that it could not make it
    "bad_answer",  # no picture, half a picture, another kind of thing
    "cancelled",
]
Handle = dict[str, Any]
"""What a provider needs to find its work again: JSON, without secrets."""


class ProviderError(KleinbildError):
    """`billed`: whether the service charges for it, None if nobody knows. `message` is for callers: it holds no secret, no
    key and no URL with a signature. `detail` is for the operator."""

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        cause: Cause,
        acceptance: Acceptance,
        billed: bool | None = False,
        status: int | None = None,
        retry_after: float | None = None,
        charged: Decimal | None = None,
        handle: Handle | None = None,
        request_id: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.cause, self.acceptance, self.billed, self.status = cause, acceptance, billed, status
        self.retry_after, self.charged, self.handle = retry_after, charged, handle
        self.request_id, self.detail = request_id, detail


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds from now until work is done: one of 20 is done within `soonest`, half of all within `usual`."""

    soonest: float
    usual: float

    def after(self, seconds: float) -> Expected:
        """What is left once these have passed."""
        return Expected(max(0.0, self.soonest - seconds), max(0.0, self.usual - seconds))


@dataclass(frozen=True, slots=True)
class Call:
    """`count` pictures of `work`, from the one with index `first` (its seed is `work.seed` + `first`), at the service's
    `model`. `id` is the attempt's: it goes along where a service keeps such a thing, so that bills can be compared.
    `seconds` are left for all of it, of which it will probably take what is `expected`, None if nobody knows. `listener` is
    told of each step by the places that have steps. `can` is what the deployment does, where that is not for its name alone
    to tell."""

    id: str
    model: str
    work: ImageWork
    inputs: Inputs
    first: int = 0
    count: int = 1
    seconds: float = 600.0
    expected: Expected | None = None
    user: str | None = None
    listener: Listener | None = None
    can: Can | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """One picture as it was delivered: a file, checked to be a picture. `seed` is None where the service does not tell.
    `timings` are seconds by stage, `tokens` those that the transformer saw and `fingerprint` the weights', where known;
    `revised_prompt` is what was read in place of the prompt."""

    file: bytes
    seed: int | None = None
    timings: Mapping[str, float] = field(default_factory=lambda: NO_TIMINGS)
    fingerprint: str = ""
    tokens: Tokens = NO_TOKENS
    revised_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """`charged` is what the service says that it costs, in dollars; else it follows from the price, with `tokens` if the
    service counts those. `seconds` are the service's own; `notes` say what it did otherwise than asked."""

    pictures: tuple[Fetched, ...]
    charged: Decimal | None = None
    tokens: BilledTokens | None = None
    seconds: float | None = None
    request_id: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The service works on it. `charged`: see Answer."""

    handle: Handle
    charged: Decimal | None = None
    request_id: str | None = None


Cancellation = Literal["cancelled", "too_late", "impossible"]
"""Ended, and not charged; had ended by itself, so that `collect` tells how; cannot be, so that `collect` must wait."""
Watcher = Callable[[int | None, bytes | None], None]
"""Told of progress: a position in the service's queue if it says so, or a preview (PNG)."""


def ignore(_: int | None, __: bytes | None) -> None:
    """A Watcher that watches nothing."""


class Hosted(Protocol):
    """One account at one service. All methods but `can` raise ProviderError; cancelling a task only stops waiting."""

    def can(self, model: str) -> Can:
        """What the service does with its model of that name, as far as is known."""
        ...

    async def start(self, call: Call, watcher: Watcher = ignore) -> Answer | Accepted: ...

    async def collect(self, handle: Handle, call: Call, watcher: Watcher = ignore) -> Answer:
        """Follows what was accepted to its end. Errors are of the acceptance "accepted", or "refused" once the service has
        said that there will be no picture and no charge; "unknown" if the handle leads nowhere."""
        ...

    async def cancel(self, handle: Handle) -> Cancellation: ...

    async def probe(self) -> None:
        """Whether the service can be reached and lets us in, by something that buys no picture."""
        ...

    async def close(self) -> None: ...
