"""Trains nano's flow transformer and text encoder: `python -m kleinbild.train.nano.flow --steps 10000`.

Rectified flow on cached latents of the world's scenes. What matters (measured): times shifted hard to noise, since only
there does the prompt tell what the noisy latent does not; Muon for the blocks; a text encoder whose raw hidden states
stay small (AdamW with weight decay). A run that does not bind nouns early never will, so `noun_response` is watched and
stops it. Resumes from its last checkpoint; runs unchanged with `--device cuda`, where `--scale` and `--workers` feed it.

Shape suffixes: B samples, N image tokens, K reference tokens, C latent channels, L text tokens, X context width.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.packing import Packing, Segment, pack
from kleinbild.model.spec import ModelSpec, TransformerSpec
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.nano.scenes.lexicon import NOUNS
from kleinbild.nano.specs import NANO
from kleinbild.train.attention import leave_out_cudnn
from kleinbild.train.checkpoint import load_autoencoder, load_state, save_state
from kleinbild.train.muon import Muon
from kleinbild.train.nano.compute import Compute, add_compute, compute_of
from kleinbild.train.nano.pool import (
    Batch,
    Data,
    Draft,
    Pool,
    Topic,
    add_data,
    build_pool,
    data_given,
    draft,
    to_batch,
)
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.tokenizer import save_tokenizer, take_up_tokenizer, train_tokenizer
from kleinbild.train.optimizers import average

EMBEDDING = "model.embed_tokens.weight"
BATCH_SIZES = (36, 21, 15)  # native pictures by number of references: about equal work
MIX = (0.33, 0.37, 0.30)  # how often a step has none, one, two references
SHARES: tuple[Mapping[Topic, float], ...] = (  # of the topics in such a step: what is hard to learn comes more often
    {"one": 0.10, "two": 0.14, "three": 0.13, "count": 0.15, "colored": 0.07, "sized": 0.22, "big": 0.19},
    {"background": 0.17, "remove": 0.29, "add": 0.11, "replace": 0.24, "move": 0.08, "recolor": 0.06, "vary": 0.05},
    {"object on background": 0.31, "object into scene": 0.34, "both objects": 0.35},
)
LESSON: Mapping[Topic, float] = {"lesson": 1.0}
TIME_MEAN, TIME_SPREAD = 2.0, 1.4  # logit-normal
NOISE_SHARE = 0.2  # of the samples at t = 1
PROMPT_DROPOUT = 0.1
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 0.02, 2e-3, 0.05
WARMUP_STEPS, DECAY_SHARE, EMA_DECAY = 150, 0.45, 0.998
LESSON_STEPS, LESSON_END, LESSON_SHARE = 350, 1800, 0.06
STARTED_STEP = 1300  # of weights that were trained before: amid the lessons, since the world may have new words
SECONDS_A_CHECKPOINT = 120
ALARM_STEP, ALARM_RESPONSE = 1200, 0.15


class Flow(nn.Module):
    """The two networks that learn together: prompts and noisy latents in, velocities out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.transformer = Flux2Transformer(spec.transformer)
        self.text_encoder = TextEncoder(spec.text_encoder)

    def compile_blocks(self) -> None:
        """Compiles what repeats, once for each kind of block and batch: a step takes two thirds of the time (measured)."""
        torch._dynamo.config.recompile_limit = 32  # noqa: SLF001  # kinds of batches: three numbers of references, four sizes
        for block in (*self.transformer.double_blocks, *self.transformer.single_blocks):
            block.compile(dynamic=False)

    def forward(self, noisy_BNC: Tensor, times_B: Tensor, batch: Batch) -> Tensor:
        """Velocities (B, N, C) of the pictures being made."""
        return self.velocity(noisy_BNC, times_B, batch, self.context(batch))

    def context(self, batch: Batch) -> Tensor:
        context: Tensor = self.text_encoder(batch.ids_BL, batch.mask_BL)
        return context

    def velocity(self, noisy_BNC: Tensor, times_B: Tensor, batch: Batch, context_BLX: Tensor) -> Tensor:
        size, num_image = noisy_BNC.shape[:2]
        num_references = batch.references_BKC.shape[1] // num_image
        segment = Segment(context_BLX.shape[1], batch.grid, (batch.grid,) * num_references)
        packing = _packing(size, segment, self.transformer.spec, str(noisy_BNC.device))
        rows = torch.cat((noisy_BNC, batch.references_BKC), dim=1).flatten(0, 1)
        out: Tensor = self.transformer(rows, context_BLX.flatten(0, 1), times_B, packing)
        of_images: Tensor = out.unflatten(0, (size, -1))[:, :num_image]
        return of_images.float()


