"""Who asks: the caller that a key stands for, what he may do, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["viewer", "member", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "member", "admin")
"""Each may do what those before it may: look at the owner's things, make pictures, administer keys."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may have; None is no limit of his own, the server's still hold."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_jobs: int | None = None
    megapixels_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """`id` is the key's ("local" where none is needed). Jobs, files and webhooks belong to the caller's `project`.

    `models` and `routes` are what he may use; None allows all. A route is a prefix of the path, such as `/v1/images`.
    `above` are the keys that his came from, with their limits, that his use counts against, too: else whoever has a limit
    would have it once more with each key that he makes. `payers` are all keys above his: their budgets count what he
    spends, too. By `policy` his requests are routed, None is the server's.
    """

    id: str
    owner: str
    project: str
    role: Role = "member"
    models: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    limits: Limits = Limits()
    above: tuple[tuple[str, Limits], ...] = ()
    policy: str | None = None
    payers: tuple[str, ...] = ()

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = Caller("local", owner="local", project="local", role="admin")
"""Whoever reaches a server on loopback that has no keys."""
