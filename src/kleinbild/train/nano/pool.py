"""What a training step reads: a pool of encoded scenes, the samples that join them, and batches drawn from it.

Each scene is rendered and encoded once and serves several samples. A pool depends on its seed alone, a batch on its
seed and the pool, so a run that stops resumes with the same data.

Shape suffixes: S scenes, B samples, N image tokens (64 of a native picture), K reference tokens, C latent channels (128), L text tokens.
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
from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.lexicon import NOUNS, UNSEEN
from kleinbild.nano.scenes.phrases import CENTER
from kleinbild.nano.scenes.render import NATIVE, TOKEN, Grid, Placed, Scene, render
from kleinbild.nano.scenes.sprites import sprites
from kleinbild.nano.scenes.tasks import GRIDS, Sample, Task, readable, samples, scene
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.nano.metric import PIXEL_SHARE, pixel_metric, root_of_loss
from kleinbild.train.nano.precision import mixed

Topic = Task | Literal["lesson"]  # every sample stands under its task; a lesson also under "lesson"

NUM_SCENES = 32_000
ENCODE_BATCH = 32
NUM_MEASURED = 8  # pictures that say how much an error of the latents shows
CHANGE_WEIGHT, KEPT_WEIGHT = 3.0, 2.0  # of tokens on which a thing comes or goes, and stays; others 1
STRANGE = 0.6  # share of the objects of two references that no other picture shows like that


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from: the seed of everything drawn, the scenes in a pool, nouns at the end of the list that come twice
    as often. Stands in the run's state, so that every stage has the same."""

    seed: int = 0
    num_scenes: int = NUM_SCENES
    num_new: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded scenes by their size, and the samples over them by size and what they are for."""

    latents_SNC: dict[Grid, Tensor]
    index: dict[Scene, int]  # among those of its size
    by_topic: dict[Grid, dict[Topic, list[Sample]]]
    root_CC: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one size and equally many references, ready for a step.

    `weights_BN`: how much the error of each token counts. `root_CC`: what its channels are multiplied by before they are squared.
    """

    target_BNC: Tensor
    noise_BNC: Tensor
    references_BKC: Tensor
    weights_BN: Tensor
    ids_BL: Tensor
    mask_BL: Tensor
    root_CC: Tensor
    grid: Grid = NATIVE


def training_draw(random: Random, num_new: int = 0) -> Draw:
    """Draws for training: no combination kept for evaluation, no unseen sprite; the last `num_new` nouns twice as often."""
    codes = tuple(sorted(set(sprites()) - set(UNSEEN)))
    return Draw(
        random,
        evaluation=False,
        codes=codes,
        vocabulary=NOUNS + NOUNS[len(NOUNS) - num_new :],
        grids=GRIDS,
        strange=STRANGE,
    )


def is_lesson(sample: Sample) -> bool:
    """The first lesson is one thing in the middle: there nouns bind within minutes (measured), elsewhere much later."""
    target = sample.target
    if sample.task not in ("one", "colored", "big"):
        return False
    return target == scene(target.background, (target.placed[0].code, CENTER), grid=target.grid)


def build_pool(autoencoder: Autoencoder, data: Data, number: int, device: torch.device, cache: Path) -> Pool:
    """The run's pool of this number: draws samples until they show enough scenes, and encodes those, or reads them from
    `cache` if it is there."""
    scenes: dict[Scene, None] = {}
    by_topic: dict[Grid, dict[Topic, list[Sample]]] = {grid: defaultdict(list) for grid in dict.fromkeys(GRIDS)}
    for sample in samples(training_draw(Random(f"{data.seed}-{number}"), data.num_new)):
        if len(scenes) >= data.num_scenes:
            break
        topics = by_topic[sample.target.grid]
        topics[sample.task].append(sample)
        if is_lesson(sample):
            topics["lesson"].append(sample)
        scenes |= dict.fromkeys((*sample.references, sample.target))
    of_size = {grid: [each for each in scenes if each.grid == grid] for grid in by_topic}
    index = {each: number for group in of_size.values() for number, each in enumerate(group)}
    latents, root_CC = _cached_latents(autoencoder, of_size, device, cache)
    return Pool(latents, index, by_topic, root_CC)


