"""Whether a slow request is asked for a second time elsewhere, and when: opt-in, since both may have to be paid.

It is fired after the time that 19 of 20 such requests take at that place, and never for more than a share of all
requests: where everything has become slow, asking twice would make it slower. Whether a second reservation fits the
budget is for the caller to check, between `may_fire` and `fired`.
"""

from __future__ import annotations

SHARE = 0.05
BURST = 5.0


def hedge_after(p95: float | None, seconds_left: float) -> float | None:
    """Seconds after its start at which a request is asked for elsewhere, too; None for never: not enough is known of the
    place (`p95`, in seconds), or a second one would have less time than the first was given."""
    return None if p95 is None or 2 * p95 > seconds_left else p95


class Hedges:
    """At most `share` of the requests that were seen, and never more than `burst` of them in a row."""

    def __init__(self, share: float = SHARE, burst: float = BURST) -> None:
        self._share, self._burst = share, max(1.0, burst)
        self._tokens = 0.0

    def seen(self) -> None:
        """A request that could be hedged has begun."""
        self._tokens = min(self._burst, self._tokens + self._share)

    def may_fire(self) -> bool:
        return self._tokens >= 1.0 - 1e-9  # twenty times a twentieth is one

    def fired(self) -> bool:
        """Takes the right to fire; False if another request was quicker: do not."""
        if not self.may_fire():
            return False
        self._tokens = max(0.0, self._tokens - 1.0)
        return True

    def withdrawn(self) -> None:
        """Gives it back: the second reservation did not fit, nothing was sent."""
        self._tokens = min(self._burst, self._tokens + 1.0)
