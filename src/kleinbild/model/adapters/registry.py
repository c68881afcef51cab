"""Adapters that are known by name, and where they are: `$KLEINBILD_HOME/adapters/NAME`. No torch here.

A folder holds `adapter.safetensors` and `card.json`, and whatever a report needs. It is written beside its place and
moved there, so that nobody finds half of one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kleinbild.core.adapters import Card, is_path
from kleinbild.core.errors import ModelError, RequestError, WeightsError
from kleinbild.core.home import home

FILE, CARD = "adapter.safetensors", "card.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter's file on this machine; `card` is None for a file that has none."""

    path: Path
    card: Card | None


def adapters_folder() -> Path:
    return home() / "adapters"


def check_name(name: str) -> str:
    """`name`, if it can be one. Raises RequestError."""
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{name!r} cannot be an adapter's name",
            "use up to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit",
        )
    return name


def cards() -> list[Card]:
    """All that are registered, by name."""
    folders = sorted(path.parent for path in adapters_folder().glob(f"*/{CARD}"))
    return [read_card(folder) for folder in folders if (folder / FILE).is_file()]


def find(name_or_path: str) -> Found:
    """The adapter registered under a name, or in a file, where a run's own has its card beside it.

    Raises ModelError where there is none.
    """
    if is_path(name_or_path):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ModelError(f"there is no adapter file {name_or_path}", "give the path of a .safetensors file")
        has_card = path.name == FILE and (path.parent / CARD).is_file()
        return Found(path, read_card(path.parent) if has_card else None)
    folder = adapters_folder() / name_or_path
    if NAME.fullmatch(name_or_path) and (folder / CARD).is_file() and (folder / FILE).is_file():
        return Found(folder / FILE, read_card(folder))
    known = [card.name for card in cards()]
    close = difflib.get_close_matches(name_or_path, known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    here = f"known are {', '.join(known)}" if known else "none is registered here"
    raise ModelError(
        f"there is no adapter called {name_or_path!r}; {here}", f"{guess}kleinbild adapters add FILE registers one"
    )


def read_card(folder: Path) -> Card:
    """Raises WeightsError for a card that cannot be read."""
    try:
        values = json.loads((folder / CARD).read_text("utf-8"))
        return Card(**{**values, "trigger_words": tuple(values.get("trigger_words", ()))})
    except (OSError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CARD} cannot be read: {error}", "register the adapter again") from error


def write_card(folder: Path, card: Card) -> None:
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", "utf-8")


def register(file: Path, card: Card, *, others: Mapping[str, Path] | None = None) -> Path:
    """Copies an adapter's file, its card and `others` (name to file or folder) to its place; what was there goes."""
    place = adapters_folder() / check_name(card.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        shutil.copyfile(file, beside / FILE)
        for name, path in (others or {}).items():
            shutil.copytree(path, beside / name) if path.is_dir() else shutil.copyfile(path, beside / name)
        write_card(beside, card)
        beside.chmod(0o755)
        _remove(place)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def remove(name: str) -> None:
    """Raises ModelError where there is none of this name."""
    find(check_name(name))
    _remove(adapters_folder() / name)


def _remove(place: Path) -> None:
    if place.exists():
        gone = Path(tempfile.mkdtemp(prefix=".old-", dir=place.parent))
        place.rename(gone / place.name)
        shutil.rmtree(gone)


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def trigger_words(found: Sequence[Found]) -> frozenset[str]:
    """All words that call up what these adapters learned, lower-case."""
    return frozenset(
        word.lower() for each in found if each.card for words in each.card.trigger_words for word in words.split()
    )
