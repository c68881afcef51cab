"""The spellings that adapter files are written in, as data. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kleinbild.core.errors import RequestError
from kleinbild.model.adapters.names import Naming, Place, bfl_names, diffusers_names
from kleinbild.model.spec import TransformerSpec

Kind = Literal["LoRA", "LoKr", "LoHa", "a whole matrix"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """`alpha`: "folded" into the matrices, a key "where it is not 1", or a key for each layer ("always").

    `magnitude` is what a DoRA magnitude is called, None where it cannot be said; `by_columns`: whether it may be one
    number for each column. `kinds` can be said, `mixed` if several in one file.
    """

    name: str
    what: str
    prefix: str
    naming: Naming
    pair: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")
    flat: bool = False
    alpha: Literal["folded", "where it is not 1", "always"] = "folded"
    magnitude: str | None = None
    by_columns: bool = False
    kinds: tuple[Kind, ...] = ("LoRA",)
    mixed: bool = True

    def places(self, spec: TransformerSpec) -> Mapping[str, Place]:
        return bfl_names(spec) if self.naming == "bfl" else diffusers_names(spec)

    def stem(self, name: str) -> str:
        return self.prefix + (name.replace(".", "_") if self.flat else name)


_KOHYA_PAIR = (".lora_down.weight", ".lora_up.weight")
_ALL: tuple[Kind, ...] = ("LoRA", "LoKr", "LoHa", "a whole matrix")

SPELLINGS = {
    each.name: each
    for each in (
        Spelling(
            "diffusers", "diffusers, ComfyUI and mflux load it as it is", "transformer.", "diffusers",
            magnitude=".lora_magnitude_vector", kinds=("LoRA", "LoKr"), mixed=False,
        ),
        Spelling(
            "comfy", "ComfyUI, with all that it can say", "diffusion_model.", "bfl",
            alpha="where it is not 1", magnitude=".dora_scale", by_columns=True, kinds=_ALL,
        ),
        Spelling("aitk", "as ai-toolkit and diffusion-pipe write", "diffusion_model.", "bfl", kinds=("LoRA", "LoKr")),
        Spelling(
            "kohya", "as musubi-tuner writes", "lora_unet_", "bfl", pair=_KOHYA_PAIR, flat=True,
            alpha="always", magnitude=".dora_scale", by_columns=True, kinds=_ALL,
        ),
        Spelling(
            "onetrainer", "as OneTrainer's legacy format", "transformer.", "diffusers", pair=_KOHYA_PAIR,
            alpha="always", magnitude=".dora_scale", by_columns=True,
        ),
        Spelling("original", "BFL's names and nothing before them", "", "bfl"),
        Spelling(
            "diffsynth", "as DiffSynth-Studio writes", "", "diffusers",
            pair=(".lora_A.default.weight", ".lora_B.default.weight"),
        ),
        Spelling("peft", "as PEFT writes", "base_model.model.", "diffusers", magnitude=".lora_magnitude_vector"),
    )
}  # fmt: skip
DEFAULT = "diffusers"

# diffusers' names of these are not known to ComfyUI.
_OF_TIME = ("time_in.", "double_stream_modulation_", "single_stream_modulation.")


def spelling(name: str) -> Spelling:
    """Raises RequestError, which lists the known ones."""
    if name in SPELLINGS:
        return SPELLINGS[name]
    close = difflib.get_close_matches(name, SPELLINGS, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise RequestError(
        f"{name!r} is no spelling of adapter files; known are {', '.join(SPELLINGS)}", f"{guess}".strip()
    )


def unsayable(chosen: Spelling, modules: Iterable[str]) -> str | None:
    """A layer of `modules` that the spelling has no name for which every program knows. To ask before training."""
    return next((name for name in modules if chosen.name == DEFAULT and name.startswith(_OF_TIME)), None)
