"""Keys of adapter files: key := prefix, a layer's name, suffix. What the suffix says of the tensor. No torch here.

Every spelling that is seen is read; what cannot be applied exactly is refused by name, and what nobody knows is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Style = Literal["lora_A", "lora_down", "lora.down", "_lora.down", "lora_linear_layer", ""]

# PEFT puts the adapter's name in: `.lora_A.default.weight`
_NAMED = r"(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
_FACTORS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
)  # fmt: skip

# (end of the key, what the tensor is, the writers' style)
_ENDS: tuple[tuple[str, str, Style], ...] = (
    (rf"\.lora_A{_NAMED}", "down", "lora_A"),
    (rf"\.lora_B{_NAMED}", "up", "lora_A"),
    (r"\.lora_down(?:\.weight)?", "down", "lora_down"),
    (r"\.lora_up(?:\.weight)?", "up", "lora_down"),
    (r"\.lora\.down\.weight", "down", "lora.down"),
    (r"\.lora\.up\.weight", "up", "lora.down"),
    (r"_lora\.down\.weight", "down", "_lora.down"),
    (r"_lora\.up\.weight", "up", "_lora.down"),
    (r"\.lora_linear_layer\.down\.weight", "down", "lora_linear_layer"),
    (r"\.lora_linear_layer\.up\.weight", "up", "lora_linear_layer"),
    (r"(?:[._]lora)?\.alpha", "alpha", ""),
    (r"\.dora_scale", "magnitude", ""),
    (rf"\.lora_magnitude_vector{_NAMED}", "magnitude", ""),
    (r"\.diff", "diff", ""),
    *((rf"\.{factor}{_NAMED}", factor, "") for factor in _FACTORS),
)
_SUFFIXES = tuple((re.compile(f"{pattern}$"), role, style) for pattern, role, style in _ENDS)
_TEXT_ENCODER = re.compile(
    r"(?:lora_te\d*_|lora_prior_te_|text_encoders?[._]|text_encoder_\d+\.|te\d*\.|conditioner\.|cond_stage_model\.|clip_[lg]\.|bundle_emb\.)"
)
_REFUSED = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\.(?:oft|boft)_\w+(?:\.\w+)*$|\.(?:oft|boft)\.\w+$", "orthogonal fine-tuning (OFT)"),
        (r"\.(?:lokr_t2|hada_t[12])(?:\.\w+)*$|\.lora_mid\.weight$", "a Tucker core, which is for convolutions"),
        (r"\.diff_b$|\.lora_B(?:\.\w+)?\.bias$", "a change of a bias; the model has none"),
        (r"\.set_weight$", "weights that replace the model's"),
        (r"\.reshape_weight$", "a change of the model's shapes"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """A key taken apart: the layer's name with its prefix (`stem`), what the tensor is (`role`), how that was written
    (`style`), and the adapter's name where there is one."""

    text: str
    stem: str
    role: str
    style: Style
    adapter: str | None = None


def parse(text: str) -> Key | None:
    """None: the end of the key says nothing that is known."""
    for pattern, role, style in _SUFFIXES:
        if match := pattern.search(text):
            return Key(text, text[: match.start()], role, style, match.groupdict().get("adapter"))
    return None


def is_text_encoder(text: str) -> bool:
    """Whether a key is of a text encoder, which adapters of this family leave as it is."""
    return _TEXT_ENCODER.match(text) is not None


def refusal(text: str) -> str | None:
    """What a key holds that is known and cannot be applied."""
    return next((reason for pattern, reason in _REFUSED if pattern.search(text)), None)
