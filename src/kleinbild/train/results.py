"""What a run gives, in its folder: the adapter's file, or a model's folder, which is opened by its path.

A model's folder holds what a training changes, the transformer, and how it is run (`kleinbild.json`). Text encoder and
autoencoder are those of its family, wherever they are, unless the base had its own: then they are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kleinbild.model.adapters.write import write_adapter
from kleinbild.model.weights import Model
from kleinbild.model.weights.settings import SETTINGS_FILE, write_settings
from kleinbild.model.weights.sources import find_parts, resolve
from kleinbild.train.checkpoint import replace_whole
from kleinbild.train.networks import Trained

ADAPTER, MODEL, CHECKPOINTS = "adapter.safetensors", "model", "checkpoints"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"step-{step}.safetensors"


def result_path(folder: Path, trained: Trained) -> Path:
    """The file with what was trained. A whole model's has the run's name, which is the model's then."""
    if not trained.is_full:
        return folder / ADAPTER
    return folder / MODEL / f"{folder.resolve().name}.safetensors"


def prepare_model(folder: Path, model: Model, source: str) -> None:
    """Writes what is to be beside the weights that `write_result` will write of a whole model. `source`: what is trained."""
    for place in (folder / MODEL, folder / CHECKPOINTS):
        place.mkdir(parents=True, exist_ok=True)
        write_settings(place / SETTINGS_FILE, model.settings)
    write_around(model, source, folder / MODEL)


def write_result(path: Path, trained: Trained, metadata: Mapping[str, str]) -> None:
    """Writes what is trained as it would be served, whole or not at all. Raises OutputError."""
    if not trained.is_full:
        write_adapter(path, trained.adapter(), trained.transformer.spec, metadata=metadata)
        return
    state = {**trained.transformer.state_dict(), **trained.weights()}
    replace_whole(path, lambda place: save_file({n: t.contiguous() for n, t in state.items()}, place, dict(metadata)))


def write_around(model: Model, source: str, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Text encoder, autoencoder and tokenizer of `source`, a name or a path, if they lie with its weights and not with a
    known model of its family."""
    entry, place = resolve(source)
    if entry is not None:
        return
    parts = find_parts(place)
    own = place if place.is_dir() else place.parent
    networks: dict[str, nn.Module] = {"text_encoder": model.text_encoder, "autoencoder": model.autoencoder}
    for kind, network in networks.items():
        paths = next(component.stored.paths for name, component in parts.components.items() if name == kind)
        if all(path.is_relative_to(own) for path in paths):
            write_network(folder / f"{kind}.safetensors", network, dtype)
    if parts.tokenizer is not None and parts.tokenizer.is_relative_to(own):
        to = folder / "tokenizer"
        shutil.copytree(parts.tokenizer, to, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


def write_network(path: Path, network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """A network's tensors, in `dtype` if that is given, statistics as they are. Raises OutputError."""
    tensors = {
        name: _stored(name, tensor, dtype) for name, tensor in network.state_dict().items() if "num_batches" not in name
    }
    replace_whole(path, lambda place: save_file(tensors, place, metadata={"format": "pt"}))


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    keep = dtype is None or not tensor.is_floating_point() or name.startswith("bn.")
    return (tensor if keep else tensor.to(dtype)).detach().cpu().contiguous()
