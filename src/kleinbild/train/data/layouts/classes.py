"""Folders whose names say what is in them (ImageFolder): each name is the caption of the folder's pictures."""

from __future__ import annotations

from kleinbild.train.data.folders import Folder, counted
from kleinbild.train.data.layouts.beside import examples_of, picture_folders
from kleinbild.train.data.layouts.beside import seen as captions_seen
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.stems import MASK_FOLDERS, stems_of


def seen(folder: Folder) -> str:
    named = [name for name, each in folder.folders.items() if name not in MASK_FOLDERS and each.num_pictures]
    if folder.pictures or captions_seen(folder) or not named:
        return ""
    return f"{counted(len(named), 'folder')} with pictures and no caption"


def read(folder: Folder, asked: Asked) -> Reading:
    """`asked.root_caption` comes before the class's name."""
    examples = tuple(
        example
        for name, named in folder.folders.items()
        if name not in MASK_FOLDERS
        for each in picture_folders(named)
        for example in examples_of(stems_of(each), folder.path, caption=_caption(asked.root_caption, name))
    )
    num_classes = len({example.caption for example in examples})
    return Reading(examples, about(examples, f"whose captions are the names of {counted(num_classes, 'folder')}"))


def _caption(first: str, name: str) -> str:
    return " ".join(filter(None, (first, name.replace("_", " "))))


LAYOUT = Layout(
    name="folders whose names are the captions",
    tree="""\
fox/1.png
fox/2.png
red_tractor/1.png""",
    seen=seen,
    read=read,
)
