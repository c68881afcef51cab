"""Each stage of ours held against diffusers', with random weights, in float32, at non-square sizes.

Plain functions that raise AssertionError: the parity tests call them, and the mutation tests call them with a part of
our code changed and expect them to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu, retrieve_timesteps
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kleinbild.model import packing, schedule
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import Segment
from kleinbild.model.spec import AutoencoderSpec
from kleinbild.model.tokenizer import PromptTokenizer
from tests import tiny
from tests.parity import reference
from tests.parity.reference import assert_close

NO_REFERENCE = Segment(7, (3, 5))
ONE_REFERENCE = Segment(7, (4, 6), ((5, 2),))
THREE_REFERENCES = Segment(9, (2, 7), ((3, 4), (6, 1), (2, 5)))
SEGMENTS = (NO_REFERENCE, ONE_REFERENCE, THREE_REFERENCES)
PROMPTS = ("a red cat on a beach", "Two BLUE dogs, left and right!", "", "é 猫 image 1 …")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(segment: Segment, seed: int) -> tuple[Tensor, Tensor]:
    """Image-stream rows (image, then references) and text rows of one request."""
    spec = tiny.SPEC.transformer
    stream = random(segment.num_image + segment.num_references, spec.in_channels, seed=seed)
    return stream, random(segment.num_text, spec.context_size, seed=seed + 1000)


@torch.no_grad()
def compare_velocity(segments: Sequence[Segment] = SEGMENTS, times: Sequence[float] = (1.0, 0.6, 0.037)) -> None:
    """All requests in one packed pass of ours against one call of diffusers' each: its ids, its order of tokens."""
    network = tiny.transformer()
    theirs = reference.transformer(network)
    rows = [inputs(segment, seed) for seed, segment in enumerate(segments)]
    stream, text = (torch.cat(parts) for parts in zip(*rows, strict=True))
    packed = packing.pack(segments, network.spec)
    ours = network(stream, text, torch.tensor(times), packed).split([len(s) for s, _ in rows])
    for segment, (stream, text), time, velocity in zip(segments, rows, times, ours, strict=True):
        text_ids, image_ids, reference_ids = ids(segment)
        expected = theirs(
            hidden_states=stream[None],
            encoder_hidden_states=text[None],
            timestep=torch.tensor([time]),
            img_ids=torch.cat([image_ids, reference_ids]),
            txt_ids=text_ids,
        ).sample[0]
        assert_close(velocity[: segment.num_image], expected[: segment.num_image])


def ids(segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of text, image and references by diffusers' own functions."""
    pipe = Flux2KleinPipeline
    image = pipe._prepare_latent_ids(torch.zeros(1, 1, *segment.image))[0]
    latents = [torch.zeros(1, 1, *shape) for shape in segment.references]
    references = pipe._prepare_image_ids(latents)[0] if latents else torch.zeros(0, 4)
    return pipe._prepare_text_ids(torch.zeros(1, segment.num_text, 1))[0], image, references


@torch.no_grad()
def compare_reference_caching(segments: Sequence[Segment] = SEGMENTS) -> None:
    """A storing step and a stored step, packed, against diffusers' key-value processors, one request at a time."""
    network = tiny.transformer()
    theirs = reference.transformer(network)
    for block in theirs.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in theirs.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    rows = [inputs(segment, seed) for seed, segment in enumerate(segments)]
    text = torch.cat([own for _, own in rows])
    images = [stream[: segment.num_image] for (stream, _), segment in zip(rows, segments, strict=True)]
    first, then, caches = (
        torch.linspace(1.0, 0.8, len(rows)),
        torch.linspace(0.6, 0.3, len(rows)),
        [ReferenceCache() for _ in rows],
    )
    storing, stored = (
        packing.pack([replace(segment, mode=mode) for segment in segments], network.spec)
        for mode in ("store", "stored")
    )
    ours_first = network(torch.cat([stream for stream, _ in rows]), text, first, storing, caches)
    ours_then = network(torch.cat(images), text, then, stored, caches)
    first_parts = ours_first.split([len(stream) for stream, _ in rows])
    then_parts = ours_then.split([len(image) for image in images])
    for i, (segment, (stream, own_text)) in enumerate(zip(segments, rows, strict=True)):
        text_ids, image_ids, reference_ids = ids(segment)
        references, image = stream[segment.num_image :], stream[: segment.num_image]
        common = {"encoder_hidden_states": own_text[None], "txt_ids": text_ids}
        expected = theirs(
            hidden_states=torch.cat([references, image])[None],  # this variant puts references first
            img_ids=torch.cat([reference_ids, image_ids]),
            timestep=first[i : i + 1],
            kv_cache_mode="extract" if len(references) else None,  # as the pipeline does without references
            num_ref_tokens=len(references),
            **common,
        )
        assert_close(first_parts[i][: len(image)], expected.sample[0])
        following = theirs(
            hidden_states=image[None],
            img_ids=image_ids,
            timestep=then[i : i + 1],
            kv_cache=expected.kv_cache,
            kv_cache_mode="cached" if len(references) else None,
            **common,
        )
        assert_close(then_parts[i], following.sample[0])


@torch.no_grad()
def compare_text_context(folder: Path, prompts: Sequence[str] = PROMPTS) -> None:
    """Prompts to contexts: template, tokens, padding and layers, against the pipeline's own way with Qwen3."""
    network = tiny.text_encoder()
    tiny.write_tokenizer(folder)
    ours = PromptTokenizer(folder, tiny.SETTINGS.max_text_tokens)
    tokenized = [ours(prompt) for prompt in prompts]
    context = network(torch.stack([t.ids for t in tokenized]), torch.stack([t.mask for t in tokenized]))
    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        text_encoder=reference.text_encoder(network),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        prompt=list(prompts),
        max_sequence_length=tiny.SETTINGS.max_text_tokens,
        hidden_states_layers=list(tiny.SETTINGS.text_layers),
    )
    assert_close(context, expected)


