"""kohya's folders: `10_sks dog` means that each of its pictures is drawn ten times a round."""

from __future__ import annotations

import re

from kleinbild.core.errors import RequestError
from kleinbild.train.data.folders import Folder, counted
from kleinbild.train.data.layouts.beside import examples_of
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.stems import stems_of

REPEATED = re.compile(r"(\d{1,5})_(.+)")
IMAGES, REGULARIZATION = ("img", "image", "images"), ("reg", "regularization")


def seen(folder: Folder) -> str:
    found = [name for each in _parents(folder) for name in each.folders if REPEATED.fullmatch(name)]
    return f"{counted(len(found), 'folder')} named NUMBER_WORDS" if found else ""


def read(folder: Folder, asked: Asked) -> Reading:
    stems = [
        (int(match[1]), match[2].replace("_", " "), stems_of(each))
        for parent in _parents(folder)
        for name, each in parent.folders.items()
        if (match := REPEATED.fullmatch(name))
    ]
    if any(repeats == 0 for repeats, _, _ in stems):
        raise RequestError(f"{folder.path} has a folder that is repeated 0 times", "begin its name with 1_ or more")
    examples = tuple(
        example
        for repeats, words, own in stems
        for example in examples_of(own, folder.path, caption=asked.root_caption or words, repeats=repeats)
    )
    numbers = sorted({repeats for repeats, _, _ in stems})
    what = f"in {counted(len(stems), 'folder')} repeated {', '.join(map(str, numbers))} times"
    return Reading(examples, about(examples, what, [own for _, _, own in stems]))


def _parents(folder: Folder) -> list[Folder]:
    return [folder, *(folder.folders[name] for name in IMAGES if name in folder.folders)]


LAYOUT = Layout(
    name="folders with repeats (kohya)",
    tree="""\
10_sks dog/1.png    (each picture ten times a round; the caption, without 1.txt: "sks dog")
10_sks dog/1.txt
reg/1_dog/1.png     (regularization)""",
    seen=seen,
    read=read,
)
