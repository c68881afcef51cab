"""Trains nano's autoencoder on random scenes: `python -m kleinbild.train.nano.autoencoder --out runs/nano --minutes 20`.

First 64 px crops, then whole pictures. Loss: L1, gradient L1 at three scales, a light KL; no adversary, no perceptual
net: this art does not need them. At the end the per-channel latent statistics are measured and stored (`bn.*`).
Stops and resumes at any step; the only random stream is seeded by (seed, step).

Why these starts (measured): with torch's default initialisation the signal dies in the resampling convolutions; fan-in
gain 1, 0.1x on each block's last convolution, near-identity resampling and a log variance of -4 cure it. GroupNorm has
4 groups, not 32: on 32 channels or fewer 32 groups are instance norm, and the mean colour is thrown away.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kleinbild.model.autoencoder import AttnBlock, Autoencoder, Downsample, ResnetBlock, Upsample
from kleinbild.nano.scenes.lexicon import BACKGROUNDS, UNSEEN
from kleinbild.nano.scenes.render import CELL, SIDE, background_pixels, composite
from kleinbild.nano.scenes.sprites import NUM_TURNS, sprite, sprites, turned_code
from kleinbild.nano.specs import NANO
from kleinbild.train.attention import leave_out_cudnn
from kleinbild.train.checkpoint import load_state, save_autoencoder, save_state
from kleinbild.train.muon import Muon
from kleinbild.train.nano.pool import to_tensor
from kleinbild.train.nano.precision import mixed

SIZE_SHARES = {"*small": 0.2, "*big": 0.1, "": 0.7}  # of the sprites in training pictures
TURNED_SHARE = 0.3  # of them: turned and in other hues
CROP_SHARE = 0.45  # of the time spent on crops
CROP, CROP_BATCH, WHOLE_BATCH = 64, 32, 10
ROUGH = "autoencoder-rough.safetensors"  # what it writes; `sharpen` goes on from it
KL_WEIGHT = 4e-4
SQUARED_WEIGHT = 2.0
WARMUP_STEPS = 40
DECAY_SHARE = 0.5
NUM_MEASURED = 512  # scenes that the statistics are of


def initialize(model: Autoencoder) -> None:
    """A start in which signal and gradient survive every level."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight.data.mul_(0.1)
        elif isinstance(module, AttnBlock):
            module.proj_out.weight.data.mul_(0.1)
        elif isinstance(module, Downsample | Upsample):
            module.conv.weight.data.mul_(0.1)
            channels = module.conv.weight.shape[0]
            module.conv.weight.data[range(channels), range(channels), 1, 1] += 1.0
    bias = model.encoder.quant_conv.bias
    assert bias is not None
    bias.data[model.spec.latent_channels :] = -4.0


def optimizers_of(model: nn.Module, *, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the kernels, Adam for everything else."""
    leave_out_cudnn()
    kernels = [p for p in model.parameters() if p.ndim == 4 and min(p.shape[:2]) > 3]
    others = [p for p in model.parameters() if not any(p is kernel for kernel in kernels)]
    return [Muon(kernels, lr=muon_rate), torch.optim.Adam(others, lr=adam_rate, betas=(0.9, 0.98))]


def update(optimizers: list[torch.optim.Optimizer], loss: Tensor) -> None:
    """One step of the optimizers."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def random_scenes(generator: np.random.Generator, count: int, side: int) -> NDArray[np.uint8]:
    """`count` pictures (count, side, side, 3): half as in the world, half with free places and colours."""
    codes = sorted(set(sprites()) - set(UNSEEN))
    pictures = np.stack([_random_scene(generator, codes) for _ in range(count)])
    if side < SIDE:
        offsets = generator.integers(0, (SIDE - side) // 2 + 1, (count, 2)) * 2
        pictures = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, offsets, strict=True)])
    return pictures


