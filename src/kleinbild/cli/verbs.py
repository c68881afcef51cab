"""`kleinbild "a red apple"` means `kleinbild generate "a red apple"`: a line that starts with no command is a prompt."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from kleinbild.core.errors import RequestError

DEFAULT = "generate"


def with_verb(arguments: list[str], verbs: Collection[str], root_options: Collection[str]) -> list[str]:
    """The arguments with a command in front. Raises RequestError for a word that looks like a mistyped command."""
    if not arguments:
        return ["--help"]
    first, *others = arguments
    if first == "help":
        return [*others, "--help"]
    if first in verbs or first.split("=")[0] in root_options:
        return arguments
    if meant := _meant(first, verbs):
        raise RequestError(
            f"there is no command {first!r}",
            f"did you mean kleinbild {meant}? For a picture of it: kleinbild {DEFAULT} {first}",
        )
    return [DEFAULT, *arguments]


def _meant(word: str, verbs: Collection[str]) -> str | None:
    """The command that a single word may have been meant for. Words with spaces or dashes in front are no commands."""
    if len(word) < 2 or word.startswith("-") or len(word.split()) != 1:
        return None
    started = [verb for verb in verbs if verb.startswith(word.lower())]
    return next(iter(started or get_close_matches(word.lower(), verbs, n=1)), None)
