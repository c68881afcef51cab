"""A table that says what belongs together: `metadata.jsonl` or `.csv` (Hugging Face's ImageFolder), kohya's and musubi's
jsonl, DiffSynth's csv. Its columns have many names; which one means what stands here, in one place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kleinbild.core.errors import RequestError
from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import Folder, counted, named
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about

TARGETS = ("file_name", "image", "image_path", "target", "target_image", "output", "output_image", "edited_image")
CAPTIONS = ("caption", "text", "prompt", "instruction", "edit_prompt", "edit_instruction")
REFERENCES = re.compile(
    r"(?:control|controls|reference|references|source|input|conditioning|edit|original)"
    r"(?:_?(?:image|images|path|paths|file|files))?(?:_?(\d{1,2}))?(?:_file_names?|_path)?"
)
MASKS = ("mask", "mask_path", "mask_image", "mask_file_name")
REPEATS = ("repeats", "num_repeats")
MAX_TABLE_BYTES = 2**30


def seen(folder: Folder) -> str:
    return f"the table {named(list(folder.tables))}" if folder.tables else ""


def read(folder: Folder, asked: Asked) -> Reading:
    if len(folder.tables) > 1:
        raise RequestError(
            f"{folder.path} holds several tables: {named(list(folder.tables))}", "name the one to use by its path"
        )
    return read_table(folder.path / folder.tables[0], asked)


def read_table(path: Path, asked: Asked) -> Reading:
    """The examples of a table's lines. Raises RequestError that names the lines that are wrong."""
    rows = _rows(path)
    if not rows:
        raise RequestError(f"{path} holds no line", "one line for each picture")
    columns = _Columns(path, {name for _, row in rows for name in row})
    examples, missing = [], []
    for line, row in rows:
        example = _example(path, line, row, columns, asked)
        missing += [f"line {line}: {file}" for file in example.files if not file.is_file()]
        examples.append(example)
    if missing:
        raise RequestError(
            f"{path} names files that are not there: {named(missing)}",
            "paths are seen from the folder that the table is in",
        )
    notes = about(examples, f"told by {path.name}")
    if columns.unused:
        notes += (f"{counted(len(columns.unused), 'column')} of {path.name} not used: {named(list(columns.unused))}",)
    return Reading(tuple(examples), notes)


class _Columns:
    """Which column means what."""

    def __init__(self, path: Path, names: set[str]) -> None:
        self._path, self._names = path, names
        references = [name for name in names if REFERENCES.fullmatch(name)]
        self.target = self._one(TARGETS, "the picture", needed=True)
        self.caption = self._one(CAPTIONS, "the caption")
        self.mask = self._one(MASKS, "the mask")
        self.repeats = self._one(REPEATS, "repeats")
        self.references = sorted(references, key=_place)
        known = {self.target, self.caption, self.mask, self.repeats, *references}
        self.unused = tuple(sorted(names - known))

    def _one(self, possible: tuple[str, ...], what: str, *, needed: bool = False) -> str:
        found = [name for name in possible if name in self._names]
        if len(found) > 1:
            raise RequestError(
                f"{self._path} has several columns for {what}: {', '.join(found)}", "keep one, or name the others anew"
            )
        if needed and not found:
            raise RequestError(
                f"{self._path} has no column for {what}; it has {named(sorted(self._names))}",
                f"call it {possible[0]} (or {', '.join(possible[1:])})",
            )
        return found[0] if found else ""


def _place(name: str) -> tuple[int, str]:
    match = REFERENCES.fullmatch(name)
    return (int(match[1]) if match and match[1] else 0), name


def _example(path: Path, line: int, row: Mapping[str, Any], columns: _Columns, asked: Asked) -> Example:
    target = str(row.get(columns.target) or "")
    if not target:
        raise RequestError(f"{path}, line {line}, names no picture in {columns.target}", "name one, or remove the line")
    references = [file for name in columns.references for file in _files(path, line, name, row.get(name))]
    masks = _files(path, line, columns.mask, row.get(columns.mask))
    return Example(
        target=_resolved(path, line, target, asked),
        caption=_caption(path, line, row.get(columns.caption)) or asked.root_caption,
        references=tuple(_resolved(path, line, file, asked) for file in references),
        mask=_resolved(path, line, masks[0], asked) if masks else None,
        repeats=_repeats(path, line, row.get(columns.repeats)),
        name=f"{target} (line {line})",
    )


def _caption(path: Path, line: int, value: object) -> str:
    if value is None or isinstance(value, str):
        return (value or "").strip()
    raise RequestError(f"{path}, line {line}: the caption is {value!r}, no text", "write it in quotes")


def _repeats(path: Path, line: int, value: object) -> int:
    text = "1" if value in (None, "") else str(value)
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise RequestError(f"{path}, line {line}: {value!r} repeats", "give a whole number from 1")
    return int(text)


def _files(path: Path, line: int, column: str, value: object) -> list[str]:
    """One file or a list of them; a table of text holds a list as JSON."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RequestError(f"{path}, line {line}: {column} is no list", 'write it as ["a.png", "b.png"]') from error
    files = value if isinstance(value, list) else [value]
    named_files = [file for file in files if isinstance(file, str) and file]
    if len(named_files) < len(files):
        raise RequestError(f"{path}, line {line}: {column} is {value!r}, no file's name", "name files")
    return named_files


def _resolved(path: Path, line: int, file: str, asked: Asked) -> Path:
    found = path.parent / file
    if asked.within is not None and not found.resolve().is_relative_to(asked.within.resolve()):
        raise RequestError(
            f"{path.name}, line {line}: {file} leads out of what was given", "name files that lie beside the table"
        )
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise RequestError(f"{path} is larger than {MAX_TABLE_BYTES // 2**20} MiB", "divide it")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not text in UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from error
    return _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise RequestError(f"{path}, line {reader.line_num}: {error}", "quote texts that hold commas") from error
    if long := [str(line) for line, row in rows if None in row or None in row.values()]:
        raise RequestError(
            f"{path} has lines with more or fewer cells than its first: {named(long)}", "quote texts that hold commas"
        )
    return rows


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written)
        except ValueError as error:
            raise RequestError(f"{path}, line {line}: not JSON: {error}", "one object on each line") from error
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {line} is no object", 'write {"file_name": …, "caption": …}')
        rows.append((line, row))
    return rows


LAYOUT = Layout(
    name="a table (metadata.jsonl or .csv, kohya's jsonl)",
    tree="""\
metadata.jsonl      {"file_name": "fox.png", "caption": "a fox", "control_1": "sketch.png", "mask": "fox_mask.png"}
fox.png             (also image_path; text, prompt; control_path_0, reference, source_image …)
sketch.png""",
    seen=seen,
    read=read,
)
