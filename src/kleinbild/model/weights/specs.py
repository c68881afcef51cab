"""Specs read off the shapes of stored tensors: how nano, 4B and 9B are told apart.

Each number is read off several tensors and the majority wins, so that a misshapen tensor is reported as such instead of
bending the spec. What shapes do not tell comes from the settings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from kleinbild.core.errors import WeightsError
from kleinbild.model.spec import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.weights.components import Component
from kleinbild.model.weights.layouts import Shape
from kleinbild.model.weights.settings import Settings

Family = Literal["nano", "klein-4b", "klein-9b"]

# Official families by hidden size: (name, double blocks, single blocks). With the counts known, a file that lacks its
# last blocks is told as incomplete instead of passing for a shorter model.
OFFICIAL: dict[int, tuple[Family, int, int]] = {3072: ("klein-4b", 5, 20), 4096: ("klein-9b", 8, 24)}
LARGEST_NANO = 1024  # hidden size; no official model is that small, and nano may yet grow

Place = tuple[str, int, int]  # (pattern of names, axis, divisor)
TRANSFORMER_PLACES: dict[str, dict[str, tuple[Place, ...]]] = {
    "bfl": {
        "hidden size": ((r"(img|txt|time)_in\..*", 0, 1), (r".*(_attn\.proj|linear2)\.weight", 0, 1)),
        "head dim": ((r".*_norm\.scale", 0, 1),),
        "context width": ((r"txt_in\.weight", 1, 1),),
        "channels": ((r"img_in\.weight", 1, 1), (r"final_layer\.linear\.weight", 0, 1)),
        "time channels": ((r"time_in\.in_layer\.weight", 1, 1),),
        "MLP width": ((r".*_mlp\.2\.weight", 1, 1), (r".*_mlp\.0\.weight", 0, 2)),
    },
    "diffusers": {
        "hidden size": ((r"(x|context)_embedder\..*|time_guid.*", 0, 1), (r".*attn\.to_(\w|\w*out.*)\.weight", 0, 1)),
        "head dim": ((r".*\.attn\.norm_\w+\.weight", 0, 1),),
        "context width": ((r"context_embedder\.weight", 1, 1),),
        "channels": ((r"x_embedder\.weight", 1, 1), (r"proj_out\.weight", 0, 1)),
        "time channels": ((r"time_guidance_embed\..*linear_1\.weight", 1, 1),),
        "MLP width": ((r".*\.ff\w*\.linear_out\.weight", 1, 1), (r".*\.ff\w*\.linear_in\.weight", 0, 2)),
    },
}
TEXT_ENCODER_PLACES: dict[str, tuple[Place, ...]] = {
    "hidden size": ((r".*layernorm\.weight", 0, 1), (r"model\.embed_tokens\.weight", 1, 1)),
    "head dim": ((r".*self_attn\.[qk]_norm\.weight", 0, 1),),
    "queries": ((r".*q_proj\.weight", 0, 1), (r".*o_proj\.weight", 1, 1)),
    "keys": ((r".*[kv]_proj\.weight", 0, 1),),
    "MLP width": ((r".*(gate|up)_proj\.weight", 0, 1), (r".*down_proj\.weight", 1, 1)),
    "vocabulary": ((r"model\.embed_tokens\.weight|lm_head\.weight", 0, 1),),
}
AUTOENCODER_LEVELS = {
    "bfl": r"encoder\.down\.(\d+)\.block\.(\d+)",
    "diffusers": r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)",
}
DECODER_PLACES: tuple[Place, ...] = ((r"decoder\.conv_out\.weight", 1, 1), (r"decoder\.(?:conv_)?norm_out\.\w+", 0, 1))
LATENT_PLACES: tuple[Place, ...] = ((r"encoder\.conv_out\.\w+", 0, 2), (r".*post_quant_conv\.\w+", 0, 1))


def family(spec: TransformerSpec) -> Family | None:
    """The family that a transformer belongs to, or None where it is somebody's own."""
    if spec.hidden_size <= LARGEST_NANO:
        return "nano"
    for hidden, (name, doubles, singles) in OFFICIAL.items():
        if (spec.hidden_size, spec.num_double_blocks, spec.num_single_blocks) == (hidden, doubles, singles):
            return name
    return None


