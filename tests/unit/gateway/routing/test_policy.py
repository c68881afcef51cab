"""Policies as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.gateway.routing.policy import POLICIES, policy_text, read_policy


def test_policies_have_names() -> None:
    assert {name: read_policy(name) for name in POLICIES} == POLICIES
    assert set(POLICIES) == {"cost", "latency", "quality", "balanced"}


def test_weights_are_shares() -> None:
    policy = read_policy({"cost": 5, "latency": 3, "quality": 2})
    assert (policy.cost, policy.latency, policy.quality) == (0.5, 0.3, 0.2)
    assert read_policy({"cost": 0.1}).cost == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cheapest", "use cost, latency, quality, balanced"),
        ({"price": 1}, "weights are cost, latency, quality"),
        ({"cost": -1}, "write a number from 0 on"),
        ({"cost": True}, "write a number from 0 on"),
        ({"cost": "1"}, "write a number from 0 on"),
        ({"cost": float("nan")}, "write a number from 0 on"),
        ({"cost": float("inf")}, "write a number from 0 on"),
        ({"cost": 1e308, "latency": 1e308}, "for example"),
        ({"cost": 0}, "for example"),
        ({}, "for example"),
    ],
)
def test_what_is_no_policy_is_told_in_words(given: Any, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_policy(given)
    assert told in caught.value.hint


def test_a_policy_without_a_weight_for_quality_does_not_look_at_it() -> None:
    policy = read_policy({"cost": 0.5, "latency": 0.5})
    assert policy.score(None, 1.0, 1.0, 0.1) == policy.score(None, 1.0, 1.0, 0.9)


@pytest.mark.parametrize("given", ["cost", {"cost": 5, "latency": 0.1}, '{"quality": 1}'])
def test_a_policy_has_one_line_that_reads_as_the_same(given: Any) -> None:
    text = policy_text(given)
    assert "\n" not in text
    assert len(text) <= 128  # what a key's row has room for
    assert read_policy(text) == read_policy(given)


@pytest.mark.parametrize("given", ["{", '{"cost": 0}', '{"luck": 1}', "[1]"])
def test_what_is_no_line_of_a_policy_is_told_in_words(given: str) -> None:
    with pytest.raises(RequestError):
        policy_text(given)
