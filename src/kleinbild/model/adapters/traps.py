"""What ComfyUI and diffusers make of an adapter file that Kleinbild reads as it was meant: the alpha trap and others.

ComfyUI takes alpha from keys alone and never from metadata; diffusers from metadata, and from keys of kohya's files.
Both leave out what they do not know, with a warning at most. No torch here, but for the numbers in alpha's keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kleinbild.model.adapters.names import FLAT_PREFIXES
from kleinbild.model.adapters.plan import Group
from kleinbild.model.adapters.scales import METADATA_KEY, declared, scale

Program = str
_KOHYA = "lora_unet_"
_COMFYUI = {
    ("diffusion_model.", "bfl"), ("lora_unet_", "bfl"),
    ("transformer.", "diffusers"), ("", "diffusers"), ("lycoris_", "diffusers"), ("lora_transformer_", "diffusers"),
}  # fmt: skip
_NOT_COMFYUI = (".to_qkv", ".to_added_qkv", ".proj_mlp")  # the last has other rows there: FLUX.1's
_TIME = ("time_in.", "double_stream_modulation_", "single_stream_modulation.")


@dataclass(frozen=True, slots=True)
class Trap:
    """A program that reads the file otherwise. `factor`: how many times too strong; None where that is not it."""

    program: Program
    effect: str
    factor: float | None = None


def traps(groups: Sequence[Group], metadata: Mapping[str, str], path: Path) -> tuple[Trap, ...]:
    says = declared(path, metadata)
    without_keys = {id(group): scale(group, None, says) for group in groups if "alpha" not in group.keys}
    return (*_comfyui(groups, without_keys), *_diffusers(groups, metadata, without_keys))


def _comfyui(groups: Sequence[Group], without_keys: Mapping[int, float]) -> Iterator[Trap]:
    """Without a key, its scale is 1. It knows BFL's names behind two prefixes, diffusers' behind four."""
    unknown = [group for group in groups if not _known_to_comfyui(group)]
    if len(unknown) == len(groups):
        yield Trap("ComfyUI", f"loads nothing: it does not know names such as {_key(unknown[0])}")
        return
    if unknown:
        yield Trap(
            "ComfyUI",
            f"leaves out {len(unknown)} of {len(groups)} changes: it does not know names such as {_key(unknown[0])}",
        )
    yield from _strength("ComfyUI", [1 / without_keys[id(group)] for group in groups if without_keys.get(id(group))])
    if any("lora_magnitude_vector" in group.keys.get("magnitude", "") for group in groups):
        yield Trap("ComfyUI", "leaves out the DoRA magnitudes: it knows them as .dora_scale")


def _known_to_comfyui(group: Group) -> bool:
    named = group.named
    if (named.prefix, named.naming) not in _COMFYUI:
        return False
    if named.naming == "diffusers" and (named.place.module.startswith(_TIME) or named.body.endswith(_NOT_COMFYUI)):
        return False
    as_known = named.prefix + (named.body.replace(".", "_") if named.prefix in FLAT_PREFIXES else named.body)
    return _key(group).startswith((f"{as_known}.", f"{as_known}_lora."))


def _key(group: Group) -> str:
    return next(iter(group.keys.values()))


def _diffusers(
    groups: Sequence[Group], metadata: Mapping[str, str], without_keys: Mapping[int, float]
) -> Iterator[Trap]:
    """Its own keys only begin with `transformer.`; what it converts is known from its source and from trying."""
    prefixes = {group.named.prefix for group in groups}
    kohya = any(group.keys.get("down", "").endswith(".lora_down.weight") for group in groups)
    if any(group.kind in ("loha", "diff") for group in groups):
        yield Trap("diffusers", "refuses it: it knows LoRA and LoKr")
        return
    if any("dora_scale" in group.keys.get("magnitude", "") for group in groups):
        yield Trap("diffusers", "leaves out the DoRA magnitudes: it knows them as .lora_magnitude_vector")
    if kohya and prefixes != {_KOHYA}:
        yield Trap("diffusers", "loads nothing, with a warning alone: it reads .lora_down of lora_unet_ only")
        return
    if kohya:
        if any(group.named.place.module.startswith((*_TIME, "final_layer.adaLN")) for group in groups):
            yield Trap("diffusers", "leaves out time, modulation and the final layer's adaLN of this spelling")
        return
    lora = [group for group in groups if group.kind == "lora"]
    if any("alpha" in group.keys for group in lora):
        yield Trap("diffusers", "refuses it: keys with .alpha beside .lora_A are unknown to it")
        return
    if prefixes == {""} and lora:
        yield Trap("diffusers", "loads nothing, with a warning alone: its keys do not begin with transformer.")
        return
    if any(group.named.naming == "bfl" and group.named.place.module.startswith("final_layer.ada") for group in groups):
        yield Trap("diffusers", "mixes up shift and scale of the final layer, whose halves it does not swap")
    if METADATA_KEY not in metadata:  # PEFT's config beside the file is not looked at
        yield from _strength("diffusers", [1 / without_keys[id(each)] for each in lora if without_keys.get(id(each))])


def _strength(program: Program, factors: Sequence[float]) -> Iterator[Trap]:
    wrong = [factor for factor in factors if abs(factor - 1) > 1e-6]
    if not wrong:
        return
    low, high = min(wrong), max(wrong)
    span = f"{low:.4g}" if high - low < 1e-6 * high else f"{low:.4g} to {high:.4g}"
    layers = "" if len(wrong) == len(factors) else f" in {len(wrong)} of its layers"
    yield Trap(program, f"plays it {span} times as strongly{layers}: it does not read where alpha stands", wrong[0])
