"""Before and after side by side: `NAME_start.png`, `NAME_end.png`, `NAME.txt`, and further references `NAME_start2.png` …"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from kleinbild.core.errors import RequestError
from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import Folder, counted, named, stem_of
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.stems import check_masks, stems_of

MEMBER = re.compile(r"(.+)_(?:(start|in)_?(\d{0,2})|(end|out))", re.IGNORECASE)


def seen(folder: Folder) -> str:
    roles = defaultdict(set)
    for name in folder.pictures:
        if match := MEMBER.fullmatch(stem_of(name)):
            roles[match[1]].add("end" if match[4] else "start")
    number = sum(len(each) == 2 for each in roles.values())
    return f"{counted(number, 'pair')} of NAME_start and NAME_end (or _in and _out)" if number else ""


def read(folder: Folder, asked: Asked) -> Reading:
    stems = stems_of(folder)
    ends: dict[str, tuple[str, Path]] = {}
    starts: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    alone = []
    for stem, path in stems.pictures.items():
        match = MEMBER.fullmatch(stem)
        if match is None:
            alone.append(path.name)
        elif match[4]:
            ends[match[1]] = stem, path
        else:
            starts[match[1]].append((int(match[3] or 1), path))
    alone += [path.name for name in starts.keys() - ends.keys() for _, path in starts[name]]
    alone += [path.name for name, (_, path) in ends.items() if name not in starts]
    if alone:
        raise RequestError(
            f"{folder.path} holds pairs, and pictures that belong to none: {named(sorted(alone))}",
            "give each its other half, or put what are no pairs into another folder",
        )
    masks = {match[1] if (match := MEMBER.fullmatch(stem)) else stem: path for stem, path in stems.masks.items()}
    check_masks(masks, ends)
    examples = tuple(
        Example(
            target=path,
            caption=stems.captions.get(name) or stems.captions.get(stem) or asked.root_caption,
            references=tuple(start for _, start in sorted(starts[name])),
            mask=masks.get(name),
            name=path.name,
        )
        for name, (stem, path) in ends.items()
    )
    return Reading(examples, about(examples, "with what they are made from (NAME_start and NAME_end)"))


LAYOUT = Layout(
    name="pairs in one folder (fal)",
    tree="""\
fox_start.png       (or fox_in.png)
fox_start2.png      (further references, up to any number)
fox_end.png         (or fox_out.png)
fox.txt             (what to do)""",
    seen=seen,
    read=read,
)
