"""What a training step reads: a pool of encoded scenes, the samples that join them, and batches drawn from it.

Each scene is rendered and encoded once and serves several samples. A pool depends on its seed alone, a batch on its
seed and the pool, so a run that stops resumes with the same data.

Shape suffixes: S scenes, B samples, N image tokens (64 of a native picture), K reference tokens, C latent channels (128), L text tokens.
"""

from __future__ import annotations

import argparse
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
from kleinbild.train.nano.compute import Compute
from kleinbild.train.nano.metric import PIXEL_SHARE, pixel_metric, root_of_loss
from kleinbild.train.nano.precision import mixed

Topic = Task | Literal["lesson"]  # every sample stands under its task; a lesson also under "lesson"

NUM_SCENES, STEPS_A_POOL = 32_000, 2000
ENCODE_BATCH = 32
NUM_MEASURED = 8  # pictures that say how much an error of the latents shows
CHANGE_WEIGHT, KEPT_WEIGHT = 3.0, 2.0  # of tokens on which a thing comes or goes, and stays; others 1
STRANGE = 0.6  # share of the objects of two references that no other picture shows like that


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from: the seed of everything drawn, the scenes in a pool, nouns at the end of the list that come twice
    as often, steps of base and student before the next pool. Stands in the run's state, so that every stage has the same."""

    seed: int = 0
    num_scenes: int = NUM_SCENES
    num_new: int = 0
    steps_a_pool: int = STEPS_A_POOL


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options that say what a run learns from."""
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="scenes in a pool")
    parser.add_argument("--steps-a-pool", type=int, default=STEPS_A_POOL, help="before the next pool")
    parser.add_argument("--new", type=int, default=0, help="nouns at the end of the list that come twice as often")
    parser.add_argument("--seed", type=int, default=0)


def data_given(arguments: argparse.Namespace) -> Data:
    return Data(arguments.seed, arguments.scenes, arguments.new, arguments.steps_a_pool)


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


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch without its latents and its noise: what another process can draw. `targets` and `references` are numbers of scenes
    among those of the size `grid`."""

    targets: list[int]
    references: list[list[int]]
    weights_BN: NDArray[np.float32]
    ids_BL: NDArray[np.int64]
    mask_BL: NDArray[np.int64]
    noise_seed: int
    grid: Grid


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


def build_pool(autoencoder: Autoencoder, data: Data, number: int, compute: Compute, cache: Path) -> Pool:
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
    latents, root_CC = _cached_latents(autoencoder, of_size, compute, cache)
    return Pool(latents, index, by_topic, root_CC)


def _cached_latents(
    autoencoder: Autoencoder, scenes: dict[Grid, list[Scene]], compute: Compute, cache: Path
) -> tuple[dict[Grid, Tensor], Tensor]:
    """Latents by size, and the root of their loss. Encoding a pool takes minutes: a run that resumes reads it. Another
    autoencoder or other scenes do not match."""
    weights = torch.cat([p.detach().flatten()[:64].cpu() for p in autoencoder.parameters()])
    key = hashlib.sha256(weights.numpy().tobytes() + repr((scenes, NUM_MEASURED, PIXEL_SHARE)).encode()).hexdigest()
    state = load_state(cache)
    if state is None or state["key"] != key:
        latents = {grid: encode_scenes(autoencoder, group, compute).cpu() for grid, group in scenes.items() if group}
        some_BNC = latents[NATIVE][:NUM_MEASURED].to(compute.device)
        metric_CC = pixel_metric(autoencoder, some_BNC.mT.unflatten(2, NATIVE))
        state = {"key": key, "latents": latents, "root": root_of_loss(metric_CC).cpu()}
        save_state(cache, state)
    of_size = {grid: latents.to(compute.device) for grid, latents in state["latents"].items()}
    return of_size, state["root"].to(compute.device)


@torch.no_grad()
def encode_scenes(autoencoder: Autoencoder, scenes: list[Scene], compute: Compute) -> Tensor:
    """Latents (S, N, C) of rendered scenes of one size, bfloat16."""

    def pictures(start: int) -> NDArray[np.uint8]:
        return np.stack([render(each) for each in scenes[start : start + ENCODE_BATCH]])

    parts = []
    for pictures_BHWC in compute.drawn(pictures, range(0, len(scenes), ENCODE_BATCH)):
        with mixed(compute.device):
            latents = autoencoder.encode(to_tensor(pictures_BHWC, compute.device))
        parts.append(latents.flatten(2).mT.to(torch.bfloat16))
    return torch.cat(parts)


def to_tensor(pictures_BHWC: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] on the device, channels last in memory."""
    pictures = torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).to(device)
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def draft(
    pool: Pool, shares: Mapping[Topic, float], size: int, random: Random, tokenizer: PromptTokenizer, *,
    dropout: float = 0.0, grids: tuple[Grid, ...] = GRIDS,
) -> Draft:  # fmt: skip
    """Samples of one random size of `grids`, topics by their shares: `size` of native pictures, as much work of others. Each
    prompt is dropped (empty) with probability `dropout`.

    What a very small pool, or one size of picture, has no sample of is left out.
    """
    grid = random.choice([grid for grid in grids if any(topic in pool.by_topic[grid] for topic in shares)])
    there = {topic: share for topic, share in shares.items() if topic in pool.by_topic[grid]}
    count = round(size * NATIVE[0] * NATIVE[1] / (grid[0] * grid[1]))
    topics = random.choices(list(there), list(there.values()), k=count)
    chosen = [random.choice(pool.by_topic[grid][topic]) for topic in topics]
    prompts = [
        "" if random.random() < dropout else readable(sample, random, tokenizer.count, tokenizer.max_tokens)
        for sample in chosen
    ]
    tokenized = [tokenizer(prompt) for prompt in prompts]
    return Draft(
        targets=[pool.index[sample.target] for sample in chosen],
        references=[[pool.index[each] for each in sample.references] for sample in chosen],
        weights_BN=torch.stack([weights_of(sample.target, sample.references) for sample in chosen]).numpy(),
        ids_BL=torch.stack([t.ids for t in tokenized]).numpy(),
        mask_BL=torch.stack([t.mask for t in tokenized]).numpy(),
        noise_seed=random.getrandbits(60),
        grid=grid,
    )


def to_batch(pool: Pool, draft: Draft) -> Batch:
    """The batch on the pool's device."""
    latents_SNC = pool.latents_SNC[draft.grid]
    device = latents_SNC.device
    generator = torch.Generator(device).manual_seed(draft.noise_seed)
    shape = (len(draft.targets), *latents_SNC.shape[1:])
    weights, ids, mask = (torch.from_numpy(each).to(device) for each in (draft.weights_BN, draft.ids_BL, draft.mask_BL))
    return Batch(
        target_BNC=latents_SNC[torch.tensor(draft.targets, device=device)].float(),
        noise_BNC=torch.randn(shape, generator=generator, device=device),
        references_BKC=latents_SNC[torch.tensor(draft.references, device=device).long()].flatten(1, 2).float(),
        weights_BN=weights,
        ids_BL=ids,
        mask_BL=mask,
        root_CC=pool.root_CC,
        grid=draft.grid,
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
