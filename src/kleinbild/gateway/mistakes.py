"""What pydantic finds wrong in a file, in our words: where it stands, what is known there. What may be a secret is not shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

KEYS_IN_THE_TEXT = frozenset({"api_key", "key", "secret", "token", "password", "api_token", "authorization"})
"""What somebody writes who puts the key itself into the file."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """`place` is `section.name` or `list.entry.name.…`; `message` goes on from it."""

    place: str
    message: str
    hint: str


def first_mistake(errors: Sequence[ErrorDetails], root: type[BaseModel], values: Mapping[str, Any]) -> Mistake:
    """Of `values`, which are no `root`. A name that is not known comes before one that is missing: it may be that one,
    misspelt."""
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    place = _place(error["loc"], values)
    if error["type"] == "extra_forbidden":
        return Mistake(place, "is not known", _known_at(error["loc"], root))
    if error["type"] == "missing":
        return Mistake(place, "is missing", _known_at(error["loc"], root))
    return Mistake(place, f"is wrong: {error['msg'].removeprefix('Value error, ')}{_given(error)}", "")


def guess(name: str, known: Iterable[str]) -> str:
    """`did you mean …? ` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def label(entry: Any, index: int) -> str:
    """What to call an entry of a list, read or as it came: its name; a budget's is what it is of; else its number."""
    values = entry if isinstance(entry, dict) else entry.model_dump()
    for names in (("name",), ("scope", "subject", "window"), ("kind", "provider_model")):
        if found := " ".join(str(values[name]) for name in names if values.get(name)):
            return found
    return f"#{index + 1}"


def _place(loc: Sequence[int | str], values: Any) -> str:
    parts = []
    for part in loc:
        if isinstance(values, dict):
            parts.append(str(part))
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and isinstance(values[part], dict):
            parts.append(label(values[part], part))
            values = values[part]
        else:  # within a plain value: pydantic's own names
            break
    return ".".join(parts)


def _known_at(loc: Sequence[int | str], root: type[BaseModel]) -> str:
    """What the table knows in which the last of `loc` stands."""
    found: Any = root
    names = [str(part) for part in loc if isinstance(part, str)]
    for name in names[:-1]:
        found = model_in(found.model_fields[name].annotation)
    known = list(found.model_fields)
    of_secret = next((name for name in known if name.endswith("_env")), None)
    if of_secret and names[-1] in KEYS_IN_THE_TEXT:
        return (
            f"a key does not belong in the file: put it into the environment, and the variable's name into {of_secret}"
        )
    where = names[-2] if len(names) > 1 else "the file"
    return f"{guess(names[-1], known)}{where} knows {', '.join(known)}"


def model_in(annotation: Any) -> Any:
    """The model that a field holds: X of X, X | None, tuple[X, ...] and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def _given(error: ErrorDetails) -> str:
    """What was given, unless it is a whole table or may be, or hold, a secret."""
    value, name = error["input"], str(error["loc"][-1]) if error["loc"] else ""
    secret = name.endswith(("_env", "url")) or isinstance(value, dict | list)
    return "" if secret else f", given was {value!r}"
