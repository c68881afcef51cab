"""When a call is sent again: where the server surely did not act, or where acting twice is once.

Every call of ours may be repeated: reading and cancelling by nature, making a job by its idempotency key. A request
that was wrong is wrong the second time, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kleinbild.client.answers import retry_after
from kleinbild.client.calls import Reply

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
LONGEST_RETRY_AFTER_S = 60.0
"""A server that says to come back later than this is an error: whoever asked shall know and decide."""
CONFLICT_PAUSE_S = 1.0

TRANSIENT = (429, 503, 502, 504)
"""Too many requests, not ready; and a proxy's answers, behind which the server may have acted."""


@dataclass(slots=True)
class Retrying:
    """The attempts of one call. Its methods give the seconds to wait before the next, or None: no more."""

    max_retries: int
    rng: Callable[[], float] = field(default=random.random, repr=False)
    _attempts: int = 0
    _waited_for_first: float = 0.0

    def after_failure(self) -> float | None:
        """The connection was refused, broke, or stayed silent."""
        self._attempts += 1
        return self._backoff() if self._attempts <= self.max_retries else None

    def after(self, reply: Reply, code: str | None) -> float | None:
        """The answer is an error, with this code of OpenAI's."""
        said = retry_after(reply)
        if reply.status == 409 and said is not None:
            return self._until_first_is_done(said)
        if reply.status not in TRANSIENT or code == "insufficient_quota":
            return None
        if said is not None and said > LONGEST_RETRY_AFTER_S:
            return None
        pause = self.after_failure()
        return pause if pause is None or said is None else said

    def _until_first_is_done(self, said: float) -> float | None:
        """Another call with our key runs: its answer is ours, so this counts as waiting and not as failing."""
        pause = min(max(said, CONFLICT_PAUSE_S / 4), LONGEST_PAUSE_S)
        self._waited_for_first += pause
        return pause if self._waited_for_first <= LONGEST_RETRY_AFTER_S else None

    def _backoff(self) -> float:
        pause = min(FIRST_PAUSE_S * 2.0 ** (self._attempts - 1), LONGEST_PAUSE_S)
        return pause * (0.75 + 0.25 * self.rng())  # many clients shall not come back at once
