"""A distillation from its order to its result: model, adapters and samples are read, the run is run, and the result written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import KleinbildError, OutputError, RequestError
from kleinbild.core.training import Failed, Finished, TrainingEvent, to_line
from kleinbild.model.adapters import registry
from kleinbild.model.adapters.applied import Use, bind
from kleinbild.model.adapters.read import read_adapter
from kleinbild.model.weights import Model, load_model
from kleinbild.train.attention import leave_out_cudnn
from kleinbild.train.distill.field import Field, Guided, Sample
from kleinbild.train.distill.guards import examine
from kleinbild.train.distill.loop import Report, Run, train
from kleinbild.train.distill.recipe import Product, Recipe, recipe_for, require_same, with_settings, write_recipe
from kleinbild.train.distill.result import Result, write
from kleinbild.train.distill.rollouts import Rollouts
from kleinbild.train.distill.samples import context_of, samples_of_folder, samples_of_prompts
from kleinbild.train.distill.student import lightning, whole

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. `data` is a data set, `prompts` a file of prompts: one of the two. `settings`: key=value each."""

    model: str
    folder: Path
    adapters: tuple[AdapterUse, ...] = ()
    data: Path | None = None
    prompts: Path | None = None
    product: Product = "model"
    settings: tuple[str, ...] = ()
    device: str = "cpu"


def distill(
    order: Order,
    on_event: Callable[[TrainingEvent], None] = lambda _event: None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Result, Report] | None:
    """Runs `order`, or goes on with it in its folder. None: stopped, with its state kept; the same order goes on.

    Raises RequestError, ModelError or OutputError for what cannot be done, EngineError where training came to nothing.
    """
    _check(order)
    leave_out_cudnn()
    model = load_model(order.model, device=order.device)
    recipe = with_settings(recipe_for(model.spec, order.product), order.settings)
    if model.settings.distilled:
        raise RequestError(
            f"{model.name} is distilled already", "give a base model, or one that was customised from a base model"
        )
    _begin_folder(order.folder, recipe)

    def say(event: TrainingEvent) -> None:
        with (order.folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
            file.write(to_line(event, time.time()) + "\n")
        on_event(event)

    try:
        run = prepare(order, model, recipe)
        report = train(run, order.folder, say, stopped)
        if report is None:
            return None
        adapters = tuple(use.name for use in order.adapters)
        result = write(run, report, model, order.model, adapters, order.folder)
    except KleinbildError as error:
        say(Failed(type(error).__name__, error.message, error.hint))
        raise
    say(Finished(run.step, result.adapter, result.path.name, result.sha256, report.after.metrics()))
    return result, report


def prepare(order: Order, model: Model, recipe: Recipe) -> Run:
    """Teacher, student and what they will be asked."""
    if order.data is not None:
        samples = samples_of_folder(model, order.data)
    else:
        assert order.prompts is not None
        samples = samples_of_prompts(model, order.prompts)
    uses, digests = _uses(order, model)
    return run_of(model, uses, samples, recipe, _fingerprint(model, digests, samples))


def run_of(model: Model, uses: Sequence[Use], samples: Sequence[Sample], recipe: Recipe, fingerprint: str = "") -> Run:
    """A run at its first update."""
    mixed = recipe.mixed or model.dtype != torch.float32
    field = Field(model.transformer, tuple(uses), mixed)
    teacher = Guided(field, context_of(model, ""), recipe.guidance, recipe.guided_below)
    rollouts = Rollouts(teacher, samples, recipe, model.spec.transformer.in_channels, model.device)
    student = lightning(field, recipe.rank, recipe.seed) if recipe.product == "adapter" else whole(field)
    return Run(field, rollouts, examine(rollouts, model.autoencoder), student, model.name, fingerprint)


def _check(order: Order) -> None:
    if (order.data is None) == (order.prompts is None):
        raise RequestError(
            "a distillation learns from pictures or from prompts alone", "give one of --data DIR and --prompts FILE"
        )
    if order.product == "adapter":
        registry.check_name(order.folder.resolve().name)


def _begin_folder(folder: Path, recipe: Recipe) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_same(folder, recipe)
        write_recipe(folder, recipe)
    except OSError as error:
        raise OutputError(f"{folder} cannot be used: {error.strerror or error}", "name another folder") from error


def _uses(order: Order, model: Model) -> tuple[list[Use], list[str]]:
    """The teacher's own adapters, and what tells them from others."""
    uses, digests = [], []
    for wanted in order.adapters:
        found = registry.find(wanted.name)
        recommended = found.card.strength(distilled=False) if found.card else 1.0
        strength = recommended if wanted.scale is None else wanted.scale
        loaded = read_adapter(found.path, model.spec.transformer)
        uses.append(Use(bind(loaded.adapter, model.transformer), strength))
        digests.append(f"{registry.digest(found.path)} {strength}")
    return uses, digests


def _fingerprint(model: Model, adapters: Sequence[str], samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256(" ".join((model.fingerprint, *adapters)).encode())
    for sample in samples:
        tensors = [sample.context_LX, *(tokens_KC for tokens_KC, _ in sample.references)]
        for tensor in (*tensors, *(() if sample.target_NC is None else (sample.target_NC,))):
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
