"""An adapter file of any spelling to an `Adapter`: strictly, without running anything that the file holds.

1. The header is checked and every key explained (`plan`); what does not fit is an error before a tensor is read.
2. Tensors are read as float32 and have to be finite; alpha and rank become one scale (`scales`).
3. diffusers' halves are put in our order, and fused layers that were made of split ones are split again (`regroup`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.families import family_of, read_adapter_header, shapes_of
from kleinbild.model.adapters.names import modules, parts
from kleinbild.model.adapters.origins import origin_of
from kleinbild.model.adapters.plan import Group, Plan, plan
from kleinbild.model.adapters.regroup import swapped, unjoined
from kleinbild.model.adapters.scales import Declared, declared, scale
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.headers import StoredTensors

SHOWN = 4  # of what does not match, in a message
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, slots=True)
class Coverage:
    """What became of a file's keys: the layers that are `matched`, by our names; keys that are `unmatched`; keys of text
    encoders, which are `skipped`. `num_layers` counts the model's, `num_read` the keys that were read."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    skipped: tuple[str, ...]
    num_layers: int
    num_read: int

    @property
    def complete(self) -> bool:
        return not self.unmatched


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """An adapter and where it came from: `origin` in words, `metadata` as the file has them."""

    adapter: Adapter
    coverage: Coverage
    origin: str
    metadata: dict[str, str]


def read_adapter(path: Path | str, spec: TransformerSpec, *, lenient: bool = False) -> Loaded:
    """The adapter in a safetensors file, for the transformer of `spec`; its tensors are float32.

    Raises WeightsError where the file is damaged, of another kind or for another model, where it holds what cannot be
    applied, and, unless `lenient`, where any of its keys does not match.
    """
    path = Path(path).expanduser()
    stored = read_adapter_header(path)
    planned = plan(shapes_of(stored), spec)
    _require_fit(path, stored, planned, lenient=lenient)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            says = declared(path, metadata)

            def read(key: str) -> Tensor:
                return _tensor(path, stored, key, file.get_tensor)

            entries = [
                entry
                for group in planned.groups
                for entry in unjoined(
                    _entry(group, read, says),
                    parts(spec, group.named.place.module),
                )
            ]
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "fetch it again") from error
    coverage = Coverage(
        matched=tuple(sorted({entry.module for entry in entries})),
        unmatched=tuple(sorted(planned.unmatched)),
        skipped=planned.skipped,
        num_layers=len(modules(spec)),
        num_read=sum(len(group.keys) for group in planned.groups),
    )
    return Loaded(Adapter(tuple(entries)), coverage, origin_of(planned.groups, metadata), metadata)


def _require_fit(path: Path, stored: StoredTensors, planned: Plan, *, lenient: bool) -> None:
    if planned.misfits:
        raise _other_model(path, stored, planned.misfits)
    if not planned.groups:
        if (fits := family_of(stored)) is not None:
            raise WeightsError(
                f"{path} changes no layer of this model; it is for {fits}", f"use it with a {fits} model"
            )
        raise WeightsError(
            f"{path} is no adapter of this model: {_some([f'{key} ({why})' for key, why in planned.unmatched.items()])}",
            "name a file with a LoRA, LoKr or LoHa for FLUX.2 [klein]",
        )
    if planned.unmatched and not lenient:
        num_all = len(stored.tensors)
        raise WeightsError(
            f"{path}: {len(planned.unmatched)} of {num_all} tensors do not match: "
            f"{_some([f'{key} ({why})' for key, why in planned.unmatched.items()])}",
            "`kleinbild adapters doctor FILE` lists them all; reading it leniently leaves them out",
        )


def _other_model(path: Path, stored: StoredTensors, misfits: Sequence[str]) -> WeightsError:
    fits = family_of(stored)
    hint = (
        f"its shapes are those of {fits}: use it with a {fits} model" if fits else "use an adapter made for this model"
    )
    return WeightsError(f"{path} does not fit this model: {_some(misfits)}", hint)


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


def _tensor(path: Path, stored: StoredTensors, key: str, get: Callable[[str], Tensor]) -> Tensor:
    if stored.tensors[key].dtype not in FLOATS:
        raise WeightsError(f"{path}: {key} is {stored.tensors[key].dtype}, which is no type of an adapter's numbers")
    tensor = get(key).float()
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"{path} holds NaN or infinity in {key}: its training went wrong, or it is damaged")
    return tensor


def _entry(group: Group, read: Callable[[str], Tensor], says: Declared) -> Entry:
    place = group.named.place
    matrices = {role: read(group.keys[role]).reshape(shape) for role, shape in group.shapes.items()}
    alpha = float(read(group.keys["alpha"])) if "alpha" in group.keys else None
    magnitude = read(group.keys["magnitude"]) if "magnitude" in group.keys else None
    if magnitude is not None and magnitude.shape != (1, place.num_in):
        magnitude = magnitude.flatten()
    change = _change(group, matrices)
    if place.swapped:
        change = swapped(change)
        if magnitude is not None and magnitude.ndim == 1:
            magnitude = torch.cat(magnitude.chunk(2)[::-1])
    return Entry(place.module, change, scale(group, alpha, says), None if place.whole else place.rows, magnitude)


def _change(group: Group, matrices: dict[str, Tensor]) -> Change:
    if group.kind == "lora":
        return LowRank(matrices["down"], matrices["up"])
    if group.kind == "diff":
        return Full(matrices["diff"])
    if group.kind == "loha":
        return Hadamard(*(LowRank(matrices[f"hada_w{i}_b"], matrices[f"hada_w{i}_a"]) for i in (1, 2)))
    return Kronecker(_factor("lokr_w1", matrices), _factor("lokr_w2", matrices))


def _factor(name: str, matrices: dict[str, Tensor]) -> Tensor | LowRank:
    return matrices[name] if name in matrices else LowRank(matrices[f"{name}_b"], matrices[f"{name}_a"])
