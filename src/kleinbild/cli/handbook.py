"""Writes docs/cli.md from the commands themselves: `python -m kleinbild.cli.handbook > docs/cli.md`.

A test compares the two, so that the page cannot say anything else than the help.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import typer

from kleinbild.cli.app import EXIT_CODES, app
from kleinbild.cli.terminal import result
from kleinbild.core.sizes import MAX_ASPECT
from kleinbild.engine.files import MAX_FILE_BYTES
from kleinbild.engine.references import (
    FORMATS,
    MAX_DECODED_PIXELS,
    MAX_REFERENCE_PIXELS,
    MIN_SIDE,
)

MAX_REFERENCE_SIDE = math.isqrt(MAX_REFERENCE_PIXELS)

PREFACE = """\
# The command `kleinbild`

<!-- Written by `python -m kleinbild.cli.handbook > docs/cli.md`; change the help in src/kleinbild/cli instead. -->

A line that starts with no command is a prompt: `kleinbild "a fox on a mint background"` means
`kleinbild generate "a fox on a mint background"`. A single word that is close to a command's name is taken for a
mistyped command.

**Results go to stdout, everything else to stderr.** Results are the paths of the pictures, one a line; with `--json` an
object for each (an array where `-n` asks for more than one) with `path`, `seed`, `model`, `size`, `steps`, `notes` (what
was rounded or scaled, in words), `timings` (seconds by stage) and `record` (what stands inside the file). The seed is
always told on stderr. Colours and the progress bar appear on terminals only; `NO_COLOR` is respected.

**Where pictures go.** Without `-o`, into the current folder as `PROMPT-SEED.png`; a name that is taken gets `-2`, `-3`, ….
`-o FILE` is overwritten. `-o DIR` (a folder that exists, or a path that ends in `/`, which is made) puts names as above
there. With `-n` and a FILE they are `FILE-1`, `FILE-2`, …. A FILE's folder must exist. Files are written under a
temporary name and moved, so that there is never half a picture.

**Where they are made.** In this process, unless a server runs: that of `--server` or `KLEINBILD_BASE_URL`, else one that
`kleinbild serve` started on this machine. A running server has its model loaded already, so that is quicker; the picture
is the same. stderr says which server it is, or why one is not used: what only this process can do (`--dtype`,
`--offload`, `--canvas`, an exact replay) is done here. `--local` never asks a server. A server's key is in
`KLEINBILD_API_KEY`.

**Errors** are two lines on stderr: what, and what to do. `--debug` (or `KLEINBILD_DEBUG=1`) shows the traceback.

| exit code | meaning |
|---|---|
"""
REPLAY = """
A replay gives the same pixels on the same kind of device and with the same weights; otherwise it says what differs. The
pictures that an edit was made from are found by their recorded names beside FILE or in the current folder if their
content is the same, or are given with `-i`, all of them and in order; so is its mask, or it is given with `--mask`.
FILE's own pixels are compared with the result unless it is a JPEG.
"""
EDITS = f"""
**Pictures that are given** are {", ".join(FORMATS[:-1])} or {FORMATS[-1]} files of at most {MAX_FILE_BYTES // 2**20} MiB
and {MAX_DECODED_PIXELS // 10**6} megapixels, with sides of at least {MIN_SIDE} pixels. An IMAGE is at most {MAX_ASPECT} times as long as wide, or
what the model's own sizes allow (nano: 4 times). Only memory limits their number. One of more than {MAX_REFERENCE_SIDE}x{MAX_REFERENCE_SIDE} pixels
in all, or more than the model makes, is shrunk for the model; one with a side below the model's least is enlarged.
Pictures stand upright as their EXIF data says, transparency becomes white, and of an animation the first
frame counts.

**Sizes.** Without `--size` the picture has the size of the first IMAGE, whatever that is. Sides that are no multiples of 16
are padded for the model and cut back; nothing is shifted or resampled. An IMAGE beyond the model's limits is scaled to
the area at which the model is at its best, and the result is scaled back. A `--size` is rounded to multiples of 16. All
of this but the padding is told on stderr.

**Masks** mean what they mean in OpenAI's API: transparent is made anew, opaque stays, between the two in proportion. Any
program with an eraser makes one: open the picture, erase what shall change, save it as a PNG under another name. What
is opaque is the input's bit for bit in a PNG or WebP (a JPEG is lossy by itself). The seam lies within what is
transparent, 4 pixels wide before any scaling, so erase a little more than the thing that shall go. `--canvas` is a mask
around the first IMAGE, which is put at `--place`. Further images may be given with both, as without.
"""


def pages() -> str:
    """The whole page."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    root = typer.main.get_command(app)
    return PREFACE + codes + "".join(section for name, command in commands(root) for section in describe(name, command))


def commands(group: Any, prefix: str = "kleinbild") -> Iterator[tuple[str, Any]]:
    """All commands with their full names, groups before their members. Groups without options of their own are left out."""
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        if not hasattr(command, "commands"):
            yield full, command
            continue
        if command.invoke_without_command:
            yield full, command
        yield from commands(command, full)


def describe(name: str, command: Any) -> Iterator[str]:
    """Heading, help, parameters and examples of one command."""
    shown = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = " ".join(parameter.metavar for parameter in shown if parameter.param_type_name == "argument")
    yield f"\n## `{' '.join(filter(None, (name, arguments, '[OPTIONS]')))}`\n{inspect.cleandoc(command.help or '')}\n\n"
    yield "| | | |\n|---|---|---|\n" + "".join(map(row, shown))
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines()[2:]]
        yield "\n```sh\n" + "\n".join(lines) + "\n```\n"
    if name == "kleinbild generate":
        yield REPLAY
    if name == "kleinbild edit":
        yield EDITS


def row(parameter: Any) -> str:
    """A parameter's names, value and help."""
    is_option = parameter.param_type_name == "option"
    names = (
        ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len)) if is_option else f"`{parameter.metavar}`"
    )
    value = f"`{parameter.metavar}`" if is_option and parameter.metavar else ""
    cells = (names, value, parameter.help + (" Required." if is_option and parameter.required else ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    result(pages().rstrip("\n"))
