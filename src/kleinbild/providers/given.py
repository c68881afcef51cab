"""Pictures as services take them: as data URLs, and as parts of a form."""

from __future__ import annotations

import pybase64

from kleinbild.safety.pictures import sniff


def media_type(file: bytes) -> str:
    return f"image/{sniff(file).lower()}"


def data_url(file: bytes) -> str:
    """In a thread where the file may be large."""
    return f"data:{media_type(file)};base64,{pybase64.b64encode_as_string(file)}"


def part(name: str, file: bytes) -> tuple[str, bytes, str]:
    """A file of a form, named after what it is."""
    kind = media_type(file)
    return f"{name}.{kind.removeprefix('image/')}", file, kind
