"""Who wrote an adapter file, as far as its spelling and its metadata tell. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from kleinbild.model.adapters.plan import Group
from kleinbild.model.adapters.scales import METADATA_KEY

# By prefix, naming, and "lora_A" or another style of pair, or "" for LoKr and LoHa.
_SPELLINGS = {
    ("transformer.", "diffusers", "lora_A"): "diffusers",
    ("transformer.", "diffusers", "lora_down"): "OneTrainer (legacy)",
    ("transformer.", "diffusers", "lora_linear_layer"): "diffusers (before PEFT)",
    ("diffusion_model.", "bfl", "lora_A"): "ai-toolkit or diffusion-pipe",
    ("diffusion_model.", "bfl", ""): "ai-toolkit",
    ("diffusion_model.", "bfl", "lora_down"): "a converter for ComfyUI",
    ("base_model.model.", "bfl", "lora_A"): "fal",
    ("base_model.model.", "diffusers", "lora_A"): "PEFT",
    ("base_model.model.", "diffusers", ""): "PEFT",
    ("lora_unet_", "bfl", "lora_down"): "musubi-tuner, or another in the manner of kohya",
    ("lora_transformer_", "diffusers", "lora_down"): "OneTrainer",
    ("lycoris_", "diffusers", ""): "LyCORIS",
    ("lycoris_", "diffusers", "lora_down"): "LyCORIS",
    ("", "bfl", "lora_A"): "OneTrainer (original names)",
    ("", "diffusers", "lora_A"): "DiffSynth, or raw PEFT",
}
_BY_METADATA = (
    ("kleinbild", "Kleinbild"), ("ai-toolkit", "ai-toolkit"), ("onetrainer", "OneTrainer"), ("musubi", "musubi-tuner"),
    ("simpletuner", "SimpleTuner"), ("diffsynth", "DiffSynth"), ("mflux", "mflux"), ("unsloth", "Unsloth"),
)  # fmt: skip
_TELLING = (
    "software",
    "modelspec.implementation",
    "modelspec.author",
    "trainer",
    "ss_training_comment",
    "kleinbild.version",
)


def origin_of(groups: Sequence[Group], metadata: Mapping[str, str]) -> str:
    """The writer in words."""
    told = " ".join(f"{name} {metadata[name]}" for name in _TELLING if name in metadata).lower()
    for word, writer in _BY_METADATA:
        if word in told:
            return writer
    if "ss_network_module" in metadata:
        return "musubi-tuner, or another in the manner of kohya"
    spelled = Counter((group.named.prefix, group.named.naming, group.style) for group in groups)
    spelling = spelled.most_common(1)[0][0]
    if spelling[:2] == ("diffusion_model.", "bfl") and spelling[2] and any("alpha" in group.keys for group in groups):
        return "a writer for ComfyUI (SimpleTuner, OneTrainer)"
    if METADATA_KEY in metadata:
        return "diffusers"
    known = _SPELLINGS.get(spelling)
    prefix, naming, style = spelling
    return known or f"unknown ({prefix or 'no prefix'}, {naming} names, {style or groups[0].kind})"
