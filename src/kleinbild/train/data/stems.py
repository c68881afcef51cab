"""What belongs together in a folder because its names begin alike: a picture, its caption, its mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kleinbild.core.errors import PictureError, RequestError
from kleinbild.train.data.folders import Folder, named, stem_of

MAX_CAPTION_BYTES = 100_000
MASK_END = "_mask"
MASK_FOLDERS = ("mask", "masks")


@dataclass(frozen=True, slots=True)
class Stems:
    """Files by stem: `fox` for `fox.png`, `fox.txt` and `fox_mask.png` (or `mask/fox.png`).

    `spare` are captions without a picture.
    """

    pictures: dict[str, Path]
    captions: dict[str, str]
    masks: dict[str, Path]
    spare: tuple[str, ...]


def stems_of(folder: Folder) -> Stems:
    """The folder's own files, not those of folders in it but for `mask`. Raises RequestError for two of one stem."""
    pictures = by_stem(folder)
    captions = _captions(folder)
    masks = {}
    for stem in [stem for stem in pictures if stem.endswith(MASK_END) and stem not in captions]:
        masks[stem.removesuffix(MASK_END)] = pictures.pop(stem)
    for name in MASK_FOLDERS:
        if name in folder.folders:
            masks |= {stem.removesuffix(MASK_END): path for stem, path in by_stem(folder.folders[name]).items()}
    spare = tuple(stem for stem in captions if stem not in pictures)
    return Stems(pictures, captions, masks, spare)


def check_masks(masks: dict[str, Path], stems: Iterable[str]) -> None:
    """Raises PictureError for masks that belong to no picture."""
    if left := sorted(str(masks[stem].name) for stem in masks.keys() - set(stems)):
        raise PictureError(
            f"masks without a picture: {named(left)}",
            f"a mask is called like its picture with {MASK_END} at the end, or lies in a folder mask under its name",
        )


def by_stem(folder: Folder) -> dict[str, Path]:
    """The folder's pictures. Raises RequestError where two differ in their endings only."""
    found: dict[str, str] = {}
    for name in folder.pictures:
        stem = stem_of(name)
        if stem in found:
            raise RequestError(
                f"{folder.path} holds both {found[stem]} and {name}: what belongs to which cannot be told",
                "rename one of them, or take it away",
            )
        found[stem] = name
    return {stem: folder.path / name for stem, name in found.items()}


def read_text(path: Path) -> str:
    """A text file of a person: UTF-8, stripped. Raises RequestError that names the file."""
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            raise RequestError(f"{path} is no caption: it is {path.stat().st_size:,} bytes long", "shorten it")
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not text in UTF-8", "save it as UTF-8") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from error


def _captions(folder: Folder) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name in folder.captions:
        stem, text = stem_of(name), read_text(folder.path / name)
        if texts.setdefault(stem, text) != text:
            raise RequestError(
                f"{folder.path} holds two captions of {stem}, .txt and .caption, and they differ", "keep one of them"
            )
    return texts