def _random_scene(generator: np.random.Generator, codes: list[str]) -> NDArray[np.uint8]:
    picture = background_pixels(BACKGROUNDS[generator.integers(len(BACKGROUNDS))].name).astype(np.float32)
    free = generator.random() < 0.4
    if free and generator.random() < 0.4:
        picture[:] = generator.integers(0, 256, 3)
    for _ in range(generator.integers(1, 5)):
        code = codes[generator.integers(len(codes))]
        if generator.random() < TURNED_SHARE:
            code = turned_code(code, int(generator.integers(NUM_TURNS)), int(generator.integers(360)))
        tile = sprite(code + generator.choice(list(SIZE_SHARES), p=list(SIZE_SHARES.values())))
        if free:
            left, top = generator.integers(-8, SIDE - len(tile) + 8, 2)
            tile = tile[:, ::-1] if generator.random() < 0.5 else tile
        else:
            left, top = generator.integers(0, (SIDE - CELL) // 16 + 1, 2) * 16 + (CELL - len(tile)) // 2
        composite(picture, tile, int(left), int(top))
    return picture.round().astype(np.uint8)


def loss_of(model: Autoencoder, x_BCHW: Tensor, noise_seed: int) -> tuple[Tensor, float]:
    """The training loss and the plain mean squared error of the sampled reconstruction."""
    mean, log_variance = model.encoder(x_BCHW).chunk(2, dim=1)
    mean, log_variance = mean.float(), log_variance.float().clamp(-20, 10)
    generator = torch.Generator(x_BCHW.device).manual_seed(noise_seed)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    out = model.decoder(mean + (0.5 * log_variance).exp() * noise).float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return picture_loss(out, x_BCHW) + KL_WEIGHT * kl, (out - x_BCHW).detach().square().mean().item()


def picture_loss(out_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean absolute and squared error of the pixels, and of their differences at three scales: what is sharp stays sharp."""
    error = out_BCHW - wanted_BCHW
    loss = error.abs().mean() + SQUARED_WEIGHT * error.square().mean()
    for scale in range(3):
        shrunk = F.avg_pool2d(error, 2**scale) if scale else error
        loss = loss + 0.5 / 3 * (shrunk.diff(dim=2).abs().mean() + shrunk.diff(dim=3).abs().mean())
    return loss


@torch.no_grad()
def psnr(model: Autoencoder, x_BCHW: Tensor) -> float:
    """Mean PSNR in dB of the round trip through the mean latent, pictures clipped to their range."""
    out = torch.cat([model.decoder(model.encoder(x).chunk(2, dim=1)[0]) for x in x_BCHW.split(16)]).clamp(-1, 1)
    mse = ((out - x_BCHW) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.log10()).mean())


@torch.no_grad()
def measure_statistics(model: Autoencoder, seed: int) -> None:
    """Stores mean and variance of every packed latent channel in `bn`, over fresh scenes."""
    generator = np.random.default_rng((seed, 1))
    device = next(model.parameters()).device
    batches = [to_tensor(random_scenes(generator, 32, SIDE), device) for _ in range(NUM_MEASURED // 32)]
    latents = torch.cat([F.pixel_unshuffle(model.encoder(b).chunk(2, dim=1)[0], 2) for b in batches])
    model.bn.get_buffer("running_mean").copy_(latents.mean(dim=(0, 2, 3)))
    model.bn.get_buffer("running_var").copy_(latents.var(dim=(0, 2, 3)))


def train(out: Path, minutes: float, seed: int = 0, device: str = "cpu") -> None:
    torch.manual_seed(seed)
    model = Autoencoder(NANO.autoencoder)
    initialize(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's types
    model.to(device)
    optimizers = optimizers_of(model, muon_rate=0.015, adam_rate=2e-3)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    path = out / "autoencoder.pt"
    step, spent = 0, 0.0
    if state := load_state(path):
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
    started = saved_at = time.monotonic() - spent
    saved_at += spent
    held_out = to_tensor(random_scenes(np.random.default_rng((seed, 2)), 32, SIDE), device)
    budget = minutes * 60
    while (elapsed := time.monotonic() - started) < budget:
        side, batch = (CROP, CROP_BATCH) if elapsed < CROP_SHARE * budget else (SIDE, WHOLE_BATCH)
        factor = min(1.0, (step + 1) / WARMUP_STEPS, max((budget - elapsed) / (DECAY_SHARE * budget), 0.01))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        x_BCHW = to_tensor(random_scenes(np.random.default_rng((seed, 3, step)), batch, side), device)
        with mixed(torch.device(device)):
            loss, mse = loss_of(model, x_BCHW, step)
        update(optimizers, loss)
        step += 1
        if step % 50 == 0:
            training = -10 * np.log10(mse / 4)
            line = f"step {step} {elapsed:.0f}s side {side} loss {loss.item():.4f} psnr {training:.2f} dB"
            line += f" whole {psnr(model, held_out):.2f} dB" if step % 200 == 0 else ""
            print(line, flush=True)
        if time.monotonic() - saved_at > 60:
            saved_at = time.monotonic()
            optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            seconds = time.monotonic() - started
            save_state(
                path, {"model": model.state_dict(), "optimizers": optimizer_states, "step": step, "seconds": seconds}
            )
    measure_statistics(model, seed)
    print(f"done: {step} steps, {psnr(model, held_out):.2f} dB on whole pictures", flush=True)
    save_autoencoder(model, out / ROUGH)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments.out, arguments.minutes, arguments.seed, arguments.device)


if __name__ == "__main__":
    main()
