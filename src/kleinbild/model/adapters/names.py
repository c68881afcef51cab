"""Names: which rows of which of our layers a name in an adapter file stands for. No torch here.

Files name layers as BFL's checkpoint does or as diffusers does, with dots or, "flat", with underscores. Whether an
underscore was once a dot cannot be told from a flat name, so every known name is flattened and looked up.

What is not one to one: diffusers has q, k and v apart (rows of our fused layer), its final layer has (scale, shift) for
our (shift, scale), and some files split the single blocks' first layer as FLUX.1 had it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.layouts import diffusers_transformer
from kleinbild.model.weights.shapes import transformer_shapes

Naming = Literal["bfl", "diffusers"]
Rows = tuple[int, int]

# The longest first: "transformer." is how "transformer.base_model.model." starts.
DOTTED_PREFIXES = (
    "transformer.base_model.model.", "model.diffusion_model.", "base_model.model.", "diffusion_model.", "transformer.",
    "pipe.dit.", "unet.", "",
)  # fmt: skip
FLAT_PREFIXES = ("lora_transformer_", "lora_unet_", "lycoris_")


@dataclass(frozen=True, slots=True)
class Place:
    """Rows (start, stop) of one of our layers. `swapped`: the file has their halves the other way around."""

    module: str
    rows: Rows
    num_in: int
    whole: bool = True
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.num_in


@dataclass(frozen=True, slots=True)
class Named:
    """What a name was found to be: its prefix, whose `body` it has, in dots, and what it stands for."""

    prefix: str
    body: str
    naming: Naming
    place: Place


@cache
def modules(spec: TransformerSpec) -> Mapping[str, tuple[int, int]]:
    """Our linear layers, (rows, columns) of each."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in transformer_shapes(spec).items()}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def parts(spec: TransformerSpec, module: str) -> tuple[Rows, ...]:
    """The projections that one of our layers joins: q, k, v, and in single blocks the MLP's. Empty for other layers."""
    hidden, (num_out, _) = spec.hidden_size, modules(spec)[module]
    if not module.endswith((".qkv", ".linear1")):
        return ()
    thirds = tuple((i * hidden, (i + 1) * hidden) for i in range(3))
    return thirds if module.endswith(".qkv") else (*thirds, (3 * hidden, num_out))


@cache
def bfl_names(spec: TransformerSpec) -> Mapping[str, Place]:
    """BFL's name of each place: ours."""
    return {name: _whole(spec, name) for name in modules(spec)}


@cache
def diffusers_names(spec: TransformerSpec) -> Mapping[str, Place]:
    """diffusers' name of each place."""
    names: dict[str, Place] = {}
    for ours, source in diffusers_transformer(spec).items():
        module = ours.removesuffix(".weight")
        if module not in modules(spec):
            continue
        whole = _whole(spec, module, swapped=source.form == "swapped")
        rows = parts(spec, module) if source.form == "joined" else (whole.rows,)
        for name, part in zip(source.names, rows, strict=True):
            names[name.removesuffix(".weight")] = whole if part == whole.rows else _part(whole, part)
    return names


@cache
def fused_names(spec: TransformerSpec) -> Mapping[str, Place]:
    """The names that diffusers gives projections which it has joined, for LoKr alone: (`to_qkv`, `to_added_qkv`)."""
    streams = {"attn.to_qkv": "img_attn.qkv", "attn.to_added_qkv": "txt_attn.qkv"}
    return {
        f"transformer_blocks.{i}.{theirs}": _whole(spec, f"double_blocks.{i}.{ours}")
        for i in range(spec.num_double_blocks)
        for theirs, ours in streams.items()
    }


def find(spec: TransformerSpec, stem: str) -> Named | None:
    """What `stem`, a key without its last part, stands for; None where no layer of the model is called so."""
    for prefixes, known in ((FLAT_PREFIXES, _flat(spec)), (DOTTED_PREFIXES, _dotted(spec))):
        for prefix in prefixes:
            if stem.startswith(prefix) and (found := known.get(stem[len(prefix) :])):
                return Named(prefix, *found)
    return None


def _whole(spec: TransformerSpec, module: str, *, swapped: bool = False) -> Place:
    num_out, num_in = modules(spec)[module]
    return Place(module, (0, num_out), num_in, swapped=swapped)


def _part(whole: Place, rows: Rows) -> Place:
    return Place(whole.module, rows, whole.num_in, whole=False)


@cache
def _canonical(spec: TransformerSpec) -> Mapping[str, tuple[str, Naming, Place]]:
    bfl = {**bfl_names(spec), **dict(_split_bfl(spec))}
    theirs = {**diffusers_names(spec), **fused_names(spec), **dict(_split_diffusers(spec))}
    return {
        **{name: (name, "bfl", place) for name, place in bfl.items()},
        **{name: (name, "diffusers", place) for name, place in theirs.items()},
    }


def _split_bfl(spec: TransformerSpec) -> Iterator[tuple[str, Place]]:
    for i in range(spec.num_single_blocks):
        whole = _whole(spec, f"single_blocks.{i}.linear1")
        yield f"{whole.module}_qkv", _part(whole, (0, 3 * spec.hidden_size))


def _split_diffusers(spec: TransformerSpec) -> Iterator[tuple[str, Place]]:
    """Single blocks as FLUX.1's were named: q, k, v and MLP apart."""
    for i in range(spec.num_single_blocks):
        whole = _whole(spec, f"single_blocks.{i}.linear1")
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        for name, rows in zip(names, parts(spec, whole.module), strict=True):
            yield f"single_transformer_blocks.{i}.{name}", _part(whole, rows)
        yield f"single_transformer_blocks.{i}.proj_out", _whole(spec, f"single_blocks.{i}.linear2")


@cache
def _dotted(spec: TransformerSpec) -> Mapping[str, tuple[str, Naming, Place]]:
    """With the variations that are seen: blocks whose name lost its start, names of which only the end is flat."""
    known = _canonical(spec)
    aliases = {}
    for name, found in known.items():
        if name.startswith("transformer_blocks."):
            aliases[name.removeprefix("tran")] = found
        block = name.split(".", 2)
        if len(block) == 3:
            aliases[f"{block[0]}.{block[1]}.{_flattened(block[2])}"] = found
    return {**aliases, **known}


@cache
def _flat(spec: TransformerSpec) -> Mapping[str, tuple[str, Naming, Place]]:
    return {_flattened(name): found for name, found in _canonical(spec).items()}


def _flattened(name: str) -> str:
    return name.replace(".", "_")