@torch.no_grad()
def compare_encoding(height: int = 48, width: int = 80) -> None:
    """Pixels to normalised, packed latents against the pipeline's way with `AutoencoderKLFlux2`."""
    network = tiny.autoencoder()
    theirs = reference.autoencoder(network)
    pixels = random(2, 3, height, width).clamp(-1, 1)
    latents = Flux2KleinPipeline._patchify_latents(theirs.encode(pixels).latent_dist.mode())
    assert_close(network.encode(pixels), (latents - _statistic(theirs, "mean")) / _statistic(theirs, "std"))


@torch.no_grad()
def compare_decoding(rows: int = 3, columns: int = 5, spec: AutoencoderSpec = tiny.SPEC.autoencoder) -> None:
    """Latents to pixels against the pipeline's way."""
    network = tiny.autoencoder(spec=spec)
    theirs = reference.autoencoder(network)
    latents = random(2, network.spec.packed_channels, rows, columns)
    packed = latents * _statistic(theirs, "std") + _statistic(theirs, "mean")
    expected = theirs.decode(Flux2KleinPipeline._unpatchify_latents(packed)).sample
    assert_close(network.decode(latents), expected)


def _statistic(theirs: torch.nn.Module, name: str) -> Tensor:
    """As the pipeline computes it: from the stored mean and variance, eps from the config."""
    if name == "mean":
        return theirs.bn.running_mean.view(1, -1, 1, 1)
    return torch.sqrt(theirs.bn.running_var.view(1, -1, 1, 1) + theirs.config.batch_norm_eps)


def compare_schedule(
    sides: Sequence[tuple[int, int]] = ((4, 4), (8, 8), (5, 17), (16, 24), (64, 64), (60, 72), (128, 90)),
    steps: Sequence[int] = (1, 2, 3, 4, 8, 25, 50),
) -> None:
    """Times of many sizes and step counts against diffusers' scheduler as the pipeline calls it."""
    scheduler = reference.scheduler()
    for rows, columns in sides:
        for num_steps in steps:
            mu = compute_empirical_mu(image_seq_len=rows * columns, num_steps=num_steps)
            sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
            retrieve_timesteps(scheduler, num_steps, "cpu", sigmas=sigmas, mu=mu)
            expected = scheduler.sigmas.tolist()
            ours = schedule.times(rows * columns, num_steps)
            assert len(ours) == len(expected) == num_steps + 1
            error = float(np.abs(np.array(ours) - expected).max())
            assert error <= 1e-6, f"error {error:.1e} for {rows}x{columns} tokens in {num_steps} steps"
