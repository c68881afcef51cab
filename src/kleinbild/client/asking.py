"""From arguments to the JSON of a job: what a user says in Python, in the fields that the server reads."""

from __future__ import annotations

import base64
import builtins
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from PIL import Image

from kleinbild.client.calls import Call
from kleinbild.client.picture import RemotePicture
from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import RequestError
from kleinbild.core.sizes import Size, parse_size
from kleinbild.engine.files import read_file
from kleinbild.engine.picture import Picture, png_file


@dataclass(frozen=True, slots=True)
class NamedFile:
    """An encoded picture and its file name, if it has one."""

    name: str
    bytes: builtins.bytes = field(repr=False)


Given = str | os.PathLike[str] | bytes | Image.Image | Picture | RemotePicture | NamedFile | Mapping[str, str]
"""A picture given: a file's path or its bytes, a URL, a Pillow image, a picture made before, or {"file_id": …}."""


class PictureOptions(TypedDict, total=False):
    """What may be asked for beside the prompt; what is left out or None, the server and the model settle.

    `images`: one picture or several to start from, `mask`: transparent where the first one is made anew.
    `size`: "WxH" or (W, H). `seed`: of the first picture, the following get the next ones. `previews`: how many of each
    picture are sent on the way. `adapters`: by name, or as `AdapterUse` with a strength. `strict`: refuse what the model cannot honour, instead of a warning. `extra`: further
    fields of the server's `input`. `metadata` comes back with the job. `webhook`: id of a registered one.
    `idempotency_key`: of your own, so that even a second process gets the first one's job.
    """

    model: str | None
    images: Given | Sequence[Given]
    mask: Given | None
    size: str | tuple[int, int] | Size | None
    seed: int | None
    steps: int | None
    guidance: float | None
    strength: float | None
    output_format: Literal["png", "jpeg", "webp"] | None
    output_compression: int | None
    quality: str | None
    background: str | None
    adapters: Sequence[str | AdapterUse]
    cache_references: bool | None
    previews: int | None
    strict: bool | None
    extra: Mapping[str, Any]
    metadata: Mapping[str, str]
    webhook: str | None
    idempotency_key: str | None


def submit_call(
    prompt: str,
    *,
    n: int | None = None,
    images: Given | Sequence[Given] = (),
    mask: Given | None = None,
    size: str | tuple[int, int] | Size | None = None,
    previews: int | None = None,
    extra: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    output_format: str | None = None,
    output_compression: int | None = None,
    quality: str | None = None,
    background: str | None = None,
    adapters: Sequence[str | AdapterUse] = (),
    cache_references: bool | None = None,
    strict: bool | None = None,
) -> Call:
    """The call that makes a job of all this. Its idempotency key makes it safe to send again."""
    files = as_list(images)
    said = {
        "prompt": prompt,
        "model": model,
        "n": n,
        "images": [picture_json(one) for one in files] or None,
        "mask": None if mask is None else picture_json(mask),
        "size": None if size is None else size_text(size),
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "strength": strength,
        "output_format": output_format,
        "output_compression": output_compression,
        "quality": quality,
        "background": background,
        "adapters": [adapter_json(each) for each in adapters] or None,
        "cache_references": cache_references,
        "partial_images": previews,
        "stream": True if previews else None,  # as OpenAI has it: previews are a stream's
        "strict": strict,
        **(extra or {}),
    }
    body: dict[str, Any] = {
        "task": "image.edit" if files else "image.generate",
        "input": {name: value for name, value in said.items() if value is not None},
    }
    body |= {"webhook": webhook} if webhook else {}
    body |= {"metadata": dict(metadata)} if metadata else {}
    return Call("POST", "/v1/jobs", body, headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex})


def adapter_json(adapter: str | AdapterUse) -> dict[str, Any]:
    """As the server reads it. Raises RequestError for what is none."""
    use = AdapterUse(adapter) if isinstance(adapter, str) else adapter
    return {"name": use.name} if use.scale is None else {"name": use.name, "scale": use.scale}


def size_text(size: str | tuple[int, int] | Size) -> str:
    """`size` as the server reads it. Raises SizeError for what is none."""
    if isinstance(size, tuple):
        size = "x".join(map(str, size))
    if isinstance(size, str):
        return size if size == "auto" else str(parse_size(size))
    return str(size)


def as_list(images: Given | Sequence[Given]) -> list[Given]:
    """One picture or several as several."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def picture_json(given: Given) -> dict[str, str]:
    """A picture given, as OpenAI's JSON has it: by URL, by file id, or whole as a data URL, which keeps its name."""
    opened = open_given(given)
    if not isinstance(opened, NamedFile):
        return dict(opened)
    name = f";name={quote(opened.name, safe='')}" if opened.name else ""
    return {
        "image_url": f"data:{media_type(opened.bytes)}{name};base64,{base64.b64encode(opened.bytes).decode('ascii')}"
    }


def open_given(given: Given) -> NamedFile | Mapping[str, str]:
    """The file of a picture that is here; what is elsewhere as JSON. Raises PictureError, or RequestError for no picture."""
    if isinstance(given, NamedFile | Mapping):
        return given
    if isinstance(given, str) and given.startswith(("http://", "https://", "data:")):
        return {"image_url": given}
    if isinstance(given, str | os.PathLike):
        return NamedFile(Path(given).name, read_file(given))
    return NamedFile("", _encoded(given))


def _encoded(given: bytes | Image.Image | Picture | RemotePicture) -> bytes:
    if isinstance(given, bytes):
        return given
    if isinstance(given, RemotePicture):
        return given.bytes
    if isinstance(given, Picture):
        return given.to_bytes("png")
    if isinstance(given, Image.Image):
        return png_file(given)
    raise RequestError(f"a {type(given).__name__} is no picture", "give a path, bytes, a URL or a Pillow image")


def upload_call(file: NamedFile) -> Call:
    """The call that sends a picture by itself; the server forgets it after an hour."""
    return Call(
        "POST",
        "/v1/files",
        file=(file.name or "picture", file.bytes),
        form={"purpose": "vision", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
    )


def media_type(file: bytes) -> str:
    """What the first bytes say; the server looks for itself."""
    if file.startswith(b"\x89PNG"):
        return "image/png"
    if file.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return "image/webp"
    if file.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "application/octet-stream"
