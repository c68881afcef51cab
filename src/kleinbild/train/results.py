"""What a run gives: the adapter's file, or a whole transformer's, in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from kleinbild.model.adapters.write import write_adapter
from kleinbild.train.checkpoint import replace_whole
from kleinbild.train.networks import Trained

ADAPTER, MODEL = "adapter.safetensors", "model.safetensors"


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step}.safetensors"


def result_path(folder: Path, trained: Trained) -> Path:
    return folder / (MODEL if trained.is_full else ADAPTER)


def write_result(path: Path, trained: Trained, metadata: Mapping[str, str]) -> None:
    """Writes what is trained as it would be served, whole or not at all. Raises OutputError."""
    if not trained.is_full:
        write_adapter(path, trained.adapter(), trained.transformer.spec, metadata=metadata)
        return
    state = {**trained.transformer.state_dict(), **trained.weights()}
    replace_whole(path, lambda place: save_file({n: t.contiguous() for n, t in state.items()}, place, dict(metadata)))
