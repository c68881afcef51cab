"""Which network a set of stored tensors is and how its tensors are named: told by the names, never by file names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kleinbild.model.weights.headers import StoredTensors
from kleinbild.model.weights.layouts import COMFYUI_PREFIX, Naming, Shape
from kleinbild.model.weights.scaled import with_scales

Kind = Literal["transformer", "text_encoder", "autoencoder"]
Layout = Literal["bfl", "diffusers", "comfyui", "gguf"]

# How each network's tensors begin; the one that fits most names is it. The text encoder has one naming everywhere.
BEGINNINGS: dict[tuple[Kind, Naming], str] = {
    ("transformer", "bfl"): r"(double|single)_blocks\.|(img|txt|time)_in\.|final_layer\.|\w+_modulation\w*\.lin\.",
    ("transformer", "diffusers"): (
        r"(single_)?transformer_blocks\.|(x|context)_embedder\.|time_guidance_embed\.|(norm|proj)_out\."
        r"|\w+_modulation\w*\.linear\."
    ),
    ("autoencoder", "bfl"): r"encoder\.down\.|decoder\.up\.|(en|de)coder\.(mid|conv|norm|quant|post_quant)_?|bn\.",
    ("autoencoder", "diffusers"): r"(encoder\.down|decoder\.up|(en|de)coder\.mid)_block|(post_)?quant_conv\.|bn\.",
    ("text_encoder", "bfl"): r"model\.(embed_tokens|layers|norm)\.|lm_head\.",
}


@dataclass(frozen=True, slots=True)
class Component:
    """One network's stored tensors. Behind `prefix`, which may be empty, they are called as `naming` says."""

    kind: Kind
    layout: Layout
    naming: Naming
    prefix: str
    stored: StoredTensors

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes by name, without the prefix."""
        return {name.removeprefix(self.prefix): info.shape for name, info in self.stored.tensors.items()}

    @property
    def place(self) -> str:
        """Where it lies, for messages: the file, or the folder of its files."""
        paths = self.stored.paths
        return str(paths[0] if len(paths) == 1 else paths[0].parent)


def recognize(stored: StoredTensors) -> Component | None:
    """Which network this is, or None where the names fit none."""
    stored = with_scales(stored)
    prefix = COMFYUI_PREFIX if any(name.startswith(COMFYUI_PREFIX) for name in stored.tensors) else ""
    names = [name.removeprefix(prefix) for name in stored.tensors]
    hits = {key: sum(bool(re.match(start, name)) for name in names) for key, start in BEGINNINGS.items()}
    kind, naming = max(hits, key=lambda key: hits[key])
    if 2 * hits[kind, naming] <= len(names):
        return None
    layout: Layout = "gguf" if stored.container == "gguf" else "comfyui" if prefix else naming
    return Component(kind, layout, naming, prefix, stored)
