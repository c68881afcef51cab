"""Data as people have it, recognised by itself: a folder, an archive or a table to examples.

Each layout says what it sees in a folder. Exactly one must see something; which ways of laying out data are known is
what an error lists.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from kleinbild.core.errors import RequestError
from kleinbild.train.data.archives import ARCHIVES, unpacked
from kleinbild.train.data.examples import Dataset, Example
from kleinbild.train.data.folders import SHARDS, TABLES, Folder, counted, list_folder, named
from kleinbild.train.data.layouts import beside, classes, pairs, repeats, shards, sides, tables
from kleinbild.train.data.layouts.layout import Asked, Layout, Reading
from kleinbild.train.data.layouts.repeats import REGULARIZATION, REPEATED

SPECIFIC = (tables.LAYOUT, shards.LAYOUT, pairs.LAYOUT, sides.LAYOUT, repeats.LAYOUT)
PLAIN = (beside.LAYOUT, classes.LAYOUT)
"""What is left if nothing specific is seen: captions beside pictures are part of most layouts."""
LAYOUTS = (beside.LAYOUT, *SPECIFIC, classes.LAYOUT)


def find_examples(
    path: Path, *, root_caption: str = "", regularization: Path | None = None, confined: bool = False
) -> Dataset:
    """What can be learned from in `path`, in the order of names.

    `root_caption` is the caption of pictures that have none. `regularization` is a folder of pictures that show what
    shall stay as it is, with captions of their own; one called `reg` in `path` is found by itself. `confined`: tables may not name files outside of
    what was given, as is always so in archives. Raises RequestError (PictureError for masks without a picture) that says
    what was seen and what is known. Pictures are not opened.
    """
    dataset = _find(path.expanduser(), root_caption, confined)
    if regularization is not None:
        others = _find(regularization.expanduser(), "", confined)
        kept = tuple(replace(example, regularization=True) for example in others.examples)
        dataset = Dataset((*dataset.examples, *kept), dataset.layout, (*dataset.notes, _about_regularization(kept)))
    return replace(dataset, examples=_with_own_names(dataset.examples))


def _find(path: Path, root_caption: str, confined: bool) -> Dataset:
    if not path.exists():
        raise RequestError(f"there is no {path}", "give a folder of pictures, a zip, or a table (.jsonl, .csv)")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _in_folder(path, Asked(root_caption, path if confined else None))
    if suffix in TABLES:
        reading = tables.read_table(path, Asked(root_caption, path.parent if confined else None))
        return _dataset(tables.LAYOUT, reading, path)
    if suffix in SHARDS and not _is_packed_folder(path):
        return _dataset(shards.LAYOUT, shards.read_shard(path, Asked(root_caption)), path)
    if suffix in ARCHIVES:
        inside = unpacked(path)
        return _in_folder(inside, Asked(root_caption, inside), shown=path)
    raise RequestError(
        f"{path} is neither a folder nor a .zip, .tar, .jsonl or .csv", "give one of these; the trees are in the help"
    )


def _is_packed_folder(path: Path) -> bool:
    """Whether a tar holds another layout than WebDataset's: one that is seen, and could not be its samples."""
    folder = _root(list_folder(unpacked(path)))
    return any(layout.seen(folder) for layout in SPECIFIC)


def _in_folder(path: Path, asked: Asked, shown: Path | None = None) -> Dataset:
    folder = _root(list_folder(path))
    name = shown or path
    if folder.is_empty:
        raise RequestError(f"{name} holds no pictures", f"give a folder with pictures.\n{_known()}")
    kept = [each for key, each in folder.folders.items() if key.lower() in REGULARIZATION]
    main = replace(folder, folders={key: each for key, each in folder.folders.items() if each not in kept})
    layout = _recognised(main, asked, name)
    dataset = _dataset(layout, layout.read(main, asked), name)
    for each in kept:
        dataset = _with_regularization(dataset, each, asked, name)
    notes = dataset.notes if layout is shards.LAYOUT else (*dataset.notes, *_about_unused(folder, dataset))
    return replace(dataset, notes=notes)


