"""`kleinbild nano eval`: how well nano does what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import progress, result_json, result_table, say
from kleinbild.core.errors import ModelError

if TYPE_CHECKING:
    from kleinbild.nano.evaluate import Row

MAX_COUNT = 10_000
DEFAULT_COUNT = 100

nano = typer.Typer(help="The built-in model: its evaluation.")


@nano.callback()
def group() -> None:
    """The built-in model: its evaluation."""


def read_count(text: str) -> int:
    return options.whole_number("--count", text, 1, MAX_COUNT)


@nano.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="MODEL", show_default=False, help="Default: nano. Also nano-base, or a path."
        ),
    ] = "nano",
    count: Annotated[
        int,
        typer.Option(
            "--count", metavar="N", parser=read_count, show_default=False, help="Pictures a row. Default: 100."
        ),
    ] = DEFAULT_COUNT,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Write the first pictures of each row into one, right ones framed green."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure nano on prompts and edits that it was not trained on.

    An oracle that knows nano's world judges every picture. Exits with 3 if a row misses its goal.
    """
    from kleinbild.cli.sheet import Sheet
    from kleinbild.nano.evaluate import evaluate as run

    pictures = Sheet(sheet) if sheet else None
    with progress(f"evaluating {model}") as bar:
        rows = run(model, count, bar.step, pictures.add if pictures else None)
    if as_json:
        result_json([asdict(row) for row in rows])
    else:
        print_rows(rows)
    if pictures:
        say(f"the pictures are in {pictures.save()}")
    if missed := [row.task for row in rows if row.bar is not None and row.right < row.bar]:
        raise ModelError(
            f"{model} misses its goal in {len(missed)} of {len(rows)} rows: {', '.join(missed)}", "train it further"
        )


def print_rows(rows: Sequence[Row]) -> None:
    cells = [
        (row.task, str(row.count), percent(row.right), percent(row.bar), verdict(row), f"{row.box_psnr:.1f} dB")
        for row in rows
    ]
    columns = ["task", "pictures", "all right", "goal", "", "PSNR in boxes"]
    result_table(columns, cells, numbers=["pictures", "all right", "goal", "PSNR in boxes"])


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def verdict(row: Row) -> str:
    if row.bar is None:
        return ""
    return "met" if row.right >= row.bar else "MISSED"
