"""WebDataset: tars in which files that begin alike belong together: `000.jpg`, `000.txt` or `000.json`, `000.ref0.png`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from kleinbild.core.errors import RequestError
from kleinbild.train.data.archives import unpacked
from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import PICTURES, Folder, counted, list_folder, named
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.layouts.tables import CAPTIONS
from kleinbild.train.data.stems import read_text

_ENDING = "|".join(suffix[1:] for suffix in sorted(PICTURES))
TARGET = re.compile(rf"(?:(?:target|output|image|edited)\.)?(?:{_ENDING})")
REFERENCE = re.compile(rf"(?:ref|reference|control|source|input|cond)_?(\d{{0,2}})\.(?:{_ENDING})")
MASK = re.compile(rf"mask\.(?:{_ENDING})")


def seen(folder: Folder) -> str:
    return counted(len(folder.shards), "tar") if folder.shards else ""


def read(folder: Folder, asked: Asked) -> Reading:
    readings = [read_shard(folder.path / name, asked) for name in folder.shards]
    examples = tuple(example for each in readings for example in each.examples)
    return Reading(examples, (f"{counted(len(readings), 'tar')} of samples", *about(examples, "in tars")))


def read_shard(path: Path, asked: Asked) -> Reading:
    """The samples of one tar. Raises RequestError for one without a picture."""
    samples: dict[str, dict[str, Path]] = defaultdict(dict)
    inside = unpacked(path)
    for folder in list_folder(inside).walk():
        for name in (*folder.pictures, *folder.captions, *folder.others):
            key, _, ending = name.partition(".")
            place = (folder.path / key).relative_to(inside).as_posix()
            samples[place][ending.lower()] = folder.path / name
    examples = tuple(_example(path, key, files, asked) for key, files in sorted(samples.items()))
    return Reading(examples, about(examples, f"in {path.name}"))


def _example(path: Path, key: str, files: dict[str, Path], asked: Asked) -> Example:
    targets = [file for ending, file in files.items() if TARGET.fullmatch(ending)]
    if len(targets) != 1:
        what = "no picture" if not targets else f"several pictures: {named([file.name for file in targets])}"
        raise RequestError(
            f"{path.name}: the sample {key} has {what}",
            f"a sample is {key}.jpg, {key}.txt (or .json), and perhaps {key}.ref0.png, {key}.ref1.png, {key}.mask.png",
        )
    references = sorted(
        (int(match[1] or 0), file) for ending, file in files.items() if (match := REFERENCE.fullmatch(ending))
    )
    mask = next((file for ending, file in files.items() if MASK.fullmatch(ending)), None)
    return Example(
        target=targets[0],
        caption=_caption(files) or asked.root_caption,
        references=tuple(file for _, file in references),
        mask=mask,
        name=f"{path.name}/{key}",
    )


def _caption(files: dict[str, Path]) -> str:
    for ending in ("txt", "caption"):
        if ending in files:
            return read_text(files[ending])
    values = _json(files["json"]) if "json" in files else {}
    return next((str(values[name]).strip() for name in CAPTIONS if values.get(name)), "")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise RequestError(f"{path} is not JSON: {error}", "write it anew, or leave it out") from error
    return values if isinstance(values, dict) else {}


LAYOUT = Layout(
    name="tars of samples (WebDataset)",
    tree="""\
000.tar             (with 000001.jpg, 000001.txt or .json, 000001.ref0.png, 000001.mask.png …)
001.tar""",
    seen=seen,
    read=read,
)