@lru_cache(maxsize=32)
def _packing(size: int, segment: Segment, spec: TransformerSpec, device: str) -> Packing:
    return pack([segment] * size, spec, device=device)


def flow_loss(flow: Flow, batch: Batch, times_B: Tensor) -> Tensor:
    """Weighted mean squared error of the velocity, bfloat16 inside."""
    t = times_B[:, None, None]
    noisy = (1 - t) * batch.target_BNC + t * batch.noise_BNC
    with mixed(noisy.device):
        velocity = flow(noisy, times_B, batch)
    return weighted_error(velocity, batch.noise_BNC - batch.target_BNC, batch)


def weighted_error(out_BNC: Tensor, wanted_BNC: Tensor, batch: Batch) -> Tensor:
    """Mean squared error, tokens and channels weighted as the batch says."""
    return (((out_BNC - wanted_BNC) @ batch.root_CC).square().mean(dim=2) * batch.weights_BN).mean()


@torch.no_grad()
def noun_response(flow: Flow, tokenizer: PromptTokenizer, device: torch.device) -> float:
    """How far (rms, latent units) another noun moves the predicted picture at t = 0.985; 0.4 and more is bound."""
    prompts = ["a frog on blue", "a pig on blue", "a car on white", "a rose on white"]
    tokenized = [tokenizer(prompt) for prompt in prompts]
    noise = torch.randn((1, 64, 128), generator=torch.Generator().manual_seed(0)).expand(4, -1, -1).to(device)
    ids, mask = (torch.stack([getattr(t, name) for t in tokenized]).to(device) for name in ("ids", "mask"))
    batch = Batch(
        noise, noise, noise[:, :0], torch.ones(4, 64, device=device), ids, mask, torch.eye(128, device=device)
    )
    velocity = flow(noise, torch.full((4,), 0.985, device=device), batch)
    pairs = (velocity[0] - velocity[1], velocity[2] - velocity[3])
    return 0.985 * float(torch.stack(pairs).square().mean().sqrt())


