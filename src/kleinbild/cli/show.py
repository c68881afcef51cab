"""`--show`: the picture in the desktop's viewer, else in the terminal itself if that can draw pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from kleinbild.cli.terminal import say
from kleinbild.engine.picture import Picture

KITTY_CHUNK = 4096  # bytes of base64 in one escape sequence, at most


def show(picture: Picture, path: Path) -> None:
    """Shows the picture, or says why not. Never an error: the picture has been made."""
    if viewer := desktop_viewer(os.environ):
        open_with(viewer, path)
    elif sys.stderr.isatty() and (drawing := terminal_drawing(picture.to_bytes("png"), os.environ)):
        sys.stderr.write(drawing + "\n")
    else:
        say(f"nothing here can show pictures; it is in {path}")


def open_with(viewer: str, path: Path) -> None:
    """Starts the viewer and does not wait for it; its chatter must not mix with our results."""
    null = subprocess.DEVNULL
    command = [viewer, str(path.absolute())]
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)  # noqa: S603 - our file
    threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie is left


def desktop_viewer(environment: Mapping[str, str]) -> str | None:
    """The program that opens a file as a double click does, where there is a desktop."""
    if sys.platform == "win32":
        return shutil.which("explorer")
    if sys.platform == "darwin":
        return shutil.which("open")
    has_display = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return shutil.which("xdg-open") if has_display else None


def terminal_drawing(png: bytes, environment: Mapping[str, str]) -> str | None:
    """The picture as escape sequences of the terminal's own protocol (kitty's or iTerm2's), or None if it has none."""
    program, data = environment.get("TERM_PROGRAM", ""), b64encode(png).decode("ascii")
    if environment.get("TERM") in ("xterm-kitty", "xterm-ghostty") or "KONSOLE_VERSION" in environment:
        chunks = [data[at : at + KITTY_CHUNK] for at in range(0, len(data), KITTY_CHUNK)]
        heads = ["a=T,f=100,"] + [""] * (len(chunks) - 1)
        more = [1] * (len(chunks) - 1) + [0]
        return "".join(f"\033_G{h}m={m};{c}\033\\" for h, m, c in zip(heads, more, chunks, strict=True))
    if program in ("iTerm.app", "WezTerm"):
        return f"\033]1337;File=inline=1;size={len(png)}:{data}\a"
    return None
