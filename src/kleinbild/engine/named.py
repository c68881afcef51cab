"""The adapters that a request names: found, for this model's family, each with its strength. No torch here.

Whether a file's tensors fit the model shows when it is opened (`engine.adapters`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import ModelError, RequestError
from kleinbild.core.requests import PictureRequest
from kleinbild.model.adapters.registry import Found, digest, find, trigger_words
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.specs import family

AGAIN = "give the very same file, or leave the adapter out and make a new picture"


@dataclass(frozen=True, slots=True)
class Named:
    """An adapter of a request: what it is called, how strongly it is applied, its file, and the SHA-256 that this must have.

    "" is any. `words` call up what it learned.
    """

    name: str
    strength: float
    path: Path
    sha256: str = ""
    words: frozenset[str] = frozenset()


def named_adapters(
    request: PictureRequest, model: str, settings: Settings, spec: TransformerSpec
) -> tuple[Named, ...]:  # fmt: skip
    """Those of `request`, by name: whatever their order there, the picture is the same.

    Raises ModelError where one is not here, RequestError where it is for other models or not the file that is wanted.
    """
    return tuple(_named(use, model, settings, spec) for use in sorted(request.adapters, key=lambda use: use.label))


def _named(use: AdapterUse, model: str, settings: Settings, spec: TransformerSpec) -> Named:
    try:
        found = find(use.name)
    except ModelError as error:
        if use.sha256:
            raise ModelError(error.message, f"it was the file with sha256 {use.sha256[:12]}…: {AGAIN}") from error
        raise
    sha256 = _digest(found, use)
    card, ours = found.card, family(spec)
    if card is not None and card.family and ours is not None and card.family != ours:
        raise RequestError(
            f"the adapter {use.name!r} is for {card.family}, {model} is of the family {ours}",
            f"use it with a model of {card.family}, or an adapter that was trained for {ours}",
        )
    recommended = 1.0 if card is None else card.strength(distilled=settings.distilled)
    strength = recommended if use.scale is None else float(use.scale)
    return Named(use.label, strength, found.path, sha256, trigger_words([found]))


def _digest(found: Found, use: AdapterUse) -> str:
    """What the file's has to be: as the card says, as the request says, or anything."""
    if not use.sha256:
        return found.card.sha256 if found.card else ""
    actual = found.card.sha256 if found.card else digest(found.path)
    if actual != use.sha256:
        raise RequestError(
            f"the adapter {use.name!r} is not the file used then (sha256 {use.sha256[:12]}…, here {actual[:12]}…)",
            AGAIN,
        )
    return actual
