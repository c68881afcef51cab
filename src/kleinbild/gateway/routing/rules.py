"""The operator's own rules, in the Common Expression Language (CEL): typed, without side effects, and always ending.

A rule has a `name`, `when` it holds (default: always), and one of: `exclude`, `require` or `prefer`, each an expression
that says of which deployments; or `policy`. Types are checked when the rule is read. What fails later, or takes more
steps than the runtime grants, excludes nothing, prefers nothing, and is noted in the decision.

Unknown numbers (`deployment.price`, `deployment.quality`, `request.steps`, `request.width`, `request.height`) are null:
write `deployment.price != null && deployment.price > 0.05`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal, get_args

from kleinbild.core.deployments import Deployment
from kleinbild.core.errors import RequestError
from kleinbild.gateway.routing.asked import AUTO, Asked
from kleinbild.gateway.routing.policy import Policy, read_policy

MAX_EXPRESSION = 4096
Effect = Literal["exclude", "require", "prefer", "policy"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
OF_REQUEST = {
    "request.task": "STRING",
    "request.model": "STRING",
    "request.n": "INT",
    "request.width": "DYN",
    "request.height": "DYN",
    "request.megapixels": "DYN",  # a double that may be compared with whole numbers
    "request.steps": "DYN",
    "request.references": "INT",
    "request.prompt_chars": "INT",
    "request.user": "STRING",
    "key": "STRING",
    "project": "STRING",
    "hour": "INT",  # 0 to 23, UTC
    "weekday": "INT",  # 0 is Monday
}
OF_DEPLOYMENT = {
    "deployment.name": "STRING",
    "deployment.model": "STRING",
    "deployment.provider": "STRING",
    "deployment.kind": "STRING",
    "deployment.region": "STRING",  # "" if nobody said
    "deployment.quality": "DYN",
    "deployment.price": "DYN",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled expression. `of_deployment`: it must be asked for each. `names` are the variables that it may use."""

    text: str
    expression: Any
    of_deployment: bool
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """`which` are the deployments meant; None for a `policy`."""

    name: str
    effect: Effect
    when: Condition | None = None
    which: Condition | None = None
    policy: Policy | None = None


class FailedError(Exception):
    """An expression that has no answer."""


def read_rules(given: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """As they stand in the configuration. Raises RequestError, in words, for the first that is wrong."""
    rules = tuple(read_rule(each) for each in given)
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two rules have the name {name!r}", "give each a name of its own")
    return rules


def read_rule(given: Mapping[str, Any]) -> Rule:
    """The effect stands beside `name` and `when`, or in a table of its own: then = { exclude = "…" }."""
    if isinstance(then := given.get("then"), Mapping):
        given = {**{part: value for part, value in given.items() if part != "then"}, **then}
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError("a rule has no name", 'give it one: name = "only in Europe"')
    if unknown := sorted(set(given) - {"name", "when", *EFFECTS}):
        raise RequestError(f"rule {name!r}: {unknown[0]!r} is unknown", f"a rule has name, when and one of {_EFFECTS}")
    effects = [effect for effect in EFFECTS if effect in given]
    if len(effects) != 1:
        raise RequestError(f"rule {name!r} has {len(effects)} effects", f"give it one of {_EFFECTS}")
    effect = effects[0]
    when = _condition(name, "when", given["when"], of_deployment=effect != "policy") if "when" in given else None
    if effect == "policy":
        return Rule(name, effect, when, policy=read_policy(given["policy"]))
    return Rule(name, effect, when, _condition(name, effect, given[effect], of_deployment=True))


def request_variables(asked: Asked, now: float) -> dict[str, Any]:
    measure, at = asked.measure, time.gmtime(now)
    return {
        "request.task": asked.task,
        "request.model": asked.model or AUTO,
        "request.n": measure.images,
        "request.width": None if asked.size is None else asked.size.width,
        "request.height": None if asked.size is None else asked.size.height,
        "request.megapixels": float(measure.megapixels),
        "request.steps": measure.steps,
        "request.references": measure.references,
        "request.prompt_chars": asked.prompt_chars,
        "request.user": asked.user,
        "key": asked.key,
        "project": asked.project,
        "hour": at.tm_hour,
        "weekday": at.tm_wday,
    }


def deployment_variables(deployment: Deployment, price: Decimal | None) -> dict[str, Any]:
    return {
        "deployment.name": deployment.name,
        "deployment.model": deployment.model,
        "deployment.provider": deployment.provider,
        "deployment.kind": deployment.kind,
        "deployment.region": deployment.region or "",
        "deployment.quality": deployment.quality,
        "deployment.price": None if price is None else float(price),
    }


def activation(variables: Mapping[str, Any]) -> Any:
    """The variables in the form in which several conditions can be asked of them."""
    return _environment(of_deployment=True).Activation(variables)


def holds(condition: Condition | None, variables: Any) -> bool:
    """Of an `activation`. Raises FailedError."""
    if condition is None:
        return True
    try:
        answer = condition.expression.eval(variables).value()
    except RuntimeError as error:
        raise FailedError(_words(error)) from error
    if answer is True or answer is False:
        return answer
    raise FailedError(_words(answer))


_EFFECTS = ", ".join(EFFECTS)


def _condition(rule: str, part: str, text: object, *, of_deployment: bool) -> Condition:
    if isinstance(text, bool):
        text = "true" if text else "false"
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_EXPRESSION:
        raise RequestError(
            f"rule {rule!r}: {part} is no expression", f"write CEL of at most {MAX_EXPRESSION} letters, or true"
        )
    try:
        expression = _environment(of_deployment=False).compile(text)
        asks_deployment = False
    except RuntimeError:
        try:
            expression = _environment(of_deployment=of_deployment).compile(text)
        except RuntimeError as error:
            known = ", ".join(OF_REQUEST | (OF_DEPLOYMENT if of_deployment else {}))
            raise RequestError(f"rule {rule!r}: {part} is wrong: {_words(error)}", f"it may use {known}") from error
        asks_deployment = True
    kind = str(expression.return_type())
    if kind not in ("BOOL", "DYN"):
        raise RequestError(
            f"rule {rule!r}: {part} is not true or false, but {kind.lower()}", "compare it with something"
        )
    names = frozenset(name for name in OF_REQUEST | OF_DEPLOYMENT if name in text)
    return Condition(text, expression, asks_deployment, names)


@cache
def _environment(*, of_deployment: bool) -> Any:
    try:
        from cel_expr_python import cel  # type: ignore[import-untyped] # it has a stub file, but no py.typed
    except ImportError as error:
        raise RequestError("rules need a package that is not here", "pip install cel-expr-python") from error
    variables = OF_REQUEST | (OF_DEPLOYMENT if of_deployment else {})
    return cel.NewEnv(variables={name: getattr(cel.Type, kind) for name, kind in variables.items()})


def _words(error: object) -> str:
    """The runtime's own, in one line, without its codes and drawings."""
    line = str(error).splitlines()[0] if str(error) else "it has no answer"
    for code in ("INVALID_ARGUMENT: ", "ERROR: ", "NOT_FOUND: ", "UNKNOWN: ", "INTERNAL: "):
        line = line.removeprefix(code)
    return line.removeprefix("<input>:").split(" [")[0].replace(" (in container '')", "")[:200]
