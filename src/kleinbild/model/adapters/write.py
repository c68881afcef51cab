"""An adapter to a file, in the spelling that another program reads.

Layers are cut or joined as the spelling names them (`regroup`), all of it exact. What a spelling cannot say is an error
that tells which can, or how near a plain LoRA comes. The file is written under a temporary name and moved.

Shape suffixes: as in `adapter`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kleinbild.core.errors import OutputError
from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.names import Place, fused_names, modules
from kleinbild.model.adapters.regroup import folded, gathered, swapped
from kleinbild.model.adapters.scales import METADATA_KEY
from kleinbild.model.adapters.spellings import DEFAULT, Kind, Spelling, spelling, unsayable
from kleinbild.model.spec import TransformerSpec

OURS = ("format", METADATA_KEY)  # metadata that say how the tensors are written; never passed on
SVD_HINT = "`kleinbild adapters convert --svd RANK` writes the nearest LoRA and says how near; or use --to comfy"


def write_adapter(
    path: Path | str,
    adapter: Adapter,
    spec: TransformerSpec,
    *,
    spelling: str = DEFAULT,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes `adapter` to a safetensors file. With `dtype` None each tensor keeps its own type.

    Raises RequestError for an unknown spelling, OutputError where it cannot say the adapter, or the file not be written.
    """
    tensors, told = spelled(adapter, spec, spelling)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save(Path(path), tensors, {**_passed_on(metadata or {}), **told})


