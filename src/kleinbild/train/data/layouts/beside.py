"""Pictures with captions beside them, in one folder or in several; and pictures that share one caption given for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kleinbild.train.data.examples import Example
from kleinbild.train.data.folders import Folder, counted, stem_of
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading, about
from kleinbild.train.data.stems import MASK_FOLDERS, Stems, check_masks, stems_of


def seen(folder: Folder) -> str:
    number = sum(_num_captioned(each) for each in picture_folders(folder))
    return f"{counted(number, 'picture')} with a caption of the same name beside it" if number else ""


def read(folder: Folder, asked: Asked) -> Reading:
    stems = [(each, stems_of(each)) for each in picture_folders(folder)]
    examples = tuple(
        example for each, own in stems for example in examples_of(own, folder.path, caption=asked.root_caption)
    )
    what = "with captions beside them" if seen(folder) else "under the caption given for all"
    return Reading(examples, about(examples, what, [own for _, own in stems]))


def picture_folders(folder: Folder) -> Iterator[Folder]:
    """`folder` and those below, but for those with masks."""
    yield folder
    for name, each in folder.folders.items():
        if name not in MASK_FOLDERS:
            yield from picture_folders(each)


def examples_of(
    stems: Stems, root: Path, *, caption: str = "", repeats: int = 1, regularization: bool = False
) -> Iterator[Example]:
    """One example a picture; `caption` for those without one of their own."""
    check_masks(stems.masks, stems.pictures)
    for stem, picture in stems.pictures.items():
        yield Example(
            target=picture,
            caption=stems.captions.get(stem) or caption,
            mask=stems.masks.get(stem),
            repeats=repeats,
            regularization=regularization,
            name=picture.relative_to(root).as_posix(),
        )


def _num_captioned(folder: Folder) -> int:
    texts = {stem_of(name) for name in folder.captions}
    return sum(stem_of(name) in texts for name in folder.pictures)


LAYOUT = Layout(
    name="pictures with captions beside them",
    tree="""\
fox.png
fox.txt             (or fox.caption)
fox_mask.png        (if only a part shall be learned)""",
    seen=seen,
    read=read,
)
