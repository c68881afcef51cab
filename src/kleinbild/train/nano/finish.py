"""Trains nano's autoencoder on: `python -m kleinbild.train.nano.finish --steps 2000`, the last stage.

The decoder has only ever seen what the encoder makes of the world's pictures. Here it also sees what it is given in use,
the student's latents, beside the picture that was asked for; and both see textures (`textures.py`), which people's own
pictures have and the world has not. Latents of the world's pictures are held where they were, so nothing else has to learn.

Stops and resumes at any step; the random streams are seeded by (seed, step). Shape suffixes: B samples, N image tokens,
C latent channels, D packed channels (= C), H W pixels, r c tokens.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.nano.scenes.oracle import box_slices
from kleinbild.nano.scenes.render import NATIVE, Scene, render
from kleinbild.nano.specs import NANO
from kleinbild.train.checkpoint import load_autoencoder, load_state
from kleinbild.train.nano.autoencoder import picture_loss
from kleinbild.train.nano.compute import Compute, add_compute, compute_of
from kleinbild.train.nano.distill import context_of, lesson, walk
from kleinbild.train.nano.flow import BATCH_SIZES, Flow, data_of
from kleinbild.train.nano.pool import Batch, Pool, build_pool, to_batch, to_tensor
from kleinbild.train.nano.precision import mixed
from kleinbild.train.nano.stage import RATE_HELP, Lessons, pictures, train_on

NUM_OWN = 6000  # the student's pictures that a run learns from
LEFT_OUT = 0.1  # of them: those furthest from what was asked, at times another thing altogether
OWN, SCENES, TEXTURES = 6, 2, 6  # pictures in a step
BOX_WEIGHT = 0.1  # of the mean logarithm of the squared errors in the boxes and of textures: what their PSNR counts
LEAST_ERROR = 1e-4  # of a box, 46 dB: below it nothing is gained
WHOLE = slice(None), slice(None)  # the box of a picture
ANCHOR_WEIGHT = 10.0  # of the squared distance that latents of the world have moved, in their spreads


@torch.no_grad()
def finished(flow: Flow, batch: Batch) -> Tensor:
    """Latents (B, N, C) that the student makes of the batch's noise."""
    *_, (last, at_BNC, velocity_BNC) = walk(flow, batch, context_of(flow, batch))
    return at_BNC - last * velocity_BNC