def spelled(adapter: Adapter, spec: TransformerSpec, name: str = DEFAULT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the file by key, and the metadata that belong to how they are written."""
    chosen = spelling(name)
    changed = {entry.module for entry in adapter.entries}
    if strange := sorted(changed - modules(spec).keys()):
        raise OutputError(f"the adapter changes {strange[0]}, which is no layer of this model", "use its own model")
    if odd := unsayable(chosen, sorted(changed)):
        raise OutputError(
            f"the adapter changes {odd}, for which ComfyUI does not know diffusers' name",
            "use the spelling aitk, which both load",
        )
    placed = dict(_placed(adapter, spec, chosen))
    if not placed:
        raise OutputError("the adapter changes nothing", "train it first")
    _require_sayable(placed, chosen)
    tensors: dict[str, Tensor] = {}
    for stem, (entry, place) in placed.items():
        for suffix, tensor in _tensors(entry, place, chosen):
            tensors[stem + suffix] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    return tensors, {"format": "pt", **_for_diffusers(placed, chosen)}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Whole or not at all. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        try:
            save_file(dict(tensors), name, metadata=dict(metadata))
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}", "name another file") from error


def kind_of(change: Change) -> Kind:
    if isinstance(change, LowRank):
        return "LoRA"
    if isinstance(change, Kronecker):
        return "LoKr"
    return "LoHa" if isinstance(change, Hadamard) else "a whole matrix"


def _placed(adapter: Adapter, spec: TransformerSpec, chosen: Spelling) -> Iterator[tuple[str, tuple[Entry, Place]]]:
    """The spelling's name of each place that is changed, and all that changes there as one entry."""
    by_module: dict[str, list[Entry]] = defaultdict(list)
    for entry in adapter.entries:
        by_module[entry.module].append(entry)
    for name, place in _places(adapter, spec, chosen).items():
        inside = gathered(by_module.get(place.module, ()), place)
        if inside is not None:
            yield chosen.stem(name), (inside, place)


def _places(adapter: Adapter, spec: TransformerSpec, chosen: Spelling) -> Mapping[str, Place]:
    """As the spelling has them; a LoKr of a fused layer stays whole, for which diffusers has a name of its own."""
    places = chosen.places(spec)
    if chosen.naming == "bfl" or "LoKr" not in chosen.kinds:
        return places
    whole = {entry.module for entry in adapter.entries if isinstance(entry.change, Kronecker) and entry.rows is None}
    fused = {name: place for name, place in fused_names(spec).items() if place.module in whole}
    split = {place.module for place in fused.values()}
    return {**{name: place for name, place in places.items() if place.module not in split}, **fused}


def _require_sayable(placed: Mapping[str, tuple[Entry, Place]], chosen: Spelling) -> None:
    kinds = Counter(kind_of(entry.change) for entry, _ in placed.values())
    for stem, (entry, _) in placed.items():
        if (kind := kind_of(entry.change)) not in chosen.kinds:
            raise OutputError(f"{stem} would be {kind}, which the spelling {chosen.name} cannot say", SVD_HINT)
        if entry.magnitude is None:
            continue
        if chosen.magnitude is None or (entry.magnitude.ndim == 2 and not chosen.by_columns):
            what = "by columns " if entry.magnitude.ndim == 2 else ""
            raise OutputError(
                f"{stem} has a DoRA magnitude {what}that the spelling {chosen.name} cannot say", "use --to comfy"
            )
        if kind == "a whole matrix":
            raise OutputError(f"{stem} has a DoRA magnitude over a whole matrix, which nobody reads", SVD_HINT)
    if len(kinds) > 1 and not chosen.mixed:
        raise OutputError(f"the spelling {chosen.name} cannot say {' and '.join(kinds)} in one file", SVD_HINT)
    num_magnitudes = sum(entry.magnitude is not None for entry, _ in placed.values())
    if chosen.magnitude == ".lora_magnitude_vector" and 0 < num_magnitudes < len(placed):
        raise OutputError(
            f"{num_magnitudes} of {len(placed)} layers have a DoRA magnitude; PEFT knows all or none", "use --to comfy"
        )


def _tensors(entry: Entry, place: Place, chosen: Spelling) -> Iterator[tuple[str, Tensor]]:
    """Suffix and tensor of each that says this entry."""
    rank = _rank(entry.change)
    says_alpha = rank is not None and (
        chosen.alpha == "always" or (chosen.alpha == "where it is not 1" and entry.scale != 1)
    )
    if not says_alpha:
        entry = folded(entry)
    change = swapped(entry.change) if place.swapped else entry.change
    if isinstance(change, LowRank):
        yield chosen.pair[0], change.a_RI
        yield chosen.pair[1], change.b_OR
    elif isinstance(change, Full):
        yield ".diff", change.weight_OI
    elif isinstance(change, Hadamard):
        for i, product in ((1, change.first), (2, change.second)):
            yield f".hada_w{i}_a", product.b_OR
            yield f".hada_w{i}_b", product.a_RI
    else:
        for name, factor in (("lokr_w1", change.w1), ("lokr_w2", change.w2)):
            yield from _factor(name, factor)
    if says_alpha:
        assert rank is not None
        yield ".alpha", torch.tensor(entry.scale * rank, dtype=torch.float32)
    if entry.magnitude is not None:
        assert chosen.magnitude is not None
        yield chosen.magnitude, _magnitude(entry.magnitude, place, chosen)


def _factor(name: str, factor: Tensor | LowRank) -> Iterator[tuple[str, Tensor]]:
    if isinstance(factor, Tensor):
        yield f".{name}", factor
    else:
        yield f".{name}_a", factor.b_OR
        yield f".{name}_b", factor.a_RI


def _magnitude(magnitude: Tensor, place: Place, chosen: Spelling) -> Tensor:
    if magnitude.ndim == 2:
        return magnitude
    rows = torch.cat(magnitude.chunk(2)[::-1]) if place.swapped else magnitude
    return rows[:, None] if chosen.magnitude == ".dora_scale" else rows


def _rank(change: Change) -> int | None:
    """What alpha is divided by, by those who read it; None where it means nothing."""
    if isinstance(change, LowRank):
        return change.rank
    if isinstance(change, Hadamard):
        return change.first.rank
    if isinstance(change, Full):
        return None
    return next((factor.rank for factor in (change.w2, change.w1) if isinstance(factor, LowRank)), None)


def _for_diffusers(placed: Mapping[str, tuple[Entry, Place]], chosen: Spelling) -> dict[str, str]:
    """PEFT's configuration. Without it, versions of diffusers take one alpha for layers of different ranks."""
    if chosen.name != DEFAULT or any(not isinstance(entry.change, LowRank) for entry, _ in placed.values()):
        return {}
    ranks = {
        stem.removeprefix(chosen.prefix): entry.change.rank
        for stem, (entry, _) in placed.items()
        if isinstance(entry.change, LowRank)
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: own for name, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_dora": any(entry.magnitude is not None for entry, _ in placed.values()),
    }
    return {METADATA_KEY: json.dumps({f"transformer.{key}": value for key, value in config.items()}, sort_keys=True)}


def _passed_on(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value) for name, value in metadata.items() if name not in OURS}
