"""diffusers' and transformers' own networks with the same weights as ours: the numerical reference.

Everything is built from our networks, so that a test fills ours with random weights and gets its counterpart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights.configs import SCHEDULER, autoencoder_config, qwen3_config, transformer_config
from kleinbild.model.weights.convert import convert_from_ours
from kleinbild.model.weights.export import export_diffusers, qwen3_state
from kleinbild.model.weights.layouts import diffusers_autoencoder, diffusers_transformer


def transformer(network: Flux2Transformer) -> Flux2Transformer2DModel:
    theirs = Flux2Transformer2DModel(**transformer_config(network.spec))
    theirs.load_state_dict(convert_from_ours(diffusers_transformer(network.spec), network.state_dict()))
    return theirs.eval()


def autoencoder(network: Autoencoder) -> AutoencoderKLFlux2:
    theirs = AutoencoderKLFlux2(**autoencoder_config(network.spec))
    state = convert_from_ours(diffusers_autoencoder(network.spec), network.state_dict())
    theirs.load_state_dict({**state, "bn.num_batches_tracked": torch.tensor(0)})
    return theirs.eval()


def text_encoder(network: TextEncoder) -> Qwen3ForCausalLM:
    theirs = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(network.spec, network.spec.num_layers_needed + 1)))
    theirs.load_state_dict({**qwen3_state(network), "lm_head.weight": network.model.embed_tokens.weight})
    return theirs.eval()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{k: v for k, v in SCHEDULER.items() if not k.startswith("_")})


def pipeline(model: str | Path, folder: Path) -> Any:
    """The pipeline that diffusers loads from the export of `model`, without its progress bar."""
    pipe = DiffusionPipeline.from_pretrained(export_diffusers(str(model), folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_close(ours: Tensor, theirs: Tensor, limit: float = 1e-5) -> None:
    """Fails where the relative error in the 2-norm, or the largest error over the largest value, is above `limit`."""
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs()
    by_norm = float(difference.norm() / theirs.double().norm())
    by_peak = float(difference.max() / theirs.double().abs().max())
    assert by_norm <= limit, f"relative error {by_norm:.1e} > {limit:.0e}"
    assert by_peak <= limit, f"largest error {by_peak:.1e} > {limit:.0e}"
