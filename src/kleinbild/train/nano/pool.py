"""What a training step reads: a pool of encoded scenes, the samples that join them, and batches drawn from it.

Each scene is rendered and encoded once and serves several samples. A pool depends on its seed alone, a batch on its
seed and the pool, so a run that stops resumes with the same data.

Shape suffixes: S scenes, B samples, N image tokens (64), K reference tokens, C latent channels (128), L text tokens.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.lexicon import NOUNS, UNSEEN
from kleinbild.nano.scenes.phrases import CENTER
from kleinbild.nano.scenes.render import CELL, SIDE, TOKEN, Placed, Scene, render
from kleinbild.nano.scenes.sprites import sprites
from kleinbild.nano.scenes.tasks import Draw, Sample, Task, samples
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.nano.precision import mixed

Topic = Task | Literal["lesson"]  # every sample stands under its task; a lesson also under "lesson"

ENCODE_BATCH = 32
CHANGE_WEIGHT = 3.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded scenes and the samples over them, by what they are for."""

    latents_SNC: Tensor
    index: dict[Scene, int]
    by_topic: dict[Topic, list[Sample]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with equally many references, ready for a step. `weights_BN`: how much the error of each token counts."""

    target_BNC: Tensor
    noise_BNC: Tensor
    references_BKC: Tensor
    weights_BN: Tensor
    ids_BL: Tensor
    mask_BL: Tensor


def training_draw(random: Random, num_new: int = 0) -> Draw:
    """Draws for training: no combination kept for evaluation, no unseen sprite; the last `num_new` nouns twice as often."""
    codes = tuple(sorted(set(sprites()) - set(UNSEEN)))
    return Draw(random, evaluation=False, codes=codes, vocabulary=NOUNS + NOUNS[len(NOUNS) - num_new :])


def is_lesson(sample: Sample) -> bool:
    """The first lesson is one thing in the middle: there nouns bind within minutes (measured), elsewhere much later."""
    return sample.task in ("one", "colored") and (sample.target.placed[0].row, sample.target.placed[0].column) == CENTER


def build_pool(
    autoencoder: Autoencoder, seed: str, num_scenes: int, device: torch.device, cache: Path, num_new: int = 0
) -> Pool:
    """Draws samples until they show `num_scenes` scenes, and encodes those, or reads them from `cache` if it is there."""
    index: dict[Scene, int] = {}
    by_topic: dict[Topic, list[Sample]] = defaultdict(list)
    for sample in samples(training_draw(Random(seed), num_new)):
        if len(index) >= num_scenes:
            break
        by_topic[sample.task].append(sample)
        if is_lesson(sample):
            by_topic["lesson"].append(sample)
        for scene in (*sample.references, sample.target):
            index.setdefault(scene, len(index))
    return Pool(_cached_latents(autoencoder, list(index), device, cache), index, dict(by_topic))


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
        with mixed(device):
            pictures = np.stack([render(scene) for scene in scenes[start : start + ENCODE_BATCH]])
            latents = autoencoder.encode(to_tensor(pictures).to(device))
        parts.append(latents.flatten(2).mT.to(torch.bfloat16))
    return torch.cat(parts)


def to_tensor(pictures_BHWC: NDArray[np.uint8]) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def draw_batch(
    pool: Pool, shares: Mapping[Topic, float], size: int, random: Random, tokenizer: PromptTokenizer, *,
    dropout: float = 0.0,
) -> Batch:  # fmt: skip
    """`size` random samples, topics by their shares; each prompt is dropped (empty) with probability `dropout`."""
    return to_batch(pool, draw_samples(pool, shares, size, random), random, tokenizer, dropout)


def draw_samples(pool: Pool, shares: Mapping[Topic, float], size: int, random: Random) -> list[Sample]:
    """A topic that a very small pool has no sample of is left out."""
    there = {topic: share for topic, share in shares.items() if topic in pool.by_topic}
    topics = random.choices(list(there), list(there.values()), k=size)
    return [random.choice(pool.by_topic[topic]) for topic in topics]


def to_batch(
    pool: Pool, chosen: list[Sample], random: Random, tokenizer: PromptTokenizer, dropout: float = 0.0
) -> Batch:
    latents, device = pool.latents_SNC, pool.latents_SNC.device
    noise_BNC = torch.randn(
        (len(chosen), *latents.shape[1:]), generator=torch.Generator().manual_seed(random.getrandbits(60))
    )
    targets = torch.tensor([pool.index[sample.target] for sample in chosen], device=device)
    references = torch.tensor([[pool.index[scene] for scene in sample.references] for sample in chosen], device=device)
    prompts = ["" if random.random() < dropout else _readable(sample, random, tokenizer) for sample in chosen]
    tokenized = [tokenizer(prompt) for prompt in prompts]
    weights = [weights_of(sample.target, sample.references) for sample in chosen]
    return Batch(
        target_BNC=latents[targets].float(),
        noise_BNC=noise_BNC.to(device),
        references_BKC=latents[references.long()].flatten(1, 2).float(),
        weights_BN=torch.stack(weights).to(device),
        ids_BL=torch.stack([t.ids for t in tokenized]).to(device),
        mask_BL=torch.stack([t.mask for t in tokenized]).to(device),
    )


def _readable(sample: Sample, random: Random, tokenizer: PromptTokenizer) -> str:
    """One of its wordings; one in a hundred thousand is longer than the model reads, and drawn again."""
    while tokenizer.count(prompt := sample.wording(random)) > tokenizer.max_tokens:
        pass
    return prompt


def weights_of(target: Scene, references: tuple[Scene, ...]) -> Tensor:
    """How much each token (N,) counts, 1 on average: more where something is to come or to go."""
    before = set(references[-1].placed) if references else set()
    weights = torch.ones(SIDE // TOKEN, SIDE // TOKEN)
    for item in before.symmetric_difference(target.placed):
        weights[cell(item)] = CHANGE_WEIGHT
    return (weights / weights.mean()).flatten()


def cell(item: Placed) -> tuple[slice, slice]:
    """The tokens of a thing's cell: rows and columns."""
    span = CELL // TOKEN
    return slice(item.row, item.row + span), slice(item.column, item.column + span)
