"""What a training step reads: a pool of encoded scenes, the samples that join them, and batches drawn from it.

Each scene is rendered and encoded once and serves several samples. A pool depends on its seed alone, a batch on its
seed and the pool, so a run that stops resumes with the same data.

Shape suffixes: S scenes, B samples, N image tokens (64), K reference tokens, C latent channels (128), L text tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.lexicon import UNSEEN
from kleinbild.nano.scenes.render import Scene, render
from kleinbild.nano.scenes.sprites import sprites
from kleinbild.nano.scenes.tasks import Draw, Sample, samples
from kleinbild.train.checkpoint import load_state, save_state

ENCODE_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded scenes and the samples over them, by number of references."""

    latents_SNC: Tensor
    index: dict[Scene, int]
    by_references: tuple[list[Sample], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with equally many references, ready for a step."""

    target_BNC: Tensor
    references_BKC: Tensor
    ids_BL: Tensor
    mask_BL: Tensor


def training_draw(random: Random) -> Draw:
    """Draws for training: no combination kept for evaluation, no unseen sprite."""
    return Draw(random, evaluation=False, codes=tuple(sorted(set(sprites()) - set(UNSEEN))))


def build_pool(autoencoder: Autoencoder, seed: str, num_scenes: int, device: torch.device, cache: Path) -> Pool:
    """Draws samples until they show `num_scenes` scenes, and encodes those, or reads them from `cache` if it is there."""
    index: dict[Scene, int] = {}
    by_references: tuple[list[Sample], ...] = ([], [], [])
    for sample in samples(training_draw(Random(seed))):
        if len(index) >= num_scenes:
            break
        by_references[len(sample.references)].append(sample)
        for scene in (*sample.references, sample.target):
            index.setdefault(scene, len(index))
    return Pool(_cached_latents(autoencoder, list(index), device, cache), index, by_references)


def _cached_latents(autoencoder: Autoencoder, scenes: list[Scene], device: torch.device, cache: Path) -> Tensor:
    """Encoding a pool takes minutes: a run that resumes reads it. Another autoencoder or other scenes do not match."""
    weights = torch.cat([p.detach().flatten()[:64].cpu() for p in autoencoder.parameters()])
    key = hashlib.sha256(weights.numpy().tobytes() + repr(scenes).encode()).hexdigest()
    state = load_state(cache)
    if state is None or state["key"] != key:
        state = {"key": key, "latents": encode_scenes(autoencoder, scenes, device).cpu()}
        save_state(cache, state)
    latents: Tensor = state["latents"].to(device)
    return latents


@torch.no_grad()
def encode_scenes(autoencoder: Autoencoder, scenes: list[Scene], device: torch.device) -> Tensor:
    """Latents (S, N, C) of rendered scenes, bfloat16."""
    parts = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        with torch.autocast(device.type, torch.bfloat16):
            latents = autoencoder.encode(pixels_of(scenes[start : start + ENCODE_BATCH], device))
        parts.append(latents.flatten(2).mT.to(torch.bfloat16))
    return torch.cat(parts)


def pixels_of(scenes: list[Scene], device: torch.device) -> Tensor:
    """Pictures (S, 3, H, W) in [-1, 1], channels last in memory."""
    pictures = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    return pictures.to(device).float().div_(127.5).sub_(1)


def draw_batch(
    pool: Pool, num_references: int, size: int, random: Random, tokenizer: PromptTokenizer, *, dropout: float = 0.0,
    only: Callable[[Sample], bool] | None = None,
) -> Batch:  # fmt: skip
    """`size` random samples; each prompt is dropped (empty) with probability `dropout`, for guidance."""
    among = pool.by_references[num_references]
    if only is not None:
        among = [sample for sample in among if only(sample)]
    return to_batch(pool, random.choices(among, k=size), random, tokenizer, dropout)


def to_batch(
    pool: Pool, chosen: list[Sample], random: Random, tokenizer: PromptTokenizer, dropout: float = 0.0
) -> Batch:
    latents, device = pool.latents_SNC, pool.latents_SNC.device
    targets = torch.tensor([pool.index[sample.target] for sample in chosen], device=device)
    references = torch.tensor([[pool.index[scene] for scene in sample.references] for sample in chosen], device=device)
    prompts = ["" if random.random() < dropout else sample.wording(random) for sample in chosen]
    tokenized = [tokenizer(prompt) for prompt in prompts]
    return Batch(
        target_BNC=latents[targets].float(),
        references_BKC=latents[references.long()].flatten(1, 2).float(),
        ids_BL=torch.stack([t.ids for t in tokenized]).to(device),
        mask_BL=torch.stack([t.mask for t in tokenized]).to(device),
    )
