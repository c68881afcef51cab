"""What a run gives: a weight file that `load_model` opens, or an adapter that is registered under the folder's name."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kleinbild.core.adapters import Card
from kleinbild.model.adapters import registry
from kleinbild.model.adapters.write import write_adapter
from kleinbild.model.weights import Model
from kleinbild.model.weights.settings import SETTINGS_FILE, write_settings
from kleinbild.model.weights.specs import family
from kleinbild.train.distill.loop import REPORT_FILE, Report, Run
from kleinbild.train.distill.student import frozen
from kleinbild.train.results import write_around, write_network

ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True, slots=True)
class Result:
    """`adapter` is the name that it is registered under, "" for a model."""

    path: Path
    sha256: str
    adapter: str = ""


def write(run: Run, report: Report, model: Model, source: str, adapters: tuple[str, ...], folder: Path) -> Result:
    """Writes the averages of `run`, and its report, to `folder`. `source` is the name or path of the teacher."""
    with run.student.averaged():
        if run.student.adapter is None:
            path, name = _write_model(run, model, source, folder), ""
        else:
            name = registry.check_name(folder.resolve().name)
            path = folder / ADAPTER_FILE
            metadata = {
                "base": model.name,
                "base_fingerprint": model.fingerprint,
                "num_steps": str(run.recipe.num_steps),
            }
            write_adapter(path, frozen(run.student.adapter), model.spec.transformer, metadata=metadata)
    sha256 = registry.digest(path)
    report.save(
        folder,
        model=model.name,
        fingerprint=model.fingerprint,
        adapters=adapters,
        sha256=sha256,
        recipe=asdict(run.recipe),
    )
    if name:
        registry.register(
            path, _card(name, sha256, path, model, run, report), others={REPORT_FILE: folder / REPORT_FILE}
        )
    return Result(path, sha256, name)


def _write_model(run: Run, model: Model, source: str, folder: Path) -> Path:
    """The transformer in bfloat16, its settings, and what is around it."""
    path = folder / f"{folder.resolve().name}.safetensors"
    write_network(path, run.student.field.transformer, torch.bfloat16)
    settings = replace(
        model.settings,
        default_steps=run.recipe.num_steps,
        default_guidance=1.0,
        distilled=True,
        reference_caching=False,
    )
    write_settings(folder / SETTINGS_FILE, settings)
    write_around(model, source, folder, torch.bfloat16)
    return path


def _card(name: str, sha256: str, path: Path, model: Model, run: Run, report: Report) -> Card:
    return Card(
        name=name,
        family=family(model.spec.transformer) or "",
        sha256=sha256,
        size_bytes=path.stat().st_size,
        created_at=time.time(),
        base=model.name,
        base_fingerprint=model.fingerprint,
        strengths={"base": 1.0},
        report={"kind": "lightning", "steps": run.recipe.num_steps, "guidance": 1.0, "metrics": report.after.metrics()},
    )
