"""Folders side by side: targets with captions in one, what they are made from in `control`, or `control_1`, `control_2` …,
under the same names (ai-toolkit; Civitai's archives with `main`)."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from kleinbild.core.errors import RequestError
from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import Folder, named
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.layouts.repeats import REGULARIZATION
from kleinbild.train.data.stems import MASK_FOLDERS, by_stem, check_masks, stems_of

SIDE = re.compile(r"(?:controls?|references?|sources?|inputs?|before)[_-]?(\d{0,2})", re.IGNORECASE)


def seen(folder: Folder) -> str:
    sides = [name for name, each in folder.folders.items() if SIDE.fullmatch(name) and each.pictures]
    return f"the folders {named(sides)} with references" if sides else ""


def read(folder: Folder, asked: Asked) -> Reading:
    targets = _targets(folder)
    stems = stems_of(targets)
    references: dict[str, list[Path]] = defaultdict(list)
    for side in _sides(folder):
        for stem, path in by_stem(side).items():
            references[stem].append(path)
    if spare := sorted(references.keys() - stems.pictures.keys()):
        raise RequestError(
            f"references without a picture of the same name in {targets.path.name}: {named(spare)}",
            "a picture and its references have the same name in their folders",
        )
    masks = dict(stems.masks)
    for name in MASK_FOLDERS:
        if name in folder.folders:
            masks |= by_stem(folder.folders[name])
    check_masks(masks, stems.pictures)
    examples = tuple(
        Example(
            target=path,
            caption=stems.captions.get(stem) or asked.root_caption,
            references=tuple(references.get(stem, ())),
            mask=masks.get(stem),
            name=path.relative_to(folder.path).as_posix(),
        )
        for stem, path in stems.pictures.items()
    )
    return Reading(examples, about(examples, f"in {targets.path.name}, references in folders beside them", [stems]))


def _sides(folder: Folder) -> list[Folder]:
    numbered = [
        (int(match[1] or 1), name, each)
        for name, each in folder.folders.items()
        if (match := SIDE.fullmatch(name)) and each.pictures
    ]
    numbers = [number for number, _, _ in numbered]
    if len(set(numbers)) < len(numbers):
        raise RequestError(
            f"{folder.path} has several folders of references: {named([name for _, name, _ in numbered])}",
            "call them control_1, control_2 and so on, in the order that the model shall see them",
        )
    return [each for _, _, each in sorted(numbered, key=lambda one: one[0])]


def _targets(folder: Folder) -> Folder:
    taken = {*MASK_FOLDERS, *REGULARIZATION}
    found = [
        each
        for name, each in folder.folders.items()
        if name not in taken and not SIDE.fullmatch(name) and each.num_pictures
    ]
    if folder.pictures:
        found.insert(0, folder)
    if len(found) == 1:
        return found[0]
    where = named([each.path.name for each in found]) or "none"
    raise RequestError(
        f"{folder.path} has folders of references, and folders with what may be made from them: {where}",
        "put what the model shall make into one folder, for example main",
    )


LAYOUT = Layout(
    name="folders side by side (ai-toolkit, Civitai)",
    tree="""\
main/fox.png        (what the model shall make; the folder's name is free)
main/fox.txt        (what to do)
control_1/fox.png   (what it is made from; or control/fox.png)
control_2/fox.png""",
    seen=seen,
    read=read,
)
