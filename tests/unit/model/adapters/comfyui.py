"""What ComfyUI reads of an adapter file for FLUX.2: its names and its rules, stated here anew and by nothing of ours.

Source: `comfy/lora.py` and `comfy/utils.py` of 2026. No alpha but from keys; names of diffusers are rows of BFL's layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.model.adapters.files import ATTENTION, DOUBLE, DOUBLES, EDGES, SINGLE, SINGLES, TIME, D, swap

Rows = tuple[int, int] | None
LORA = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)


def known_stems() -> dict[str, tuple[str, Rows, bool]]:
    """A key without its end: BFL's layer, its rows, whether halves are swapped."""
    names: dict[str, tuple[str, Rows, bool]] = {}
    theirs: dict[str, tuple[str, Rows, bool]] = {}
    for name, (other, *_) in EDGES.items():
        names[name] = (name, None, False)
        if not name.startswith(TIME):
            theirs[other] = (name, None, other == "norm_out.linear")
    for i in range(DOUBLES):
        for name, (other, *_) in DOUBLE.items():
            names[f"double_blocks.{i}.{name}"] = theirs[f"transformer_blocks.{i}.{other}"] = (
                f"double_blocks.{i}.{name}",
                None,
                False,
            )
        for stream, projections in ATTENTION.items():
            fused = f"double_blocks.{i}.{stream}.qkv"
            names[fused] = (fused, None, False)
            for k, projection in enumerate(projections):
                theirs[f"transformer_blocks.{i}.attn.{projection}"] = (fused, (k * D, (k + 1) * D), False)
    for i in range(SINGLES):
        for name, (other, *_) in SINGLE.items():
            ours = f"single_blocks.{i}.{name}"
            names[ours] = theirs[f"single_transformer_blocks.{i}.{other}"] = (ours, None, False)
    known = {f"diffusion_model.{name}": place for name, place in names.items()}
    known |= {"lora_unet_" + name.replace(".", "_"): place for name, place in names.items()}
    for name, place in theirs.items():
        known |= {f"transformer.{name}": place, name: place}
        known |= {f"{prefix}{name.replace('.', '_')}": place for prefix in ("lycoris_", "lora_transformer_")}
    return known


def read(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, int]]) -> tuple[dict[str, Tensor], set[str]]:
    """ΔW by BFL's layers, and the keys that were not loaded."""
    left, deltas = set(tensors), {}
    for stem, (layer, rows, swapped) in known_stems().items():
        delta, used = _delta(stem, tensors)
        if delta is None:
            continue
        left -= used
        whole = deltas.setdefault(layer, torch.zeros(shapes[layer]))
        start, stop = rows or (0, len(whole))
        whole[start:stop] += swap(delta) if swapped else delta
    return deltas, left


def _delta(stem: str, tensors: dict[str, Tensor]) -> tuple[Tensor | None, set[str]]:
    alpha = tensors.get(f"{stem}.alpha")
    used = {f"{stem}.alpha"} if alpha is not None else set()
    for up, down in LORA:
        if stem + up in tensors:
            scale = 1.0 if alpha is None else float(alpha) / len(tensors[stem + down])
            return scale * tensors[stem + up] @ tensors[stem + down], used | {stem + up, stem + down}
    if f"{stem}.diff" in tensors:
        return tensors[f"{stem}.diff"], {f"{stem}.diff"}
    keys = {key for key in tensors if key.startswith((f"{stem}.lokr_", f"{stem}.hada_"))}
    if not keys:
        return None, set()
    part = {key.removeprefix(f"{stem}."): tensors[key] for key in keys}
    if "hada_w1_a" in part:
        scale = 1.0 if alpha is None else float(alpha) / len(part["hada_w1_b"])
        return scale * (part["hada_w1_a"] @ part["hada_w1_b"]) * (part["hada_w2_a"] @ part["hada_w2_b"]), keys | used
    factors = [part[w] if w in part else part[f"{w}_a"] @ part[f"{w}_b"] for w in ("lokr_w1", "lokr_w2")]
    ranked = part.get("lokr_w2_b", part.get("lokr_w1_b"))
    scale = 1.0 if alpha is None or ranked is None else float(alpha) / len(ranked)
    return scale * torch.kron(*factors), keys | used
