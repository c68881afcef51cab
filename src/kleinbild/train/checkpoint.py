"""Training state on disk: written to a temporary name and moved, so that a kill at any moment leaves a whole file.

Everything that the next step depends on is in it (weights, moments, step, seconds, random streams); `torch.load` runs
with `weights_only`, so a checkpoint cannot execute anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kleinbild.core.errors import OutputError
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.spec import AutoencoderSpec


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Raises OutputError where it cannot be written; the state before is there then."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # torch's own writer hides what the system says of a full disk
            torch.save(state, file)

    replace_whole(path, write)


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Puts what `write` writes in the place of `path`, whole or not at all. Raises OutputError."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        before = "; what was there before is whole" if path.exists() else ""
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}{before}",
            "make room, then start again: training goes on from the last state that was kept",
        ) from error


def load_state(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None where no run has begun."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Writes its weights, whole or not at all, for `load_autoencoder`."""
    state = {name: tensor.contiguous() for name, tensor in autoencoder.state_dict().items()}
    replace_whole(path, lambda place: save_file(state, place))


def load_autoencoder(path: Path, spec: AutoencoderSpec, device: torch.device) -> Autoencoder:
    """The trained autoencoder, frozen."""
    autoencoder = Autoencoder(spec)
    counter = {"bn.num_batches_tracked": torch.tensor(0)}  # training writes it, an exported model has none
    autoencoder.load_state_dict({**counter, **load_file(path)})
    autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's types
    return autoencoder.to(device).eval().requires_grad_(False)
