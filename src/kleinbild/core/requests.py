"""What is asked for: one picture, in a frozen value.

Only what no model knows better is checked here; the engine checks the rest against the model's settings when it
prepares the request (`kleinbild.engine.prepare`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from kleinbild.core.adapters import MAX_ADAPTERS, AdapterUse
from kleinbild.core.errors import PictureError, RequestError
from kleinbild.core.metadata import Record, ReferenceRecord
from kleinbild.core.sizes import Size

MAX_SEED = 2**63 - 1
MAX_STEPS = 200
MAX_GUIDANCE = 20.0


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """One picture. What is None follows from the model: its steps, guidance and size, or a seed drawn at random.

    `aspect` is width over height at the model's own area; it and `size` exclude each other. `references` are encoded
    picture files (PNG, JPEG, …) in the order in which the prompt counts them; `reference_names`, if given, their file
    names, which go into the record and nowhere else. `reference_digests` and `mask_digest` go there, too: what
    `digest` says of the files as they were given, where these are copies that were cleaned.

    `mask` is an encoded picture with transparency, of the first reference's size: transparent is made anew, opaque is
    kept to the pixel, between the two in proportion. `canvas`, larger than the first reference, puts that at `place`
    (left, top; default centred) and makes what is around it. Either way the picture keeps the input's or canvas's size.

    `cache_references` lets the references take part in the first step only; later ones read their keys and values from
    then. It saves time, and is an approximation on models not trained for it. Those that are do it unasked.

    `adapters` change the model for this picture alone, all at once; their order does not matter.
    """

    prompt: str
    model: str = "nano"
    size: Size | None = None
    aspect: float | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    references: tuple[bytes, ...] = ()
    reference_names: tuple[str, ...] = ()
    mask: bytes | None = None
    mask_name: str = ""
    canvas: Size | None = None
    place: tuple[int, int] | None = None
    cache_references: bool = False
    reference_digests: tuple[str, ...] = ()
    mask_digest: str = ""
    adapters: tuple[AdapterUse, ...] = ()

    def __post_init__(self) -> None:
        _check_adapters(self.adapters)
        for name in ("reference_names", "reference_digests"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.references):
                raise ValueError(f"{len(getattr(self, name))} {name} for {len(self.references)} references")

    def reference_records(self) -> tuple[ReferenceRecord, ...]:
        names = self.reference_names or ("",) * len(self.references)
        digests = self.reference_digests or tuple(map(digest, self.references))
        return tuple(ReferenceRecord(name, sha256) for name, sha256 in zip(names, digests, strict=True))

    def mask_record(self) -> ReferenceRecord | None:
        return None if self.mask is None else ReferenceRecord(self.mask_name, self.mask_digest or digest(self.mask))


def _check_adapters(uses: Sequence[object]) -> None:
    if not isinstance(uses, tuple) or not all(isinstance(use, AdapterUse) for use in uses):
        raise RequestError(f"adapters {uses!r}: not a tuple of AdapterUse", 'for example (AdapterUse("comic", 0.8),)')
    if len(uses) > MAX_ADAPTERS:
        raise RequestError(f"{len(uses)} adapters were given", f"use at most {MAX_ADAPTERS} for one picture")
    labels = [use.label for use in uses]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise RequestError(
            f"the adapter {twice!r} was given twice", "give it once, with the strength that it shall have"
        )


def digest(file: bytes) -> str:
    """What identifies a reference or a mask in a record: the SHA-256 of its file, in hex."""
    return hashlib.sha256(file).hexdigest()


def replay_request(record: Record, references: Sequence[bytes] = (), mask: bytes | None = None) -> PictureRequest:
    """The request that a picture was made from. Raises PictureError if the files are not those used then.

    Its adapters are to be the very files used then: whoever opens them sees to that.
    """
    if len(references) != len(record.references):
        names = ", ".join(reference.name or "unnamed" for reference in record.references) or "none"
        raise PictureError(
            f"the picture was made from {len(record.references)} reference pictures, {len(references)} were given",
            f"give these files again, in this order: {names}",
        )
    if (mask is None) != (record.mask is None):
        raise PictureError(
            f"the picture was made {'without' if record.mask is None else 'with'} a mask",
            "leave the mask out" if record.mask is None else f"give it again: {record.mask.name or 'it had no name'}",
        )
    for number, (file, known) in enumerate(zip(references, record.references, strict=True), start=1):
        _require_same(file, known, f"reference {number}")
    if mask is not None and record.mask is not None:
        _require_same(mask, record.mask, "the mask")
    return PictureRequest(
        prompt=record.prompt,
        model=record.model,
        size=None if record.input_size else record.size,
        seed=record.seed,
        steps=record.steps,
        guidance=record.guidance,
        references=tuple(references),
        reference_names=tuple(reference.name for reference in record.references),
        mask=mask,
        mask_name=record.mask.name if record.mask else "",
        canvas=record.canvas,
        place=record.place,
        cache_references=record.cache_references,
        adapters=tuple(AdapterUse(used.name, used.scale, used.sha256) for used in record.adapters),
    )


def _require_same(file: bytes, known: ReferenceRecord, what: str) -> None:
    if digest(file) != known.sha256:
        raise PictureError(
            f"{what} is not the file used then ({known.name or 'unnamed'}, sha256 {known.sha256[:12]}…)",
            "give the very same file; one that was saved again has other bytes",
        )
