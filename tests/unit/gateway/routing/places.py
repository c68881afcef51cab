"""Deployments and requests to decide about, in few words, and strategies that draw them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from kleinbild.core.deployments import Can, Deployment, ProviderKind
from kleinbild.core.prices import Measure, Price
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.candidates import Standing
from kleinbild.gateway.routing.decision import Decision, decide
from kleinbild.gateway.routing.policy import POLICIES, Policy, read_policy
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.gateway.routing.rules import Rule

NOW = 1_790_000_000.0  # a Monday, 14:13 UTC
CAN = Can(
    tasks=frozenset({"image.generate", "image.edit"}),
    parameters=frozenset({"size", "seed", "steps"}),
    sizes=SizeRange(min_side=64, max_side=2048, max_pixels=2048 * 2048, multiple=16),
    max_references=4,
    default_steps=4,
)


def place(
    name: str, price: str | Price | None = "0.01", kind: ProviderKind = "bfl", can: Can = CAN, **more: Any
) -> Deployment:
    """`price` is of a picture. What is not a field of a deployment is one of what it can."""
    fields = Deployment.__dataclass_fields__
    abilities = {key: value for key, value in more.items() if key not in fields}
    given = {key: value for key, value in more.items() if key in fields}
    cost = Price(per_image=Decimal(price)) if isinstance(price, str) else price or Price()
    defaults = {"model": "klein", "provider": kind, "provider_model": "flux"}
    return Deployment(name=name, kind=kind, can=replace(can, **abilities), price=cost, **{**defaults, **given})


def asked(model: str | None = "auto", policy: str | Policy = "cost", **more: Any) -> Asked:
    """What is not a field of what is asked is one of its measure."""
    measured = {key: value for key, value in more.items() if key in Measure.__dataclass_fields__}
    given = {key: value for key, value in more.items() if key not in measured}
    chosen = read_policy(policy) if isinstance(policy, str) else policy
    return Asked(
        **{"model": model, "task": "image.generate", "measure": Measure(**measured), "policy": chosen, **given}
    )


def decided(
    wanted: Asked,
    deployments: Iterable[Deployment],
    standings: dict[str, Standing] | None = None,
    predictor: Predictor | None = None,
    rules: tuple[Rule, ...] = (),
    now: float = NOW,
) -> Decision:
    return decide(wanted, list(deployments), standings or {}, predictor or Predictor(), rules, now, decision_id="dec_1")


def order(decision: Decision) -> list[str]:
    return [candidate.deployment.name for candidate in decision.candidates]


def why_not(decision: Decision) -> dict[str, tuple[str, str]]:
    return {exclusion.deployment: (exclusion.rule, exclusion.reason) for exclusion in decision.excluded}


amounts = st.decimals(min_value=0, max_value=2, places=9, allow_nan=False, allow_infinity=False)
prices = st.builds(
    Price,
    per_image=amounts | st.none(),
    per_megapixel=amounts | st.none(),
    per_step=amounts | st.none(),
    per_request=amounts | st.none(),
    by_quality=st.sampled_from([{}, {"auto": Decimal("0.04"), "high": Decimal("0.16")}]),
    version=st.just("v1"),
)
cans = st.builds(
    Can,
    tasks=st.sets(st.sampled_from(["image.generate", "image.edit"]), min_size=1).map(frozenset),
    parameters=st.sets(st.sampled_from(["size", "seed", "steps", "mask", "user", "quality"])).map(frozenset),
    sizes=st.sampled_from([None, CAN.sizes, SizeRange(256, 1440, 1440 * 1440, 32)]),
    exact_sizes=st.sampled_from([(), ("1024x1024", "1536x1024")]),
    ratios=st.sampled_from([(), ("1:1", "16:9")]),
    max_images=st.integers(1, 4),
    max_references=st.integers(0, 4),
    default_steps=st.none() | st.integers(1, 50),
)
fleets = st.lists(
    st.builds(
        Deployment,
        name=st.text("abcdef", min_size=1, max_size=3),
        model=st.sampled_from(["klein", "pro"]),
        provider=st.just("p"),
        kind=st.sampled_from(["local", "openai", "bfl", "fal"]),
        provider_model=st.just("m"),
        can=cans,
        price=prices,
        region=st.sampled_from([None, "eu", "us"]),
        quality=st.none() | st.floats(0, 1),
        weight=st.sampled_from([0.5, 1.0, 2.0]),
    ),
    max_size=6,
    unique_by=lambda deployment: deployment.name,
)
policies = st.sampled_from(list(POLICIES.values())) | st.builds(
    lambda cost, latency, quality: read_policy({"cost": cost, "latency": latency, "quality": quality}),
    st.floats(0.1, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
requests = st.builds(
    Asked,
    model=st.sampled_from([None, "auto", "klein", "a"]),
    task=st.sampled_from(["image.generate", "image.edit"]),
    measure=st.builds(
        Measure,
        images=st.integers(1, 9),
        megapixels=st.decimals("0.1", "4", places=3),
        input_megapixels=st.decimals("0", "4", places=3),
        steps=st.none() | st.integers(1, 50),
        quality=st.sampled_from(["auto", "high"]),
        references=st.integers(0, 5),
    ),
    size=st.none() | st.builds(Size, st.integers(64, 3000), st.integers(64, 3000)),
    prompt_chars=st.integers(0, 40_000),
    parameters=st.dictionaries(st.sampled_from(["seed", "steps", "mask", "user"]), st.integers(0, 9)),
    required=st.sets(st.sampled_from(["seed", "steps", "size"])).map(frozenset),
    losses=st.sampled_from(["strict", "warn", "drop"]),
    policy=policies,
    max_price=st.none() | amounts,
    max_seconds=st.none() | st.floats(0.5, 60),
    min_quality=st.none() | st.floats(0, 1),
    region=st.sampled_from([None, "eu"]),
    on_machine=st.booleans(),
    allow_unknown_price=st.booleans(),
)
standings = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(
        Standing,
        circuit=st.sampled_from(["closed", "open", "half_open"]),
        retry_at=st.none() | st.floats(NOW - 60, NOW + 60),
        waiting_seconds=st.floats(0, 30),
        active=st.integers(0, 4),
        max_active=st.none() | st.integers(1, 4),
        rate_limited_until=st.none() | st.floats(NOW - 60, NOW + 60),
    ),
    max_size=4,
)
