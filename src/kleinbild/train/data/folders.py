"""What lies in a folder, listed once, before anybody asks what it means. Only names: no file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from kleinbild.core.errors import RequestError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"})
CAPTIONS = frozenset({".txt", ".caption"})
TABLES = frozenset({".jsonl", ".csv"})
SHARDS = frozenset({".tar"})
MAX_DEPTH = 8
_LEFT_BY_PROGRAMS = frozenset({"__macosx", "thumbs.db", "desktop.ini", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's files by what they can be, each in the order of their names, and the folders in it."""

    path: Path
    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    tables: tuple[str, ...]
    shards: tuple[str, ...]
    others: tuple[str, ...]
    folders: dict[str, Folder]

    def walk(self) -> Iterator[Folder]:
        """Itself and all folders below, in the order of their names."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    @property
    def num_pictures(self) -> int:
        return sum(len(folder.pictures) for folder in self.walk())

    @property
    def is_empty(self) -> bool:
        return not any(each.pictures or each.tables or each.shards for each in self.walk())

    def described(self) -> str:
        """What was seen, in a sentence's words."""
        texts = [name for each in self.walk() for name in each.captions]
        tables = [name for each in self.walk() for name in each.tables]
        shards = [name for each in self.walk() for name in each.shards]
        seen = [counted(self.num_pictures, "picture")]
        seen += [counted(len(texts), "text")] if texts else []
        seen += [named(tables, 3)] if tables else []
        seen += [counted(len(shards), "tar")] if shards else []
        if self.folders:
            seen.append(f"the folders {named(list(self.folders))}")
        return ", ".join(seen)


def list_folder(path: Path) -> Folder:
    """All that is below `path`. Raises RequestError where it cannot be read."""
    try:
        return _list(path, depth=0, above=())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from error


def _list(path: Path, depth: int, above: tuple[str, ...]) -> Folder:
    here = os.path.realpath(path)
    if depth > MAX_DEPTH or here in above:
        raise RequestError(
            f"{path} lies more than {MAX_DEPTH} folders deep, or links to a folder that it is in",
            "give the folder in which the pictures are",
        )
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _LEFT_BY_PROGRAMS:
                (folders if entry.is_dir() else files).append(entry.name)
    kinds = sorted((name, PurePath(name).suffix.lower()) for name in files)

    def of(suffixes: frozenset[str]) -> tuple[str, ...]:
        return tuple(name for name, suffix in kinds if suffix in suffixes)

    known = PICTURES | CAPTIONS | TABLES | SHARDS
    return Folder(
        path=path,
        pictures=of(PICTURES),
        captions=of(CAPTIONS),
        tables=of(TABLES),
        shards=of(SHARDS),
        others=tuple(name for name, suffix in kinds if suffix not in known),
        folders={name: _list(path / name, depth + 1, (*above, here)) for name in sorted(folders)},
    )


def stem_of(name: str) -> str:
    """A file's name without its ending."""
    return name.rpartition(".")[0]


def counted(number: int, what: str) -> str:
    """`3 pictures`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def named(names: list[str], most: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
