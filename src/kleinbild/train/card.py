"""What is written of a finished adapter: its card for the registry, and the header of its file for everybody else's programs."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kleinbild import __version__
from kleinbild.core.adapters import Card, Kind
from kleinbild.core.training import Progressed, TrainingEvent, Validated
from kleinbild.model import catalog
from kleinbild.model.adapters.registry import digest
from kleinbild.model.weights import Model
from kleinbild.model.weights.specs import family
from kleinbild.train.data.examples import Example
from kleinbild.train.sweep import Trial

ARCHITECTURES = {"klein-4b": "flux2-klein-4b/lora", "klein-9b": "flux2-klein-9b/lora", "nano": "flux2-nano/lora"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter comes from: all that is known of it before it is trained.

    `config` is the resolved recipe. `num_examples` are those to learn from, without those for regularization. `data_sha256` changes with any picture, mask, caption or repeat (`digest_data`).
    """

    name: str
    family: str
    base: str
    base_fingerprint: str
    config: Mapping[str, Any]
    num_examples: int
    data_sha256: str
    trigger_words: tuple[str, ...] = ()
    licence: str = ""
    preview_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `strengths` are the recommended ones, `stopped` says why it ended early, if it did."""

    step: int
    events: Sequence[TrainingEvent]
    trials: Sequence[Trial] = ()
    strengths: Mapping[Kind, float] = field(default_factory=dict)
    stopped: str | None = None
    best_step: int | None = None  # whose weights these are, if not those of `step`

    def last(self, kind: type[Progressed | Validated]) -> Any:
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)

    @property
    def metrics(self) -> dict[str, float]:
        """The last values of everything that was measured."""
        progressed, validated = self.last(Progressed), self.last(Validated)
        metrics = {} if progressed is None else {"training_loss": progressed.loss}
        if validated is not None:
            metrics |= {"validation_loss": validated.loss}
        for event in self.events:  # what pictures tell is not told at every check
            if isinstance(event, Validated):
                metrics |= dict(event.metrics)
        return metrics | {f"strength_{kind}": strength for kind, strength in self.strengths.items()}


def origin_of(
    model: Model, *, name: str, config: Mapping[str, Any], examples: Sequence[Example], trigger_words: Sequence[str] = (),
    licence: str = "", preview_prompt: str = "",
) -> Origin:  # fmt: skip
    """`licence` "" is the base model's: an adapter is made from it."""
    return Origin(
        name=name,
        family=family(model.spec.transformer) or "",
        base=model.name,
        base_fingerprint=model.fingerprint,
        config=config,
        num_examples=sum(not example.regularization for example in examples),
        data_sha256=digest_data(examples),
        trigger_words=tuple(trigger_words),
        licence=licence or next((e.licence for e in catalog.entries() if e.name == model.name), ""),
        preview_prompt=preview_prompt,
    )


def digest_data(examples: Sequence[Example]) -> str:
    """One SHA-256 of all that examples say, wherever their files lie."""
    total = hashlib.sha256()
    for example in sorted(examples, key=lambda example: example.name):
        files = [digest(path) for path in example.files]
        facts = ["\n".join(example.captions), len(example.references), example.repeats, example.regularization, files]
        total.update(json.dumps(facts).encode())
    return total.hexdigest()


def versions() -> dict[str, str]:
    return {"kleinbild": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def header(origin: Origin) -> dict[str, str]:
    """The metadata of the file: ours, and the field's standard names (`modelspec`)."""
    size = str(origin.config.get("size", ""))
    ours = {
        "kleinbild.version": __version__,
        "kleinbild.base": origin.base,
        "kleinbild.base_fingerprint": origin.base_fingerprint,
        "kleinbild.family": origin.family,
        "kleinbild.data_sha256": origin.data_sha256,
        "kleinbild.trigger_words": json.dumps(origin.trigger_words),
        "kleinbild.times": str(origin.config.get("times", "")),
        "kleinbild.preview_prompt": origin.preview_prompt,
        "kleinbild.config": json.dumps(dict(origin.config), sort_keys=True),
    }
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": origin.name,
        "modelspec.architecture": ARCHITECTURES.get(origin.family, "flux2/lora"),
        "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        "modelspec.prediction_type": "flow",
        "modelspec.license": origin.licence,
        "modelspec.trigger_phrase": ", ".join(origin.trigger_words),
        "modelspec.resolution": f"{size}x{size}" if size else "",
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return {key: value for key, value in (ours | spec).items() if value}


def card_of(origin: Origin, outcome: Outcome, file: Path) -> Card:
    """The card of the adapter in `file`."""
    return Card(
        name=origin.name,
        family=origin.family,
        sha256=digest(file),
        size_bytes=file.stat().st_size,
        created_at=time.time(),
        base=origin.base,
        base_fingerprint=origin.base_fingerprint,
        trigger_words=origin.trigger_words,
        licence=origin.licence,
        strengths=dict(outcome.strengths),
        report=_report(origin, outcome),
    )


def _report(origin: Origin, outcome: Outcome) -> dict[str, Any]:
    validated = outcome.last(Validated)
    return {
        "config": dict(origin.config),
        "data": {"sha256": origin.data_sha256, "num_examples": origin.num_examples},
        "steps": outcome.step,
        "weights_of_step": outcome.best_step or outcome.step,
        "stopped": outcome.stopped,
        "metrics": outcome.metrics,
        "validation_by_time": {} if validated is None else dict(validated.by_time),
        "sweep": [
            {"model": trial.kind, "strength": trial.strength, "distance": trial.distance, "drift": trial.drift,
             "score": trial.score}
            for trial in outcome.trials
        ],
        "versions": versions(),
    }  # fmt: skip