def transformer_spec(component: Component) -> TransformerSpec:
    """Raises WeightsError where too little is there to tell, here and below."""
    shapes = component.shapes
    read = {number: _vote(component, number, places) for number, places in TRANSFORMER_PLACES[component.naming].items()}
    hidden, head_dim = read["hidden size"], read["head dim"]
    doubles, singles = OFFICIAL[hidden][1:] if hidden in OFFICIAL else (0, 0)
    if hidden % head_dim or head_dim % 8:
        raise WeightsError(f"{component.place}: heads of {head_dim} channels do not fit a width of {hidden}")
    return TransformerSpec(
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        num_double_blocks=max(doubles, _count(shapes, r"(?:double_blocks|transformer_blocks)\.(\d+)\.")),
        num_single_blocks=max(singles, _count(shapes, r"(?:single_blocks|single_transformer_blocks)\.(\d+)\.")),
        context_size=read["context width"],
        in_channels=read["channels"],
        mlp_ratio=read["MLP width"] / hidden,
        rope_axes=(head_dim // 4,) * 4,  # equal shares in every model of the family
        time_channels=read["time channels"],
    )


def num_text_layers(component: Component) -> int:
    """How many layers of a text encoder are stored."""
    return _count(component.shapes, r"model\.layers\.(\d+)\.")


def text_encoder_spec(component: Component, settings: Settings) -> TextEncoderSpec:
    read = {number: _vote(component, number, places) for number, places in TEXT_ENCODER_PLACES.items()}
    head_dim = read["head dim"]
    if min(settings.text_layers) < 1:
        raise WeightsError(f"text layers {settings.text_layers}: layers are counted from 1")
    return TextEncoderSpec(
        hidden_size=read["hidden size"],
        # A file that ends after the last layer needed was cut from a longer model.
        num_layers=max(num_text_layers(component), max(settings.text_layers) + 1),
        num_heads=read["queries"] // head_dim,
        num_key_value_heads=read["keys"] // head_dim,
        head_dim=head_dim,
        mlp_size=read["MLP width"],
        vocab_size=read["vocabulary"],
        layers=settings.text_layers,
        max_tokens=settings.max_text_tokens,
    )


def autoencoder_spec(component: Component, settings: Settings) -> AutoencoderSpec:
    level = AUTOENCODER_LEVELS[component.naming]
    blocks = [(int(m[1]), int(m[2])) for name in component.shapes if (m := re.match(level, name))]
    numbered = level.replace(r"(\d+)", "{}")
    num_levels, num_blocks = (1 + max((block[axis] for block in blocks), default=-1) for axis in (0, 1))
    of_level = ((numbered.format(i, r"\d+") + r"\.(conv[12]|norm2)\.bias", 0, 1) for i in range(num_levels))
    widths = [_vote(component, "width", (place,)) for place in of_level]
    if not widths or any(width % widths[0] for width in widths):
        raise WeightsError(f"{component.place}: {widths} are no widths of an autoencoder's levels")
    decoder_width = _vote(component, "decoder's width", DECODER_PLACES)
    return AutoencoderSpec(
        base_channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=num_blocks,
        latent_channels=_vote(component, "latent channels", LATENT_PLACES),
        num_groups=settings.num_groups,
        decoder_base_channels=decoder_width if decoder_width != widths[0] else None,
    )


def _vote(component: Component, number: str, places: tuple[Place, ...]) -> int:
    votes: Counter[int] = Counter()
    for name, shape in component.shapes.items():
        for pattern, axis, divisor in places:
            if axis < len(shape) and re.fullmatch(pattern, name):
                votes[shape[axis] // divisor] += 1
    if not votes or (winner := votes.most_common(1)[0][0]) < 1:
        raise WeightsError(
            f"{component.place}: the {number} cannot be told, too many tensors are missing", "fetch the file again"
        )
    return winner


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
