"""What a request wants, normalised: whatever API it came by, routing sees this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from kleinbild.core.deployments import Deployment, Parameter
from kleinbild.core.jobs import Task
from kleinbild.core.prices import Measure
from kleinbild.core.sizes import Size
from kleinbild.gateway.routing.policy import BALANCED, Policy

AUTO = "auto"
Losses = Literal["strict", "warn", "drop"]
"""What becomes of places that would lose a parameter given: they are left out; they come after those that lose fewer;
they stand where the policy puts them. What is lost is always told."""
NOTHING_GIVEN: Mapping[Parameter, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Asked:
    """`model` is a deployment's name, a model that several serve, or "auto" or None for every place that can do the task.

    `measure` is of the whole request; its `images` may be more than one call makes. `parameters` are those really given;
    `required` ones are never lost, whatever `losses` says, and neither is a mask. `pins` are deployments by name: only
    these, in this order. `on_machine`: pictures and prompts must not leave this machine. `max_seconds` bounds the seconds
    that are as likely as not. `allow_unknown_price` is the operator's word. `hedge`: a second place may be asked when the
    first is slow; None leaves it to the settings. `key`, `project` and `user` are for rules.
    """

    model: str | None
    task: Task
    measure: Measure
    size: Size | None = None
    prompt_chars: int = 0
    parameters: Mapping[Parameter, object] = field(default_factory=lambda: NOTHING_GIVEN)
    required: frozenset[Parameter] = frozenset()
    losses: Losses = "warn"
    policy: Policy = BALANCED
    policy_source: str = "default"
    max_price: Decimal | None = None
    max_seconds: float | None = None
    min_quality: float | None = None
    region: str | None = None
    on_machine: bool = False
    pins: tuple[str, ...] = ()
    allow_unknown_price: bool = False
    hedge: bool | None = None
    key: str = ""
    project: str = ""
    user: str = ""

    def means(self, deployment: Deployment) -> bool:
        """Whether this deployment is one of those asked for."""
        return self.model in (None, AUTO, deployment.name, deployment.model)
