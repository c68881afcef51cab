"""`kleinbild keys`: who may use the server. Works on its data, whether it runs or not; it notices within 5 seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from kleinbild.cli import options
from kleinbild.cli.serve import Config
from kleinbild.cli.terminal import printable, result, result_json, result_table, say, when
from kleinbild.core.callers import ROLES, Limits
from kleinbild.core.errors import RequestError

if TYPE_CHECKING:
    from kleinbild.cli.keyring import Held, Keyring
    from kleinbild.storage.audit import Entry
    from kleinbild.storage.budgets import Standing
    from kleinbild.storage.keys import Key

MAX_ENTRIES = 1000
KNOWN = ("id", "object", "created_at")  # of an entry's details: it says so otherwise
NOTICED = "a server that runs notices within 5 seconds"
BUDGET = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?:/([1-9]\d{0,3}[hd]|month))?", re.ASCII)
T = TypeVar("T")

keys = typer.Typer(help="Who may use the server: its keys, and what was done with them.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The server's folder, as `kleinbild serve`.")]
KeyName = Annotated[str, typer.Argument(metavar="KEY", help="A key's id, or how it starts: kb_ and 8 letters.")]


def read_lifetime(text: str) -> int:
    return options.span("--expires", text)


def read_role(text: str) -> str:
    if text not in ROLES:
        raise RequestError(f"--role {text!r}: no role", f"use {', '.join(ROLES)}")
    return text


def read_budget(text: str) -> dict[str, str | None]:
    """An amount and its window, as the API has them."""
    match = BUDGET.fullmatch(text.strip())
    window = match[2] if match else None
    if match is None or (window not in (None, "month") and options.span("--budget", window) > options.YEAR_S):
        raise RequestError(
            f"--budget {text!r}: not a budget",
            "write US dollars, and after how long they are there anew: 5.00/30d, 0.50/12h, 20/month, or 100 for good",
        )
    return {"amount": match[1], "window": window}


def read_limit(text: str) -> int:
    return options.whole_number("a limit of", text, 1, 10**9)


def read_count(text: str) -> int:
    return options.whole_number("--limit", text, 1, MAX_ENTRIES)


def limit(name: str, text: str) -> Any:
    return typer.Option(name, metavar="N", parser=read_limit, help=f"{text} Default: the parent's, else the server's.")


@keys.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="TEXT", show_default=False, help="What it is for.")] = "key",
    owner: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Whose it is. Default: the parent's owner, else local.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Keys of a project share its jobs, pictures and files. Default: the parent's, else local, "
            "which is where a server without keys keeps them.",
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE",
            parser=read_role,
            help="viewer (looks), member (makes pictures, and keys below his own) or admin (all keys). "
            "Default: member.",
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The key above it: what that may not, this may not, and they are revoked together."
        ),
    ] = None,
    expires: Annotated[
        int | None,
        typer.Option(
            metavar="TIME", parser=read_lifetime, help="How long it is good: 90m, 12h, 30d, 4w. Default: for ever."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A model that it may use; may be repeated. Default: all."),
    ] = None,
    routes: Annotated[
        list[str] | None,
        typer.Option(
            "--route",
            metavar="PATH",
            help="What it may use, such as /v1/images with all that is below; may be repeated. Default: all.",
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, limit("--requests-per-minute", "Requests a minute.")] = None,
    images_per_minute: Annotated[int | None, limit("--images-per-minute", "Pictures a minute.")] = None,
    megapixels_per_minute: Annotated[int | None, limit("--megapixels-per-minute", "Megapixels a minute.")] = None,
    concurrent_jobs: Annotated[int | None, limit("--concurrent-jobs", "Jobs at once.")] = None,
    budget: Annotated[
        Any,  # a dict would be none of typer's types
        typer.Option(
            metavar="AMOUNT/TIME",
            parser=read_budget,
            help="US dollars that it, with all keys below it, may spend in each 12h, 30d or month, such as 5.00/30d; "
            "without /TIME, for good. Default: what those above it leave.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            parser=options.read_policy,
            help="How its requests are routed: balanced, cost, latency, quality, or weights such as cost=0.7,quality=0.3. "
            "Default: the parent's, its project's, or the server's.",
        ),
    ] = None,
    data: Data = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """Make a key. It is shown this once: alone on stdout, what it may on stderr.

    \b
      export KLEINBILD_API_KEY=$(kleinbild keys create --name laptop)
    """
    given = {
        "name": name,
        "owner": owner,
        "project": project,
        "role": role,
        "models": models or None,
        "routes": routes or None,
        "expires_at": None if expires is None else int(time.time()) + expires,
        "policy": policy,
        "budget": budget,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    limits = Limits(requests_per_minute, images_per_minute, concurrent_jobs, megapixels_per_minute)
    _tell_new(_on_keyring(data, config, lambda ring: ring.create(wanted, limits, parent), make=True), as_json)


@keys.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(metavar="TEXT", help="Only those of a project.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """List the keys, oldest first. None is shown but for how it starts."""
    held = _on_keyring(data, config, lambda ring: ring.listed())
    every = {each.key.id: each.key for each in held}
    shown = [each for each in held if project in (None, each.key.rights.project)]
    if as_json:
        result_json([each.as_object() for each in shown])
        return
    columns = ("key", "starts with", "name", "owner", "project", "role", "is", "last used", "expires", "left", "parent")
    result_table(columns, [_row(each, every) for each in shown])


@keys.command()
def show(key: KeyName, data: Data = None, config: Config = None, as_json: options.Json = False) -> None:
    """Show what a key may."""
    found = _on_keyring(data, config, lambda ring: ring.find(key))
    if as_json:
        result_json(found.as_object())
        return
    for label, value in _described(found):
        result(f"{label + ':':<23}{printable(value)}")


@keys.command()
def revoke(key: KeyName, data: Data = None, config: Config = None, as_json: options.Json = False) -> None:
    """Make a key, and all below it, good no longer. There is no way back; they stay in the list."""
    revoked = _on_keyring(data, config, lambda ring: ring.revoke(key))
    if as_json:
        result_json(revoked.as_object())
    say(f"{revoked.key.prefix}… ({revoked.key.name}) is revoked, with all below it; {NOTICED}")


@keys.command()
def rotate(key: KeyName, data: Data = None, config: Config = None, as_json: options.Json = False) -> None:
    """Make a new text for a key, shown this once, alone on stdout. The one before is good no longer."""
    _tell_new(_on_keyring(data, config, lambda ring: ring.rotate(key)), as_json)


@keys.command()
def audit(
    limit: Annotated[
        int,
        typer.Option(metavar="N", parser=read_count, show_default=False, help="How many entries. Default: 100."),
    ] = 100,
    data: Data = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """List what was done with keys, here and over HTTP, newest first."""
    from kleinbild.gateway.administer import audit_object

    entries = _on_keyring(data, config, lambda ring: ring.entries(limit))
    if as_json:
        result_json([audit_object(entry) for entry in entries])
        return
    rows = [(when(entry.at), entry.actor, entry.action, entry.target, _details(entry)) for entry in entries]
    result_table(("when", "who", "what", "key", "details"), rows)


def _on_keyring(
    data: Path | None, config: Path | None, do: Callable[[Keyring], Awaitable[T]], *, make: bool = False
) -> T:
    """What `do` gives for the keys of the server with these settings."""
    import asyncio

    from kleinbild.cli.keyring import open_keyring
    from kleinbild.gateway.settings import read_configuration

    settings = read_configuration(config, {} if data is None else {"server": {"data": data}}).settings

    async def run() -> T:
        async with open_keyring(settings, make=make) as ring:
            return await do(ring)

    return asyncio.run(run())


def _tell_new(new: Held, as_json: bool) -> None:
    if as_json:
        result_json(new.as_object())
    else:
        result(new.text or "")
    for label, value in _described(new):
        say(f"{label}: {value}")
    say(f"Keep the key: it is shown this once; {NOTICED}.")


def _row(held: Held, every: Mapping[str, Key]) -> tuple[str, ...]:
    from kleinbild.core.money import written
    from kleinbild.storage.keys import state

    key = held.key
    line = [key]
    while line[-1].parent is not None:
        line.append(every[line[-1].parent])
    rights = key.rights
    names = (key.id, key.prefix, key.name, key.owner, rights.project, rights.role)
    left = "-" if held.standing is None else f"${written(held.standing.remaining)}"
    times = (when(key.last_used_at), when(rights.expires_at))
    return (*names, state(line, time.time()), *times, left, key.parent or "-")


def _described(held: Held) -> list[tuple[str, str]]:
    key = held.key
    rights = key.rights
    return [
        ("key", f"{key.id} ({key.prefix}…)"),
        ("name", key.name),
        ("owner", key.owner),
        ("project", rights.project),
        ("role", rights.role),
        *((("parent", key.parent),) if key.parent else ()),
        ("models", "all" if rights.models is None else ", ".join(rights.models)),
        ("routes", "all" if rights.routes is None else ", ".join(rights.routes)),
        *((name.replace("_", " "), str(value)) for name, value in asdict(rights.limits).items() if value is not None),
        *((("policy", key.policy),) if key.policy else ()),
        *((("budget", _budget(held.standing)),) if held.standing else ()),
        ("created", when(key.created_at)),
        ("expires", when(rights.expires_at)),
        *((("revoked", when(key.revoked_at)),) if key.revoked_at else ()),
        *((("last used", when(key.last_used_at)),) if key.last_used_at else ()),
    ]


def _budget(standing: Standing) -> str:
    from kleinbild.core.money import written

    amount, window = written(standing.budget.amount), standing.budget.window
    left = (
        f"${written(standing.remaining)} left, ${written(standing.spent)} spent, ${written(standing.reserved)} reserved"
    )
    until = f"; anew {when(standing.resets_at)}" if standing.resets_at else ""
    return f"${amount}{'' if window is None else f' each {window}'} ({left}{until})"


def _details(entry: Entry) -> str:
    """What was given, without what every entry has."""
    told = {name: _text(name, value) for name, value in entry.details.items() if name not in KNOWN}
    return ", ".join(f"{name} {text}" for name, text in told.items() if text)


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return " ".join(f"{one} {limit}" for one, limit in value.items() if limit is not None)
    if name.endswith("_at"):
        return when(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
