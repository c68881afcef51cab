"""`kleinbild ledger`: a provider's own statement, compared with what was booked, by a running server."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.asked import ask
from kleinbild.cli.terminal import result_json, result_table, say
from kleinbild.client.calls import Call
from kleinbild.core.errors import RequestError
from kleinbild.core.money import dollars, nanos, of_nanos, written

RECONCILE_S = 600.0  # a statement may have many lines, each with a transaction of its own
MONEY = ("booked", "stated", "difference")
ledger = typer.Typer(help="What was booked, and what providers say.", no_args_is_help=True)


@ledger.callback()
def group() -> None:
    """What was booked, and what providers say."""


@ledger.command()
def reconcile(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Its name in the settings.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .csv with names of columns in its first line, or a .jsonl.")
    ],
    id_column: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="What it calls the ids: those of attempts, or the provider's own of its requests. Default: id.",
        ),
    ] = "id",
    cost_column: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="What it calls the US dollars. Default: cost.")
    ] = "cost",
    server: options.RunningServer = None,
    as_json: options.Json = False,
) -> None:
    """Compare a provider's statement with what was booked, and book the differences. Once more, it changes nothing.

    What nobody knew of ends as the statement says. What had ended at another cost is corrected, as an entry of its own.

    \b
      kleinbild ledger reconcile fal statement.csv --id-column request_id --cost-column amount

    Asks a running server, with the key of an admin in KLEINBILD_API_KEY.
    """
    body = {"provider": provider, "lines": read_statement(file, id_column, cost_column)}
    found = ask(server, Call("POST", "/v1/admin/reconcile", body), RECONCILE_S).json()
    if as_json:
        result_json(found)
    else:
        result_table(("id", "what", *MONEY), list(_rows(found)), MONEY)
    total = sum((Decimal(each["difference"]) for each in found["corrected"]), Decimal(0))
    say(
        f"{len(body['lines'])} ids: {len(found['settled'])} settled, {len(found['corrected'])} corrected (${written(total)}), "
        f"{len(found['under_way'])} under way, {len(found['unmatched'])} not found; the others agree"
    )


def read_statement(file: Path, id_column: str, cost_column: str) -> list[dict[str, str]]:
    """Its lines as the API has them, those of one id added up. Raises RequestError that names the line."""
    sums: dict[str, Decimal] = {}
    for number, row in _rows_of(file):
        for column in (id_column, cost_column):
            if row.get(column) in (None, ""):
                raise RequestError(
                    f"line {number} of {file} has no {column!r}, it has {', '.join(map(str, row)) or 'nothing'}",
                    "say with --id-column and --cost-column which they are",
                )
        try:
            cost = dollars(row[cost_column])
        except RequestError as error:
            raise RequestError(f"line {number} of {file}: {error.message}", error.hint) from error
        of = str(row[id_column]).strip()
        sums[of] = sums.get(of, Decimal(0)) + cost
    if not sums:
        raise RequestError(f"{file} has no lines", "give a statement with an id and a cost in each line")
    return [{"id": of, "cost": written(of_nanos(nanos(cost)))} for of, cost in sums.items()]


def _rows_of(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """With the numbers of their lines."""
    kind = file.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise RequestError(f"{file} is neither .csv nor .jsonl", "give one of these")
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not text in UTF-8", "save it as that") from error
    if kind == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise RequestError(f"line {reader.line_num} of {file} is no CSV: {error}", "save it anew") from error
    else:
        yield from _objects(file, text.splitlines())


def _objects(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=Decimal)  # exactly as it is written
        except ValueError as error:
            raise RequestError(f"line {number} of {file} is not JSON: {error}", "write an object a line") from error
        if not isinstance(row, dict):
            raise RequestError(f"line {number} of {file} is no object", "write an object a line")
        yield number, row


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for each in found["corrected"]:
        yield each["attempt"], "corrected", each["booked"], each["stated"], each["difference"]
    for name, what in (("settled", "settled"), ("under_way", "under way"), ("unmatched", "not found")):
        for of in found[name]:
            yield of, what, "-", "-", "-"
