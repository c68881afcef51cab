"""Adapter files as other programs write them: keys are put together here, by hand, and by nothing of ours.

One ΔW for each projection is the truth; every spelling says the same in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import tiny

SPEC = tiny.SPEC.transformer
D, MLP, DOUBLES, SINGLES = 64, 192, 2, 3
Products = dict[str, tuple[Tensor, Tensor]]

EDGES = {  # BFL's name: diffusers' name, rows, columns
    "img_in": ("x_embedder", D, 128),
    "txt_in": ("context_embedder", D, 72),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1", D, 256),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2", D, D),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear", 6 * D, D),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear", 6 * D, D),
    "single_stream_modulation.lin": ("single_stream_modulation.linear", 3 * D, D),
    "final_layer.linear": ("proj_out", 128, D),
    "final_layer.adaLN_modulation.1": ("norm_out.linear", 2 * D, D),
}
DOUBLE = {
    "img_attn.proj": ("attn.to_out.0", D, D),
    "txt_attn.proj": ("attn.to_add_out", D, D),
    "img_mlp.0": ("ff.linear_in", 2 * MLP, D),
    "img_mlp.2": ("ff.linear_out", D, MLP),
    "txt_mlp.0": ("ff_context.linear_in", 2 * MLP, D),
    "txt_mlp.2": ("ff_context.linear_out", D, MLP),
}
ATTENTION = {"img_attn": ("to_q", "to_k", "to_v"), "txt_attn": ("add_q_proj", "add_k_proj", "add_v_proj")}
SINGLE = {"linear1": ("attn.to_qkv_mlp_proj", 3 * D + 2 * MLP, D), "linear2": ("attn.to_out", D, D + MLP)}
TIME = ("time_in.", "double_stream_mod", "single_stream_mod")
ADA = "final_layer.adaLN_modulation.1"


@dataclass(frozen=True)
class Layers:
    """Low-rank products (A, B) by the names of each naming, and ΔW by ours. ΔW is B·A."""

    bfl: Products
    diffusers: Products
    truth: dict[str, Tensor]


def swap(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat((second, first))


def layers(rank: int = 3, seed: int = 0, *, only: tuple[str, ...] = (), size: float = 1.0) -> Layers:
    """Every linear layer changed, or those whose names start so."""
    generator = torch.Generator().manual_seed(seed)
    bfl: Products = {}
    theirs: Products = {}

    def product(num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
        a = torch.randn(rank, num_in, generator=generator) * num_in**-0.5
        return a, size * torch.randn(num_out, rank, generator=generator) * rank**-0.5

    def add(name: str, other: str, num_out: int, num_in: int) -> None:
        a, b = product(num_out, num_in)
        bfl[name], theirs[other] = (a, b), (a, swap(b) if name == ADA else b)

    for name, (other, *shape) in EDGES.items():
        add(name, other, *shape)
    for i in range(DOUBLES):
        for name, (other, *shape) in DOUBLE.items():
            add(f"double_blocks.{i}.{name}", f"transformer_blocks.{i}.{other}", *shape)
        for stream, projections in ATTENTION.items():
            apart = [product(D, D) for _ in projections]
            for projection, each in zip(projections, apart, strict=True):
                theirs[f"transformer_blocks.{i}.attn.{projection}"] = each
            a = torch.cat([each[0] for each in apart])
            bfl[f"double_blocks.{i}.{stream}.qkv"] = a, torch.block_diag(*[each[1] for each in apart])
    for i in range(SINGLES):
        for name, (other, *shape) in SINGLE.items():
            add(f"single_blocks.{i}.{name}", f"single_transformer_blocks.{i}.{other}", *shape)
    if only:
        bfl = {name: each for name, each in bfl.items() if name.startswith(only)}
        theirs = {name: each for name, each in theirs.items() if any(_same(name, ours) for ours in bfl)}
    return Layers(bfl, theirs, {name: b @ a for name, (a, b) in bfl.items()})


def _same(theirs: str, ours: str) -> bool:
    if ours in EDGES:
        return theirs == EDGES[ours][0]
    kind, i, rest = ours.split(".", 2)
    block = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}[kind] + f".{i}."
    if rest.endswith(".qkv"):
        return theirs in [f"{block}attn.{each}" for each in ATTENTION[rest.removesuffix(".qkv")]]
    return theirs == block + {**DOUBLE, **SINGLE}[rest][0]


def flux1(products: Products) -> Products:
    """Single blocks' first layer as FLUX.1's files have it: q, k, v and MLP apart, all with the same A."""
    out: Products = {}
    for name, (a, b) in products.items():
        if name.endswith(".to_qkv_mlp_proj"):
            block = name.split(".attn.")[0]
            rows = b.split((D, D, D, 2 * MLP))
            names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            out |= {f"{block}.{part}": (a, own) for part, own in zip(names, rows, strict=True)}
        elif name.startswith("single_") and name.endswith(".attn.to_out"):
            out[name.replace("attn.to_out", "proj_out")] = (a, b)
        else:
            out[name] = (a, b)
    return out


def flat(name: str) -> str:
    return name.replace(".", "_")


def half_flat(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) + "." + "_".join(parts[2:]) if "blocks" in parts[0] else name


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def dense(adapter: object) -> dict[str, Tensor]:
    """ΔW of every layer, put together from the entries' rows."""
    full: dict[str, Tensor] = {}
    from kleinbild.model.adapters.names import modules

    for entry in adapter.entries:  # type: ignore[attr-defined]
        shape = modules(SPEC)[entry.module]
        start, stop = entry.rows or (0, shape[0])
        full.setdefault(entry.module, torch.zeros(shape))[start:stop] += entry.delta()
    return full


def same(adapter: object, truth: dict[str, Tensor], limit: float = 1e-6) -> None:
    found = dense(adapter)
    assert found.keys() == truth.keys()
    for name, delta in truth.items():
        assert float((found[name] - delta).abs().max()) <= limit, name
