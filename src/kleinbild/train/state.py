"""What a run keeps to go on with: `state.pt` in its folder; and that nobody goes on with another recipe, base or data.

All that is random follows from the seed and the step, so that weights, moments, averages and the step are the whole of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kleinbild.core.errors import RequestError, WeightsError
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.data.examples import Example
from kleinbild.train.networks import Trained
from kleinbild.train.optimizers import Optimizers
from kleinbild.train.recipe import Recipe, differences

STATE = "state.pt"
FREE = (  # what may change between two starts: where the data lie, how often is looked, what the result is called
    "about", "name", "data", "regularization_data", "validation_data", "licence", "trigger_words", "progress_every",
    "validate_every", "preview_every", "checkpoint_every", "checkpoint_minutes", "preview_prompts", "wandb", "early_stop", "sweep",
)  # fmt: skip
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run's weights follow from: the recipe, the base's fingerprint, and the digest of each example by name."""

    recipe: Mapping[str, Any]
    model: str
    examples: Mapping[str, str]


def identity_of(recipe: Recipe, fingerprint: str, examples: Sequence[Example]) -> Identity:
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    digests = {f"{number} {each.name or each.target.name}": _digest(each) for number, each in enumerate(examples)}
    return Identity({k: v for k, v in values.items() if k not in FREE}, fingerprint, digests)


def _digest(example: Example) -> str:
    """Of an example's words and of what is in its files, not of where they are."""
    digest = hashlib.sha256("\n".join((*example.captions, f"{example.repeats} {example.regularization}")).encode())
    for path in (example.target, *example.references, *(() if example.mask is None else (example.mask,))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def keep(folder: Path, identity: Identity, trained: Trained, optimizers: Optimizers) -> None:
    """Writes the state in the place of the last one. Raises OutputError; the last one is whole then."""
    state = {
        "step": trained.step,
        "tokens": trained.num_tokens,
        "weights": {name: parameter.detach() for name, parameter in trained.parameters.items()},
        "average": trained.average,
        "optimizers": optimizers.state(),
        "identity": {
            "recipe": dict(identity.recipe), "model": identity.model, "examples": dict(identity.examples)
        },
    }  # fmt: skip
    save_state(folder / STATE, state)


def take_up(folder: Path, identity: Identity, trained: Trained, optimizers: Optimizers) -> bool:
    """Goes on from the folder's state, if there is one. Raises RequestError where it is of another run, naming what differs."""
    try:
        state = load_state(folder / STATE)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise WeightsError(
            f"{folder / STATE} cannot be read: {error}", "remove it to begin anew, or start from a checkpoint"
        ) from error
    if state is None:
        return False
    _require_same(folder, Identity(**state["identity"]), identity)
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.copy_(state["weights"][name])
        for name, tensor in trained.average.items():
            tensor.copy_(state["average"][name])
    optimizers.restore(state["optimizers"])
    trained.step, trained.num_tokens = int(state["step"]), int(state["tokens"])
    return True


def _require_same(folder: Path, begun: Identity, now: Identity) -> None:
    differ = differences(begun.recipe, now.recipe)
    if begun.model != now.model:
        differ.append(f"the base's weights {begun.model}, not {now.model}")
    changed = [key for key in begun.examples if key in now.examples and begun.examples[key] != now.examples[key]]
    for what, keys in (
        ("changed", changed),
        ("gone", [key for key in begun.examples if key not in now.examples]),
        ("new", [key for key in now.examples if key not in begun.examples]),
    ):
        if keys:
            named = ", ".join(key.partition(" ")[2] for key in keys[:MOST_NAMED])
            more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
            differ.append(f"examples {what}: {named}{more}")
    if differ:
        raise RequestError(
            f"the run in {folder} was begun otherwise: {'; '.join(differ)}",
            "put that back to go on, or begin another run in another folder",
        )
