"""How long a decision takes: ten deployments, with and without rules, and its way to JSON.

python benchmarks/routing.py
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from kleinbild.core.deployments import Can, Deployment
from kleinbild.core.prices import Measure, Price
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.gateway.routing.asked import Asked
from kleinbild.gateway.routing.decision import decide
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.gateway.routing.rules import read_rules

NOW = 1_790_000_000.0
NUM_DEPLOYMENTS = 10
REPEATS, ROUNDS = 300, 7
RULES = [
    {"name": "large", "when": "request.megapixels > 2", "exclude": "deployment.kind == 'bfl'"},
    {"name": "near", "prefer": "deployment.region == 'eu' && deployment.price != null && deployment.price < 0.02"},
    {"name": "acme", "when": "project == 'acme'", "require": "deployment.region == 'eu'"},
    {"name": "night", "when": "hour < 6", "policy": "cost"},
]


def fleet() -> list[Deployment]:
    can = Can(
        tasks=frozenset({"image.generate", "image.edit"}),
        parameters=frozenset({"size", "seed"}),
        sizes=SizeRange(64, 2048, 2048 * 2048, 16),
        max_references=4,
        default_steps=4,
    )
    return [
        Deployment(
            name=f"place-{number}",
            model="klein",
            provider="bfl",
            kind="bfl",
            provider_model="flux-2-klein-4b",
            can=can,
            price=Price(first_megapixel=Decimal("0.014"), per_megapixel=Decimal("0.001") * number, version="v1"),
            quality=0.5 + number / 40,
        )
        for number in range(NUM_DEPLOYMENTS)
    ]


def trained(deployments: list[Deployment]) -> Predictor:
    predictor = Predictor()
    for deployment in deployments:
        for number in range(60):
            predictor.observe(deployment, Measure(images=1 + number % 4), 2 + number % 5, NOW - number, "done")
    return predictor


def best(work: Callable[[], object]) -> float:
    """Microseconds."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(REPEATS):
            work()
        times.append((time.perf_counter() - begun) / REPEATS)
    return min(times) * 1e6


def main() -> None:
    deployments = fleet()
    predictor, rules = trained(deployments), read_rules(RULES)
    plain = Asked("auto", "image.generate", Measure(), Size(1024, 1024), parameters={"seed": 5})
    odd = Asked("auto", "image.generate", Measure(images=4), Size(1000, 1000), parameters={"seed": 5, "steps": 8})
    decision = decide(plain, deployments, {}, predictor, (), NOW)

    def unseen() -> object:
        predictor.observe(deployments[0], Measure(), 3.0, NOW, "done")
        return decide(plain, deployments, {}, predictor, (), NOW)

    print(f"{platform.machine()}, Python {platform.python_version()}, {NUM_DEPLOYMENTS} deployments; best of {ROUNDS}")
    for name, work in (
        ("a picture", lambda: decide(plain, deployments, {}, predictor, (), NOW)),
        ("a picture, 4 rules", lambda: decide(plain, deployments, {}, predictor, rules, NOW)),
        ("4 pictures of an odd size", lambda: decide(odd, deployments, {}, predictor, (), NOW)),
        ("a picture, just after one was seen", unseen),
        ("to JSON", decision.to_json),
    ):
        print(f"{name:<36}{best(work):8.0f} µs")


if __name__ == "__main__":
    main()