def _cached_latents(
    autoencoder: Autoencoder, scenes: dict[Grid, list[Scene]], device: torch.device, cache: Path
) -> tuple[dict[Grid, Tensor], Tensor]:
    """Latents by size, and the root of their loss. Encoding a pool takes minutes: a run that resumes reads it. Another
    autoencoder or other scenes do not match."""
    weights = torch.cat([p.detach().flatten()[:64].cpu() for p in autoencoder.parameters()])
    key = hashlib.sha256(weights.numpy().tobytes() + repr((scenes, NUM_MEASURED, PIXEL_SHARE)).encode()).hexdigest()
    state = load_state(cache)
    if state is None or state["key"] != key:
        latents = {grid: encode_scenes(autoencoder, group, device).cpu() for grid, group in scenes.items() if group}
        some_BNC = latents[NATIVE][:NUM_MEASURED].to(device)
        metric_CC = pixel_metric(autoencoder, some_BNC.mT.unflatten(2, NATIVE))
        state = {"key": key, "latents": latents, "root": root_of_loss(metric_CC).cpu()}
        save_state(cache, state)
    return {grid: latents.to(device) for grid, latents in state["latents"].items()}, state["root"].to(device)


@torch.no_grad()
def encode_scenes(autoencoder: Autoencoder, scenes: list[Scene], device: torch.device) -> Tensor:
    """Latents (S, N, C) of rendered scenes of one size, bfloat16."""
    parts = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        with mixed(device):
            pictures = np.stack([render(each) for each in scenes[start : start + ENCODE_BATCH]])
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
    """Random samples as `draw_samples` gives them; each prompt is dropped (empty) with probability `dropout`."""
    return to_batch(pool, draw_samples(pool, shares, size, random), random, tokenizer, dropout)


def draw_samples(pool: Pool, shares: Mapping[Topic, float], size: int, random: Random) -> list[Sample]:
    """Samples of one random size, topics by their shares: `size` of native pictures, as much work of others.

    What a very small pool, or one size of picture, has no sample of is left out.
    """
    grids = [grid for grid in GRIDS if any(topic in pool.by_topic[grid] for topic in shares)]
    grid = random.choice(grids)
    there = {topic: share for topic, share in shares.items() if topic in pool.by_topic[grid]}
    count = round(size * NATIVE[0] * NATIVE[1] / (grid[0] * grid[1]))
    topics = random.choices(list(there), list(there.values()), k=count)
    return [random.choice(pool.by_topic[grid][topic]) for topic in topics]


def to_batch(
    pool: Pool, chosen: list[Sample], random: Random, tokenizer: PromptTokenizer, dropout: float = 0.0
) -> Batch:
    grid = chosen[0].target.grid
    latents_SNC = pool.latents_SNC[grid]
    device = latents_SNC.device
    noise_BNC = torch.randn(
        (len(chosen), *latents_SNC.shape[1:]), generator=torch.Generator().manual_seed(random.getrandbits(60))
    )
    targets = torch.tensor([pool.index[sample.target] for sample in chosen], device=device)
    references = torch.tensor([[pool.index[each] for each in sample.references] for sample in chosen], device=device)
    prompts = [
        "" if random.random() < dropout else readable(sample, random, tokenizer.count, tokenizer.max_tokens)
        for sample in chosen
    ]
    tokenized = [tokenizer(prompt) for prompt in prompts]
    weights = [weights_of(sample.target, sample.references) for sample in chosen]
    return Batch(
        target_BNC=latents_SNC[targets].float(),
        noise_BNC=noise_BNC.to(device),
        references_BKC=latents_SNC[references.long()].flatten(1, 2).float(),
        weights_BN=torch.stack(weights).to(device),
        ids_BL=torch.stack([t.ids for t in tokenized]).to(device),
        mask_BL=torch.stack([t.mask for t in tokenized]).to(device),
        root_CC=pool.root_CC,
        grid=grid,
    )


def weights_of(target: Scene, references: tuple[Scene, ...]) -> Tensor:
    """How much each token (N,) counts, 1 on average: more where a thing is to come or to go, or to stay."""
    before = set(references[-1].placed) if references else set()
    weights = torch.ones(target.grid)
    for item in before.intersection(target.placed):
        weights[cell(item)] = KEPT_WEIGHT
    for item in before.symmetric_difference(target.placed):
        weights[cell(item)] = CHANGE_WEIGHT
    return (weights / weights.mean()).flatten()


def cell(item: Placed) -> tuple[slice, slice]:
    """The tokens that a thing stands on: rows and columns."""
    left, top, right, bottom = item.box
    return slice(top // TOKEN, -(-bottom // TOKEN)), slice(left // TOKEN, -(-right // TOKEN))
