"""`kleinbild usage`: what was used and what it cost, by a running server's word."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from kleinbild.cli import options
from kleinbild.cli.asked import ask
from kleinbild.cli.terminal import result_bytes, result_json, result_table
from kleinbild.client.calls import Call
from kleinbild.core.errors import RequestError

FORMATS = ("table", "csv", "focus", "json")
GROUPINGS = ("key", "project", "model", "provider", "deployment", "adapters", "day")
SUMS = ("requests", "attempts", "images", "megapixels", "cost", "corrections", "reserved")


def read_since(text: str) -> int:
    return options.span("--since", text)


def read_groups(text: str) -> str:
    for name in text.split(","):
        if name.strip() not in GROUPINGS:
            raise RequestError(f"--group-by {name.strip()!r}: not a grouping", f"use {', '.join(GROUPINGS)}")
    return text


def read_format(text: str) -> str:
    if text not in FORMATS:
        raise RequestError(f"--format {text!r}: no format", f"use {', '.join(FORMATS)}")
    return text


def usage(
    since: Annotated[
        Any,  # seconds, from text
        typer.Option(
            "--since",
            metavar="TIME",
            parser=read_since,
            show_default=False,
            help="How far back: 12h, 7d, 4w. Default: 30d.",
        ),
    ] = "30d",
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="NAMES",
            parser=read_groups,
            help="One or more of key, project, model, provider, deployment, adapters and day, with commas between. "
            "Default: one sum.",
        ),
    ] = None,
    project: Annotated[str | None, typer.Option(metavar="TEXT", help="Only that of a project.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            parser=read_format,
            show_default=False,
            help="table, csv, json, or focus: charge by charge, as FOCUS 1.2 has them. Default: table.",
        ),
    ] = "table",
    server: options.RunningServer = None,
) -> None:
    """Show what was used, and what it cost in US dollars.

    For an admin, of all projects; else of your own.

    \b
      kleinbild usage --since 7d --group-by project,model
      kleinbild usage --format focus > charges.csv

    Asks a running server, with the key in KLEINBILD_API_KEY.
    """
    groups = [name.strip() for name in group_by.split(",")] if group_by else []
    query = [("start", str(int(time.time()) - since)), *(("group_by", name) for name in groups)]
    query += [("project", project)] if project else []
    query += [("format", form)] if form in ("csv", "focus") else []
    reply = ask(server, Call("GET", f"/v1/usage?{urlencode(query)}"))
    if form in ("csv", "focus"):
        result_bytes(reply.body)
    elif form == "json":
        result_json(reply.json())
    else:
        columns = (*dict.fromkeys(groups), *SUMS)
        result_table(columns, [[str(row[name]) for name in columns] for row in reply.json()["data"]], SUMS)
