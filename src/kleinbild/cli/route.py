"""`kleinbild route`: why requests went where they went, and what they would have cost elsewhere. Asks nobody, pays nothing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from kleinbild.cli import options
from kleinbild.cli.keys import Data
from kleinbild.cli.serve import Config
from kleinbild.cli.terminal import printable, result, result_json, result_table, say
from kleinbild.core.money import written

if TYPE_CHECKING:
    from kleinbild.gateway.routing.decision import Decision
    from kleinbild.gateway.routing.replay import Comparison, Line
    from kleinbild.gateway.settings import Settings

WEEK = 7 * options.SECONDS["d"]
NUMBERS = ("requests", "changed", "cost", "would cost", "seconds", "would take", "price", "score")
T = TypeVar("T")

route = typer.Typer(help="Where requests went, why, and what they would have cost elsewhere.", no_args_is_help=True)


def read_since(text: str) -> int:
    return options.span("--since", text)


@route.command()
def replay(
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            parser=options.read_policy,
            help="cost, latency, quality, balanced, or weights such as cost=0.7,quality=0.3. Default: cost.",
        ),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(metavar="TIME", parser=read_since, help="How far back: 90m, 12h, 7d, 4w. Default: 7d."),
    ] = None,
    project: Annotated[str | None, typer.Option(metavar="TEXT", help="Only those of a project.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """Take the decisions that were kept again, by another policy, and compare what they cost with what they would have.

    Each is taken among the deployments that it was taken among then, at their prices of then; seconds are as learned from
    what was really seen.
    """
    from kleinbild.cli import recorded
    from kleinbild.gateway.routing.policy import read_policy
    from kleinbild.gateway.routing.replay import replay

    records = _read(data, config, lambda settings: recorded.since(settings, project, time.time() - (since or WEEK)))
    comparison = replay(records, read_policy(policy or "cost"))
    if as_json:
        result_json(comparison.to_json())
        return
    _tell_comparison(comparison)


@route.command()
def explain(
    decision: Annotated[str, typer.Argument(metavar="ID", help="A decision's id, dec_…, or its job's.")],
    data: Data = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """Show who could have served a request, in order, who not, and why."""
    from kleinbild.cli import recorded

    found = _read(data, config, lambda settings: recorded.find(settings, decision))
    if as_json:
        result_json(found.to_json())
        return
    _tell_decision(found)


def _read(data: Path | None, config: Path | None, do: Callable[[Settings], Awaitable[T]]) -> T:
    """What `do` gives for the data of the server with these settings."""
    import asyncio

    from kleinbild.gateway.settings import read_configuration

    settings = read_configuration(config, {} if data is None else {"server": {"data": data}}).settings

    async def run() -> T:
        return await do(settings)

    return asyncio.run(run())


def _tell_comparison(comparison: Comparison) -> None:
    columns = ("day", "requests", "changed", "cost", "would cost", "seconds", "would take")
    result_table(columns, [_row(line) for line in (*comparison.days, comparison.total)], NUMBERS)
    for (then, now), number in comparison.moves.items():
        say(f"{number} from {then} to {now}")
    if comparison.total.nowhere:
        say(f"{comparison.total.nowhere} could not have been served")
    if comparison.left_out:
        say(f"{comparison.left_out} left out: not made, not at an end, or without a known price")


def _row(line: Line) -> tuple[str, ...]:
    return (
        line.day,
        str(line.requests),
        str(line.changed),
        written(line.cost),
        written(line.replayed_cost),
        f"{line.seconds:.1f}",
        f"{line.replayed_seconds:.1f}",
    )


def _tell_decision(decision: Decision) -> None:
    asked = decision.asked
    size = "" if asked.size is None else f" of {asked.size}"
    for label, value in (
        ("decision", decision.id),
        ("at", datetime.fromtimestamp(decision.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("asked", f"{asked.task}, {asked.measure.images}{size}, of the model {asked.model or 'auto'}"),
        ("policy", f"{decision.policy.name}, by {decision.policy_source}"),
        *(("note", note) for note in decision.notes),
    ):
        result(f"{label + ':':<10}{printable(value)}")
    rows = [
        (
            each.deployment.name,
            "unknown" if each.price is None else written(each.price),
            f"{each.score:.2f}",
            each.reason,
        )
        for each in decision.candidates
    ]
    if rows:
        result("")
        result_table(("candidate", "price", "score", "reason"), rows, NUMBERS)
    if decision.excluded:
        result("")
        result_table(
            ("excluded", "rule", "reason"), [(each.deployment, each.rule, each.reason) for each in decision.excluded]
        )
