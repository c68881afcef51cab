"""Optimizers by name, their rates over the run, and the weights' moving average."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kleinbild.core.errors import ModelError
from kleinbild.train.defaults import MUON_RATE
from kleinbild.train.muon import Muon
from kleinbild.train.recipe import Recipe

BETAS = (0.9, 0.999)


@dataclass(slots=True)
class Optimizers:
    """One or several optimizers over all parameters, and the rates that they have at the schedule's height."""

    members: list[Optimizer]
    rates: list[float]

    def step(self, factor: float) -> None:
        """One step at `factor` of the rates."""
        for optimizer, rate in zip(self.members, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()

    def clear(self) -> None:
        for optimizer in self.members:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.members]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.members, states, strict=True):
            optimizer.load_state_dict(state)


def optimizers_of(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> Optimizers:
    """The recipe's optimizer over all parameters. Muon takes the matrices, AdamW what is left."""
    every = list(parameters.values())
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "prodigy":
        return Optimizers([_prodigy(every, rate, decay)], [rate])
    if recipe.optimizer == "adamw8bit":
        return Optimizers([_adamw8bit(every, rate, decay)], [rate])
    if recipe.optimizer == "adamw":
        return Optimizers([_adamw(every, rate, decay)], [rate])
    matrices = [parameter for parameter in every if parameter.ndim == 2]
    others = [parameter for parameter in every if parameter.ndim != 2]
    optimizers = Optimizers([Muon(matrices, lr=rate, weight_decay=decay)], [rate])
    if others:
        optimizers.members.append(_adamw(others, rate / MUON_RATE, decay))
        optimizers.rates.append(rate / MUON_RATE)
    return optimizers


def _adamw(parameters: list[nn.Parameter], rate: float, decay: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=BETAS, weight_decay=decay)


def _adamw8bit(parameters: list[nn.Parameter], rate: float, decay: float) -> Optimizer:
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise ModelError(
            "the optimizer adamw8bit needs bitsandbytes, which is not installed",
            "pip install 'kleinbild[train-8bit]', or optimizer=adamw",
        ) from error
    optimizer: Optimizer = optim.AdamW8bit(  # type: ignore[attr-defined, no-untyped-call]  # its types are incomplete
        parameters, lr=rate, betas=BETAS, weight_decay=decay
    )
    return optimizer


def _prodigy(parameters: list[nn.Parameter], rate: float, decay: float) -> Optimizer:
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise ModelError(
            "the optimizer prodigy needs prodigyopt, which is not installed",
            "pip install 'kleinbild[train]', or optimizer=adamw",
        ) from error
    # The safeguard and the bias correction: its authors' advice for schedules with a warm-up, and for diffusion models.
    with redirect_stdout(sys.stderr):  # it prints, and stdout is for events
        optimizer: Optimizer = Prodigy(
            parameters, lr=rate, betas=BETAS, weight_decay=decay, safeguard_warmup=True, use_bias_correction=True
        )
    return optimizer


def rate_factor(recipe: Recipe, step: int) -> float:
    """The share of its learning rate that step `step` (from 0) is taken with."""
    if step < recipe.warmup_steps:
        return (step + 1) / (recipe.warmup_steps + 1)
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    if recipe.schedule == "cosine":
        return cosine(progress)
    return 1.0 - progress if recipe.schedule == "linear" else 1.0


def cosine(progress: float) -> float:
    """Half a cosine, from 1 at the beginning (0) to 0 at the end (1)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def average(averages: Sequence[Tensor], parameters: Sequence[Tensor], decay: float, step: int) -> None:
    """Moves the averages after step `step` (from 1); of the first steps, whose start is no result, little is kept."""
    if averages:
        kept = min(decay, step / (step + 10))
        torch._foreach_lerp_(list(averages), list(parameters), 1 - kept)