def _about_unused(folder: Folder, dataset: Dataset) -> list[str]:
    used = {str(file) for example in dataset.examples for file in example.files}
    pictures = [str(each.path / name) for each in folder.walk() for name in each.pictures]
    left = [str(Path(file).relative_to(folder.path)) for file in pictures if file not in used]
    num_others = sum(len(each.others) for each in folder.walk())
    notes = [f"{counted(len(left), 'picture')} not used: {named(left)}"] if left else []
    return [*notes, *([f"{counted(num_others, 'file')} of other kinds not used"] if num_others else [])]


def _root(folder: Folder) -> Folder:
    """Where the data begin: archives often hold one folder with everything in it."""
    while len(folder.folders) == 1 and not (folder.pictures or folder.tables or folder.shards or folder.captions):
        name, only = next(iter(folder.folders.items()))
        if REPEATED.fullmatch(name) or any(REPEATED.fullmatch(each) for each in only.folders):
            break
        folder = only
    return folder


def _recognised(folder: Folder, asked: Asked, shown: Path) -> Layout:
    fits = _fitting(folder)
    if len(fits) > 1:
        ways = "; ".join(f"{layout.name} ({layout.seen(folder) or folder.described()})" for layout in fits)
        raise RequestError(
            f"{shown} can be read in {len(fits)} ways: {ways}",
            "take away what does not belong, or give a folder, or a table by its path, that is of one kind",
        )
    if fits:
        return fits[0]
    for below in folder.walk():
        if deeper := [layout for layout in SPECIFIC if layout.seen(below)]:
            raise RequestError(
                f"{shown} holds {folder.described()}; in {below.path.name} there are {deeper[0].name}",
                f"give {below.path.relative_to(folder.path)} by itself",
            )
    plain = [layout for layout in PLAIN if layout.seen(folder)]
    if plain:
        return plain[0]
    if asked.root_caption:
        return beside.LAYOUT
    raise RequestError(
        f"{shown} holds {folder.described()}, but nothing that says what the pictures show",
        f"write a text file beside each picture, or give one caption for all of them.\n{_known()}",
    )


def _fitting(folder: Folder) -> list[Layout]:
    """The specific layouts that are seen. A table says itself what the folders around it are."""
    fits = [layout for layout in SPECIFIC if layout.seen(folder)]
    if tables.LAYOUT in fits:
        fits = [layout for layout in fits if layout in (tables.LAYOUT, shards.LAYOUT)]
    elsewhere = tables.LAYOUT in fits or shards.LAYOUT in fits  # are the captions: then those beside contradict them
    if (elsewhere and beside.seen(folder)) or (fits == [repeats.LAYOUT] and folder.pictures):
        fits.append(beside.LAYOUT)
    return fits


def _with_regularization(dataset: Dataset, folder: Folder, asked: Asked, shown: Path) -> Dataset:
    layout = next((each for each in (repeats.LAYOUT, beside.LAYOUT, classes.LAYOUT) if each.seen(folder)), None)
    if layout is None and not asked.root_caption:
        raise RequestError(
            f"{shown}: the folder {folder.path.name} holds {folder.described()} without captions",
            "write a text file beside each picture, or put them into a folder named like what they show: reg/1_dog",
        )
    kept = tuple(
        replace(example, regularization=True, name=f"{folder.path.name}/{example.name}")
        for example in (layout or beside.LAYOUT).read(folder, replace(asked, root_caption="")).examples
    )
    return replace(dataset, examples=(*dataset.examples, *kept), notes=(*dataset.notes, _about_regularization(kept)))


def _about_regularization(examples: tuple[Example, ...]) -> str:
    return f"{counted(len(examples), 'picture')} for regularization"


def _dataset(layout: Layout, reading: Reading, path: Path) -> Dataset:
    if not reading.examples:
        raise RequestError(f"{path} holds no pictures", f"what is known:\n{_known()}")
    return Dataset(reading.examples, layout.name, reading.notes)


def _with_own_names(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """Names that tell examples apart, also where two folders were given."""
    taken: set[str] = set()
    told_apart = []
    for example in examples:
        name = example.name
        if name in taken:
            name = f"{name} [{hashlib.sha256(str(example.target).encode()).hexdigest()[:8]}]"
        taken.add(name)
        told_apart.append(replace(example, name=name))
    return tuple(told_apart)


def _known() -> str:
    """All layouts, each with an example."""
    return "\n".join(
        f"{layout.name}:\n" + "\n".join(f"    {line}" for line in layout.tree.splitlines()) for layout in LAYOUTS
    )