def own_latents(
    flow: Flow, pool: Pool, tokenizer: PromptTokenizer, count: int, seed: int, compute: Compute
) -> tuple[list[Scene], Tensor]:
    """What was asked of the student, native pictures, and the latents (S, N, C) that it made, bfloat16; without the worst."""
    native = [scene for scene in pool.index if scene.grid == NATIVE]  # in the order of their numbers
    scenes: list[Scene] = []
    latents: list[Tensor] = []
    errors: list[Tensor] = []
    sizes = compute.scaled(BATCH_SIZES)
    asked = partial(lesson, pool, f"finish-{seed}", sizes, tokenizer, grids=(NATIVE,))
    for drawn in compute.drawn(asked, range(count)):
        batch = to_batch(pool, drawn)
        made_BNC = finished(flow, batch)
        scenes += [native[number] for number in drawn.targets]
        latents.append(made_BNC.to(torch.bfloat16))
        errors.append((made_BNC - batch.target_BNC).square().mean(dim=(1, 2)))
        if len(scenes) >= count:
            break
    best = torch.cat(errors).argsort()[: round(len(scenes) * (1 - LEFT_OUT))].tolist()
    return [scenes[index] for index in best], torch.cat(latents)[best]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The pictures of a step: first those that were asked for, by numbers of the student's latents, then `num_scenes` of the
    world, then textures. `boxes`: where things stand in the first, and all of each texture, as number of the picture, rows
    and columns."""

    own: NDArray[np.int64]
    num_scenes: int
    pictures_BHWC: NDArray[np.uint8]
    boxes: list[tuple[int, slice, slice]]


def draw(scenes: list[Scene], seed: int, scale: int, step: int) -> Drawn:
    generator = np.random.default_rng((seed, 5, step))
    own = generator.integers(len(scenes), size=scale * OWN)
    asked = [scenes[index] for index in own]
    others = pictures(generator, scale * SCENES, scale * TEXTURES)
    some = np.concatenate(([render(scene) for scene in asked], others))
    boxes = [(number, *box) for number, scene in enumerate(asked) for box in boxes_of(scene)]
    boxes += [(number, *WHOLE) for number in range(len(some) - scale * TEXTURES, len(some))]
    return Drawn(own, scale * SCENES, some, boxes)


def step_loss(autoencoder: Autoencoder, before: Autoencoder, latents_SNC: Tensor, drawn: Drawn) -> Tensor:
    """How far the student's pictures and those that are encoded come out from what they should be, and how far latents of
    the world have moved from what they were `before`."""
    device = latents_SNC.device
    wanted_BCHW = to_tensor(drawn.pictures_BHWC, device)
    others_BCHW = wanted_BCHW[len(drawn.own) :]
    made_BDrc = latents_SNC[torch.from_numpy(drawn.own).to(device)].float().mT.unflatten(2, NATIVE)
    with mixed(device):
        with torch.no_grad():
            anchors_BDrc = before.encode(others_BCHW[: drawn.num_scenes]).float()
        encoded_BDrc = autoencoder.encode(others_BCHW).float()
        out_BCHW = autoencoder.decode(torch.cat((made_BDrc, encoded_BDrc))).float()
    moved = F.mse_loss(encoded_BDrc[: drawn.num_scenes], anchors_BDrc)
    in_boxes = BOX_WEIGHT * box_loss(out_BCHW, wanted_BCHW, drawn.boxes)
    return picture_loss(out_BCHW, wanted_BCHW) + in_boxes + ANCHOR_WEIGHT * moved


def boxes_of(scene: Scene) -> list[tuple[slice, slice]]:
    """Rows and columns of a scene's things; of the whole picture if it has none."""
    return [box_slices(item) for item in scene.placed] or [WHOLE]


def box_loss(out_BCHW: Tensor, wanted_BCHW: Tensor, boxes: list[tuple[int, slice, slice]]) -> Tensor:
    """The mean logarithm of the boxes' squared errors: an error counts more in a box that is right but for it."""
    squared_BHW = (out_BCHW - wanted_BCHW).square().mean(dim=1)
    errors = [squared_BHW[number, rows, columns].mean() for number, rows, columns in boxes]
    return (torch.stack(errors) + LEAST_ERROR).log().mean()


def train(out: Path, num_steps: int, compute: Compute, *, rate: float = 1.0) -> None:
    device = compute.device
    before = load_autoencoder(out / "autoencoder.safetensors", NANO.autoencoder, device)
    autoencoder = copy.deepcopy(before)
    student = load_state(out / "student.pt")
    if student is None:
        raise SystemExit(f"{out / 'student.pt'}: no student; run python -m kleinbild.train.nano.distill first")

    data = data_of(student)

    def begin() -> Lessons[Drawn]:
        flow = Flow(NANO)
        flow.load_state_dict(student["average"])
        # Of scenes that the student has not learned: what it knows by heart comes out better than what it is asked for in use.
        number = (student["base_step"] + student["step"]) // data.steps_a_pool + 1
        pool = build_pool(before, data, number, compute, out / "pool.pt")
        tokenizer = PromptTokenizer(out / "tokenizer", NANO.text_encoder.max_tokens)
        count = compute.scale * NUM_OWN
        scenes, latents_SNC = own_latents(flow.to(device).eval(), pool, tokenizer, count, data.seed, compute)
        return Lessons(
            partial(draw, scenes, data.seed, compute.scale), partial(step_loss, autoencoder, before, latents_SNC)
        )

    after = {"base_step": student["base_step"], "updates": student["step"]}
    train_on(autoencoder, out / "finish.pt", num_steps, begin, compute, after=after, rate=rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="holds student.pt and what it came from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=1.0, help=RATE_HELP)
    add_compute(parser)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, compute_of(arguments), rate=arguments.rate)


if __name__ == "__main__":
    main()
