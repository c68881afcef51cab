"""`kleinbild nano eval`: how well nano does what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import progress, result, result_json, result_table, say
from kleinbild.core.errors import ModelError

if TYPE_CHECKING:
    from kleinbild.nano.evaluate import Row
    from kleinbild.nano.variety import Variety

MAX_COUNT = 10_000
DEFAULT_COUNT = 200

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
            "--count", metavar="N", parser=read_count, show_default=False, help="Pictures a row. Default: 200."
        ),
    ] = DEFAULT_COUNT,
    sheets: Annotated[
        Path | None,
        typer.Option(
            "--sheets", metavar="FOLDER", help="Write a contact sheet for each row, right pictures framed green."
        ),
    ] = None,
    steps: options.Steps = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Measure nano on prompts and edits that it was not trained on.

    An oracle that knows nano's world judges every picture, and how much those of one prompt differ. Exits with 3 if a row
    misses its goal.
    """
    from kleinbild.cli.sheet import Sheets
    from kleinbild.engine.runtime import Engine
    from kleinbild.nano.evaluate import evaluate as run
    from kleinbild.nano.variety import NUM_PROMPTS, NUM_SEEDS, variety

    pictures = Sheets(sheets) if sheets else None
    engine = Engine(model, dtype=dtype)
    with progress(f"evaluating {model}") as bar:
        rows = run(engine, count, bar.step, pictures.add if pictures else None, steps=steps)
    with progress(f"{NUM_SEEDS} seeds of each prompt, {model}") as bar:
        varied = variety(engine, min(count, NUM_PROMPTS), bar.step, steps=steps)
    if as_json:
        result_json({"rows": [asdict(row) for row in rows], "variety": [asdict(each) for each in varied]})
    else:
        print_rows(rows)
        result("")
        print_variety(varied)
    if pictures:
        say(f"the sheets are in {pictures.save()}")
    if missed := [row.task for row in rows if row.right < row.bar]:
        raise ModelError(
            f"{model} misses its goal in {len(missed)} of {len(rows)} rows: {', '.join(missed)}", "train it further"
        )


def print_rows(rows: Sequence[Row]) -> None:
    cells = [
        (row.task, str(row.count), f"{row.right:.1%}", f"{row.low:.0%} to {row.high:.0%}", f"{row.bar:.0%}",
         "met" if row.right >= row.bar else "MISSED", decibels(row.box_psnr), decibels(row.kept_psnr))
        for row in rows
    ]  # fmt: skip
    columns = ["task", "pictures", "all right", "95 % interval", "goal", "", "PSNR in boxes", "of what stays"]
    result_table(columns, cells, numbers=["pictures", "all right", "goal", "PSNR in boxes", "of what stays"])


def print_variety(varied: Sequence[Variety]) -> None:
    cells = [
        (each.task, str(each.seeds), f"{each.ways:.1f}", f"{each.seen:.1f}", f"{each.expected:.1f}") for each in varied
    ]
    columns = ["left open", "seeds", "ways", "seen", "by chance"]
    result_table(columns, cells, numbers=columns[1:])


def decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"