@dataclass(slots=True)
class Run:
    """Everything that a step changes."""

    flow: Flow
    average: Flow
    optimizers: list[torch.optim.Optimizer]
    rates: list[list[float]]
    step: int = 0
    first_step: int = 0  # the optimizers' first

    def state(self) -> dict[str, object]:
        return {
            "flow": self.flow.state_dict(), "average": self.average.state_dict(), "step": self.step, "first_step": self.first_step,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip

    def restore(self, state: dict[str, object]) -> None:
        self.flow.load_state_dict(state["flow"])  # type: ignore[arg-type]  # written by `state` above
        self.average.load_state_dict(state["average"])  # type: ignore[arg-type]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):  # type: ignore[call-overload]
            optimizer.load_state_dict(saved)
        self.step = int(state["step"])  # type: ignore[call-overload]
        self.first_step = int(state["first_step"])  # type: ignore[call-overload]


def begin(flow: Flow, *, scale: float = 1.0) -> Run:
    """A run at its first step: Muon for the blocks' matrices, AdamW for everything else; rates times `scale`."""
    leave_out_cudnn()
    blocks = {*flow.transformer.double_blocks.parameters(), *flow.transformer.single_blocks.parameters()}
    matrices = [p for p in flow.parameters() if p in blocks and p.ndim == 2 and p.requires_grad]
    others = [p for p in flow.parameters() if not (p in blocks and p.ndim == 2) and p.requires_grad]
    optimizers = [
        Muon(matrices, lr=MUON_RATE * scale),
        torch.optim.AdamW(others, lr=ADAM_RATE * scale, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]
    average = copy.deepcopy(flow).requires_grad_(False)
    return Run(flow, average, optimizers, [[g["lr"] for g in o.param_groups] for o in optimizers])


def update(run: Run, loss: Tensor, factor: float, ema_decay: float = EMA_DECAY) -> None:
    """One step of the optimizers at `factor` of their rates, and of the weights' moving average."""
    for optimizer, rates in zip(run.optimizers, run.rates, strict=True):
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
    loss.backward()
    nn.utils.clip_grad_norm_(run.flow.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
    run.step += 1
    average(list(run.average.parameters()), list(run.flow.parameters()), ema_decay, run.step)


def rate_factor(step: int, num_steps: int, first_step: int = 0) -> float:
    """Warm-up (also of weights that were trained before: the optimizers know nothing of them), plateau, linear decay."""
    return min(1.0, (step - first_step + 1) / WARMUP_STEPS, max((num_steps - step) / (DECAY_SHARE * num_steps), 0.01))


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Times (count,): logit-normal, and `NOISE_SHARE` of them 1, where a picture begins and most is decided."""
    times = torch.sigmoid(TIME_MEAN + TIME_SPREAD * torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < NOISE_SHARE, torch.ones(()), times)


def lesson_share(step: int) -> float:
    """How many of the steps are lessons: all at first, then fewer and fewer. Left out at once, nouns are forgotten."""
    progress = (step - LESSON_STEPS) / (LESSON_END - LESSON_STEPS)
    return min(1.0, max(LESSON_SHARE, 1.0 - progress))


def stretches(
    autoencoder: Autoencoder, data: Data, steps: range, compute: Compute, cache: Path
) -> Iterator[tuple[Pool, range]]:
    """Each `data.steps_a_pool` steps with a pool of their own."""
    start = steps.start
    while start < steps.stop:
        number = start // data.steps_a_pool
        stop = min(steps.stop, (number + 1) * data.steps_a_pool)
        yield build_pool(autoencoder, data, number, compute, cache), range(start, stop)
        start = stop


def lesson(pool: Pool, seed: int, sizes: tuple[int, ...], tokenizer: PromptTokenizer, step: int) -> tuple[int, Draft]:
    """What the base learns at a step: how many references its samples have, and the samples."""
    random = Random(f"{seed}-{step}")
    simple = random.random() < lesson_share(step)
    kind = 0 if simple else random.choices(range(3), MIX)[0]
    shares = LESSON if simple else SHARES[kind]
    return kind, draft(pool, shares, sizes[kind], random, tokenizer, dropout=PROMPT_DROPOUT)


def start_from(weights: Path, out: Path, flow: Flow, num_new: int = 0) -> None:
    """Takes up an exported model: its base weights into `flow`, its tokenizer into `out`, its autoencoder if none is there.

    The words of the last `num_new` nouns get tokens of their own, which begin as the mean of what they were cut into.
    """
    flow.transformer.load_state_dict(load_file(weights / "nano-base.safetensors"))
    text = load_file(weights / "text_encoder.safetensors")
    if not (out / "autoencoder.safetensors").exists():
        shutil.copy(weights / "autoencoder.safetensors", out / "autoencoder.safetensors")
    pieces = take_up_tokenizer(weights / "tokenizer", out / "tokenizer", NOUNS[len(NOUNS) - num_new :])
    text[EMBEDDING] = widened(text[EMBEDDING], pieces, NANO.text_encoder.vocab_size)
    flow.text_encoder.load_state_dict(text)


def widened(rows_VD: Tensor, pieces: Mapping[int, list[int]], size: int) -> Tensor:
    """Embedding rows (size, D): those that are there, and for each id of `pieces` the mean of the rows of its pieces."""
    out_VD = rows_VD.new_zeros(size, rows_VD.shape[1])
    out_VD[: len(rows_VD)] = rows_VD
    for id_, parts in pieces.items():
        out_VD[id_] = rows_VD[parts].mean(dim=0)
    return out_VD


def data_of(state: Mapping[str, Any]) -> Data:
    """What the run learns from whose state this is."""
    return Data(**state["data"])


def train(
    out: Path, num_steps: int, data: Data, compute: Compute, start: Path | None = None, *, rate: float = 1.0,
    compiled: bool = False,
) -> None:  # fmt: skip
    device = compute.device
    torch.manual_seed(data.seed)
    flow, state = Flow(NANO), load_state(out / "flow.pt")
    if state is not None and (began := data_of(state)) != data:
        raise SystemExit(f"{out / 'flow.pt'}: began with {began}, not {data}; give the same numbers, or another --out")
    if start is not None and state is None:
        start_from(start, out, flow, data.num_new)
    if not (
        out / "tokenizer"
    ).exists():  # weights keep the vocabulary that they began with, whatever the world says now
        save_tokenizer(train_tokenizer(data.seed), out / "tokenizer")
    tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
    autoencoder = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    run = begin(flow.to(device), scale=rate)
    run.step = run.first_step = 0 if start is None else STARTED_STEP
    if state is not None:
        run.restore(state)
    if run.step >= num_steps:
        return
    if compiled:
        run.flow.compile_blocks()
    sizes = compute.scaled(BATCH_SIZES)
    started = saved_at = time.monotonic()
    recent = torch.zeros(3, 2, device=device)
    for pool, stretch in stretches(autoencoder, data, range(run.step, num_steps), compute, out / "pool.pt"):
        for kind, drawn in compute.drawn(partial(lesson, pool, data.seed, sizes, tokenizer), stretch):
            batch = to_batch(pool, drawn)
            generator = torch.Generator().manual_seed(drawn.noise_seed + 1)
            times = draw_times(len(batch.noise_BNC), generator).to(device)
            loss = flow_loss(run.flow, batch, times)
            update(run, loss, rate_factor(run.step, num_steps, run.first_step))
            recent[kind, 0] += loss.detach()
            recent[kind, 1] += 1
            if run.step % 100 == 0:
                losses = " ".join(f"{value:.3f}" for value in (recent[:, 0] / recent[:, 1].clamp(min=1)).tolist())
                response = noun_response(run.flow, tokenizer, device)
                seconds = time.monotonic() - started
                print(f"step {run.step} {seconds:.0f}s loss {losses} noun response {response:.3f}", flush=True)
                recent.zero_()
                if run.step == ALARM_STEP and response < ALARM_RESPONSE:
                    raise SystemExit(f"nouns are not bound after {run.step} steps: start over with another seed")
            if time.monotonic() - saved_at > SECONDS_A_CHECKPOINT or run.step == num_steps:
                saved_at = time.monotonic()
                save_state(out / "flow.pt", {**run.state(), "data": asdict(data)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds autoencoder.safetensors")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--start", type=Path, help=f"exported model to go on from, at step {STARTED_STEP}")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="times the usual rates: less to go on from good weights"
    )
    parser.add_argument("--compile", action="store_true", help="compile the blocks: faster after the first minutes")
    add_data(parser)
    add_compute(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(
        arguments.out,
        arguments.steps,
        data_given(arguments),
        compute_of(arguments),
        arguments.start,
        rate=arguments.rate,
        compiled=arguments.compile,
    )


if __name__ == "__main__":
    main()
