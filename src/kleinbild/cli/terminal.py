"""What the command says, and where: results on stdout, everything else on stderr.

Colours and the progress bar appear on a terminal only and obey NO_COLOR; rich sees to both, and is imported when the
first word is said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, TextIO

from kleinbild.core.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class ReaderLeftError(Exception):
    """The program that reads our stdout is gone, as in `kleinbild models | head -1`. No error worth words."""


def result(text: str) -> None:
    """A line of result on stdout, at once, so that the next program of a pipe can start."""
    with _stdout() as stream:
        stream.write(text + "\n")
        stream.flush()


def result_json(value: object) -> None:
    result(json.dumps(value, indent=2))


def result_bytes(file: bytes) -> None:
    with _stdout() as stream:
        stream.buffer.write(file)
        stream.buffer.flush()


def result_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """A table on stdout, one line a row, nothing wrapped or cut. Columns named in `numbers` stand to the right."""
    lines = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(columns, line, widths, strict=True)
        aligned = [cell.rjust(width) if name in numbers else cell.ljust(width) for name, cell, width in cells]
        result("  ".join(aligned).rstrip())


def say(text: str, style: str = "") -> None:
    """A line for the person at the terminal, on stderr."""
    if not style:
        sys.stderr.write(printable(text) + "\n")
        return
    from rich.text import Text

    stderr().print(Text(printable(text), style))


def warn(text: str) -> None:
    say(f"warning: {text}", "yellow")


def show_error(what: str, what_to_do: str) -> None:
    """One line of what, one line of what to do."""
    from rich.text import Text

    for label, style, text in (("error: ", "bold red", what), ("hint:  ", "bold", what_to_do)):
        stderr().print(Text.assemble((label, style), printable(text)))


def printable(text: str) -> str:
    """`text` in one line, with control characters shown instead of sent to the terminal."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in line)


def when(seconds: float | None) -> str:
    """A time in one column."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


class Steps:
    """How far the work is: first a stage without a known end, then steps."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def stage(self, description: str) -> None:
        self._bar.reset(self._task, description=description, total=None, count="")

    def step(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total, count=f"{done}/{total}")


@contextmanager
def progress(description: str, *, in_bytes: bool = False) -> Iterator[Steps]:
    """A bar on stderr while the block runs; nothing if stderr is no terminal."""
    from rich import progress as rich

    console, same_terminal = stderr(), sys.stdout is not None and sys.stdout.isatty()  # then results go above the bar
    numbers = (
        (rich.DownloadColumn(), rich.TransferSpeedColumn()) if in_bytes else (rich.TextColumn("{task.fields[count]}"),)
    )
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), *numbers, rich.TimeElapsedColumn())
    with rich.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=same_terminal
    ) as bar:
        yield Steps(bar, bar.add_task(description, total=None, count=""))


@cache
def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def flush() -> None:
    """What is still buffered goes out while errors can still be told."""
    if sys.stdout is not None:
        with _stdout() as stream:
            stream.flush()


def keep_file_names() -> None:
    """File names need not be valid text: they leave as they came in."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """stdout, its failures in words."""
    if sys.stdout is None:
        raise OutputError("stdout is closed", "give it a place to go to, for example > /dev/null")
    try:
        yield sys.stdout
    except BrokenPipeError as error:
        raise ReaderLeftError from error
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror or error}", "send it to another place") from error
