"""`kleinbild info`: the record inside a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import printable, result, result_json
from kleinbild.core.metadata import Record


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP that Kleinbild wrote.")],
    as_json: options.Json = False,
) -> None:
    """Show how a picture was made."""
    from kleinbild.engine.picture import read_record

    record = read_record(file)
    if as_json:
        result_json(json.loads(record.to_json()))
        return
    for name, value in rows(record):
        result(f"{name + ':':<11}{printable(value)}")


def rows(record: Record) -> list[tuple[str, str]]:
    """The record for reading."""
    references = [
        (f"image {number}", f"{reference.name or 'no file name'} (sha256 {reference.sha256})")
        for number, reference in enumerate(record.references, start=1)
    ]
    if record.mask:
        references.append(("mask", f"{record.mask.name or 'no file name'} (sha256 {record.mask.sha256})"))
    if record.canvas and record.place:
        references.append(("canvas", f"{record.canvas}, image 1 at {record.place[0]},{record.place[1]}"))
    for adapter in record.adapters:
        references.append(("adapter", f"{adapter.name} at {adapter.scale:g} (sha256 {adapter.sha256})"))
    if record.cache_references:
        references.append(("cached", "keys and values of the images, from the first step"))
    return [
        ("prompt", record.prompt),
        *references,
        ("model", f"{record.model} (weights {record.fingerprint})"),
        ("seed", str(record.seed)),
        ("size", str(record.size)),
        ("steps", str(record.steps)),
        ("guidance", f"{record.guidance:g}"),
        ("computed", f"{record.dtype} on {record.device}"),
        ("by", f"Kleinbild {record.version}"),
    ]
