"""The operator's own rules."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.core.sizes import Size
from kleinbild.gateway.configured import RuleSettings
from kleinbild.gateway.routing.decision import Decision
from kleinbild.gateway.routing.rules import read_rules
from tests.unit.gateway.routing.places import NOW, asked, decided, order, place, why_not

pytest.importorskip("cel_expr_python", reason="rules are written in CEL: pip install cel-expr-python")
PLACES = [
    place("a", "0.01", kind="bfl", region="eu", quality=0.5),
    place("b", "0.02", kind="fal", region="us", quality=0.9),
    place("c", None, kind="openai"),
]
HOG = "[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, [1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, a + b + c + d + e > 0)))))"


def by(*rules: dict[str, Any], now: float = NOW, **wanted: Any) -> Decision:
    named = [{"name": f"rule-{number}", **rule} for number, rule in enumerate(rules)]
    return decided(asked(allow_unknown_price=True, **wanted), PLACES, rules=read_rules(named), now=now)


def test_exclude_leaves_out_those_that_it_means() -> None:
    decision = by({"exclude": "deployment.kind == 'bfl'"})
    assert order(decision) == ["b", "c"]
    assert why_not(decision)["a"] == ("rule rule-0", "meant by exclude: deployment.kind == 'bfl'")


def test_require_leaves_out_all_others() -> None:
    decision = by({"require": "deployment.region in ['eu', 'ch']"})
    assert order(decision) == ["a"]
    assert why_not(decision)["c"][1].startswith("not meant by require")


def test_prefer_puts_those_that_it_means_first_and_the_earlier_rule_wins() -> None:
    assert order(by({"prefer": "deployment.quality != null && deployment.quality > 0.8"})) == ["b", "a", "c"]
    assert order(by({"prefer": "deployment.name == 'c'"}, {"prefer": "deployment.name == 'b'"})) == ["c", "b", "a"]
    assert "preferred by a rule" in by({"prefer": "deployment.name == 'c'"}).candidates[0].reason


def test_a_policy_by_rule_says_so_and_the_first_counts() -> None:
    decision = by({"when": "request.n > 1", "policy": "quality"}, {"policy": "latency"}, images=2)
    assert (decision.policy.name, decision.policy_source) == ("quality", "rule rule-0")
    assert order(decision)[0] == "b"
    decision = by({"when": "request.n > 1", "policy": "quality"}, policy_source="request")
    assert (decision.policy.name, decision.policy_source) == ("cost", "request")


def test_a_rule_holds_only_when_it_says() -> None:
    rule = {"when": "project == 'acme' && request.megapixels > 2", "exclude": True}
    assert order(by(rule, project="acme")) == ["a", "b", "c"]
    assert order(by(rule, project="acme", megapixels=Decimal(4))) == []


def test_when_may_ask_about_each_deployment() -> None:
    assert order(by({"when": "deployment.kind == 'bfl' && request.n == 1", "exclude": True})) == ["b", "c"]


def test_every_variable_is_what_it_is_called() -> None:
    conditions = [
        "request.task == 'image.edit'",
        "request.model == 'auto'",
        "request.n == 2",
        "request.width == 1024 && request.height == 512",
        "request.megapixels == 0.5",
        "request.steps == 4",
        "request.references == 1",
        "request.prompt_chars < 100",
        "request.user == 'u'",
        "key == 'k' && project == 'p'",
        "hour == 22 && weekday == 2",
        "deployment.name == 'a' && deployment.model == 'klein' && deployment.provider == 'bfl'",
        "deployment.kind == 'bfl' && deployment.region == 'eu'",
        "deployment.quality == 0.5 && deployment.price == 0.02",
    ]
    decision = by(
        *({"require": condition} for condition in conditions),
        now=1_795_645_800.0,  # Wednesday, 25 November 2026, 22:30 UTC
        task="image.edit",
        images=2,
        size=Size(1024, 512),
        megapixels=Decimal("0.5"),
        steps=4,
        references=1,
        prompt_chars=99,
        user="u",
        key="k",
        project="p",
    )
    assert order(decision) == ["a"]
    assert not decision.notes


def test_what_nobody_said_is_null_or_empty() -> None:
    conditions = ["deployment.price == null", "deployment.quality == null", "deployment.region == ''"]
    more = ["request.steps == null", "request.width == null", "request.height == null"]
    assert order(by(*({"require": condition} for condition in [*conditions, *more]))) == ["c"]


@pytest.mark.parametrize("effect", ["exclude", "require"])
def test_an_expression_that_fails_excludes_nothing_and_is_noted(effect: str) -> None:
    decision = by({effect: "deployment.price > 5 || request.steps + 1 > 3"})
    assert order(decision) == ["a", "b", "c"]
    (note,) = {note.split(":")[0] for note in decision.notes}
    assert note == "rule rule-0 could not be asked"


def test_a_condition_that_fails_does_not_hold_and_is_noted() -> None:
    for effect in ({"exclude": True}, {"policy": "quality"}):
        decision = by({"when": "1 / (request.n - 1) == 1", **effect})
        assert order(decision) == ["a", "b", "c"]
        assert decision.policy.name == "cost"
        assert decision.notes == ("rule rule-0 could not be asked: divide by zero",)


@pytest.mark.alone
def test_an_expression_without_end_is_cut_off_and_noted() -> None:
    begun = time.perf_counter()
    decision = by({"exclude": HOG})
    assert time.perf_counter() - begun < 1
    assert order(decision) == ["a", "b", "c"]
    assert decision.notes == ("rule rule-0 could not be asked: Iteration budget exceeded",)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"exclude": "deployment.prize > 1"}, "undeclared reference to 'deployment.prize'"),
        ({"exclude": "deployment.kind >"}, "Syntax error"),
        ({"exclude": "deployment.kind == 1"}, "no matching overload"),
        ({"exclude": "hour + 1"}, "not true or false, but int"),
        ({"exclude": ""}, "no expression"),
        ({"exclude": 3}, "no expression"),
        ({"exclude": "true || " * 1000 + "true"}, "no expression"),
        ({"exclude": "(" * 500 + "true" + ")" * 500}, "is wrong"),
        ({"when": "deployment.kind == 'bfl'", "policy": "cost"}, "undeclared reference to 'deployment.kind'"),
        ({"policy": "cheapest"}, "is no policy"),
        ({"exclude": "true", "prefer": "true"}, "2 effects"),
        ({"when": "true"}, "0 effects"),
        ({"exclude": "true", "then": "stop"}, "'then' is unknown"),
    ],
)
def test_a_wrong_rule_is_told_in_words_when_it_is_read(rule: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_rules([{"name": "mine", **rule}])
    assert told in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_rules_are_read_as_they_stand_in_the_settings() -> None:
    settings = RuleSettings.model_validate(
        {"name": "near", "when": "request.n == 1", "then": {"require": "deployment.region == 'eu'"}}
    )
    rules = read_rules([settings.model_dump(exclude_unset=True)])
    assert order(decided(asked(), PLACES, rules=rules)) == ["a"]
    assert order(decided(asked(images=2), PLACES, rules=rules)) == ["a", "b"]


def test_rules_have_names_of_their_own() -> None:
    with pytest.raises(RequestError, match="has no name"):
        read_rules([{"exclude": "true"}])
    with pytest.raises(RequestError, match="two rules have the name 'mine'"):
        read_rules([{"name": "mine", "exclude": "true"}, {"name": "mine", "prefer": "true"}])


def test_pins_stand_before_what_a_rule_prefers() -> None:
    assert order(by({"prefer": "deployment.name == 'c'"}, pins=("b", "c"))) == ["b", "c"]
