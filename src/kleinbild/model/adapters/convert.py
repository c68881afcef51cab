"""An adapter file to another spelling, with the proof: both files are read again and their changes compared.

A conversion is exact but for rounding, unless a rank was asked for. Numbers keep the type that the file has them in
where that loses nothing, else they become float32.

Shape suffixes: as in `adapter`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter, Entry, Full, LowRank
from kleinbild.model.adapters.families import family_of, read_adapter_header, shapes_of, specs
from kleinbild.model.adapters.names import modules
from kleinbild.model.adapters.plan import plan
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.adapters.regroup import compressed, sliced
from kleinbild.model.adapters.spellings import DEFAULT, spelling
from kleinbild.model.adapters.traps import Trap, traps
from kleinbild.model.adapters.write import OURS, save, spelled
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.headers import StoredTensors
from kleinbild.model.weights.specs import Family

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
AT_ONCE = 1 << 18  # numbers of ΔW that are compared at once: what a processor's cache holds


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion did. `difference` is the largest of any number of ΔW between the two files, `largest` the largest
    number of ΔW there is. `kept`: of each layer that was made smaller, the share of ‖ΔW‖² that is left.
    `traps`: who reads the new file otherwise."""

    origin: str
    family: Family
    spelling: str
    num_layers: int
    difference: float
    largest: float
    kept: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    traps: tuple[Trap, ...] = ()

    @property
    def relative(self) -> float:
        return self.difference / self.largest if self.largest else 0.0


def convert(
    source: Path,
    target: Path,
    *,
    to: str = DEFAULT,
    rank: int | None = None,
    lenient: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Converted:
    """Writes `source` to `target` in the spelling `to`. With `rank`, changes that are no LoRA, or one of a higher rank,
    become the nearest LoRA of that rank.

    Raises RequestError for an unknown spelling, WeightsError for a file that cannot be read, OutputError where the
    spelling cannot say what the file holds.
    """
    spelling(to)
    stored = read_adapter_header(source)
    family = require_family(source)
    spec = specs()[family]
    loaded = read_adapter(source, spec, lenient=lenient)
    adapter, kept = loaded.adapter, dict[str, float]()
    if rank is not None:
        adapter, kept = _compressed(adapter, rank, progress)
    tensors, told = spelled(adapter, spec, to)
    types = Counter(info.dtype for info in stored.tensors.values() if info.dtype in DTYPES)
    dtype = DTYPES[types.most_common(1)[0][0]] if types else torch.float32
    passed_on = {name: text for name, text in loaded.metadata.items() if name not in OURS}
    save(target, {name: _as_small(tensor, dtype) for name, tensor in tensors.items()}, {**passed_on, **told})
    written = read_adapter(target, spec)
    difference, largest = compare(loaded.adapter, written.adapter, spec)
    groups = plan(shapes_of(read_adapter_header(target)), spec).groups
    return Converted(
        origin=loaded.origin,
        family=family,
        spelling=to,
        num_layers=len(loaded.coverage.matched),
        difference=difference,
        largest=largest,
        kept=kept,
        skipped=loaded.coverage.skipped,
        traps=traps(groups, written.metadata, target),
    )


def require_family(path: Path) -> Family:
    """The family that a file's shapes show. Raises WeightsError where they show none."""
    stored = read_adapter_header(path)
    family = family_of(stored)
    if family is None:
        raise WeightsError(
            f"{path} fits none of {', '.join(specs())}{_why(stored)}", "use an adapter for FLUX.2 [klein]"
        )
    return family


def _why(stored: StoredTensors) -> str:
    """What keeps a file from the family that it comes nearest to."""
    plans = {name: plan(shapes_of(stored), spec) for name, spec in specs().items()}
    nearest = max(plans, key=lambda name: len(plans[name].groups))
    found = plans[nearest]
    if found.groups and found.misfits:
        return f"; it is nearest to {nearest}, but {found.misfits[0]}"
    return "".join(f"; {key}: {why}" for key, why in list(found.unmatched.items())[:1])


def compare(one: Adapter, other: Adapter, spec: TransformerSpec) -> tuple[float, float]:
    """The largest difference between two adapters' changes, magnitudes included, and the largest change of `one`."""
    first, second = _by_module(one), _by_module(other)
    difference = largest = 0.0
    for module in sorted({*first, *second}):
        for own, others in zip(
            _dense(first[module], modules(spec)[module]), _dense(second[module], modules(spec)[module]), strict=True
        ):
            difference = max(difference, float((own - others).abs().max()))
            largest = max(largest, float(own.abs().max()))
        difference = max(difference, _magnitudes_differ(first[module], second[module], modules(spec)[module]))
    return difference, largest


def _compressed(
    adapter: Adapter, rank: int, progress: Callable[[int, int], object] | None
) -> tuple[Adapter, dict[str, float]]:
    entries, kept = list[Entry](), dict[str, float]()
    for i, entry in enumerate(adapter.entries):
        small, share = compressed(entry, rank)
        entries.append(small)
        if small is not entry:
            kept[entry.module] = min(share, kept.get(entry.module, 1.0))
        if progress:
            progress(i + 1, len(adapter.entries))
    return Adapter(tuple(entries)), kept


def _as_small(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    small = tensor.to(dtype)
    return small if torch.equal(small.to(tensor.dtype), tensor) else tensor


def _by_module(adapter: Adapter) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in adapter.entries:
        found[entry.module].append(entry)
    return found


def _dense(entries: list[Entry], shape: tuple[int, int]) -> Iterator[Tensor]:
    """ΔW of a layer, some rows at a time."""
    num_rows, num_in = shape
    step = max(1, AT_ONCE // num_in)
    entries = [entry if isinstance(entry.change, LowRank) else _whole(entry) for entry in entries]
    for low in range(0, num_rows, step):
        high = min(low + step, num_rows)
        delta_OI = torch.zeros(high - low, num_in)
        for entry in entries:
            begin, end = entry.rows or (0, num_rows)
            start, stop = max(begin, low), min(end, high)
            if start < stop:
                part = sliced(entry.change, start - begin, stop - begin).delta()
                delta_OI[start - low : stop - low] += entry.scale * part
        yield delta_OI


def _whole(entry: Entry) -> Entry:
    return replace(entry, change=Full(entry.change.delta()))


def _magnitudes_differ(one: list[Entry], other: list[Entry], shape: tuple[int, int]) -> float:
    first, second = _magnitudes(one, shape), _magnitudes(other, shape)
    if first.keys() != second.keys():
        return float("inf")
    return max((float((first[key] - second[key]).abs().max()) for key in first), default=0.0)


def _magnitudes(entries: list[Entry], shape: tuple[int, int]) -> dict[object, Tensor]:
    """By rows in one vector, zero where there is none; by columns one for each span of rows."""
    found: dict[object, Tensor] = {}
    for entry in entries:
        rows = entry.rows or (0, shape[0])
        if entry.magnitude is None:
            continue
        if entry.magnitude.ndim == 2:
            found[rows] = entry.magnitude
        else:
            found.setdefault("rows", torch.zeros(shape[0]))[slice(*rows)] = entry.magnitude
    return found
