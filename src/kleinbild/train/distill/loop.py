"""The run: update by update through both stages, measured on the way, kept so that it goes on where it was stopped.

Everything random is a function of the seed and the update's number, so nothing but weights, moments and averages has to
be kept: a run that was stopped ends with the same weights, to the last bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kleinbild.core.errors import EngineError, OutputError
from kleinbild.core.training import Paused, Previewed, Progressed, Started, TrainingEvent, Validated, Warned
from kleinbild.train.checkpoint import load_state, save_state
from kleinbild.train.distill.field import Field
from kleinbild.train.distill.guards import REMEMBERED, Examination, Measured, fake_loss_tripped
from kleinbild.train.distill.polish import polish_loss, update_fake
from kleinbild.train.distill.recipe import Recipe
from kleinbild.train.distill.rollouts import Rollouts
from kleinbild.train.distill.student import Trained, lightning, whole
from kleinbild.train.distill.trajectory import errors, lessons
from kleinbild.train.optimizers import cosine

STATE_FILE, REPORT_FILE = "state.pt", "report.json"
SECONDS_A_STATE = 300.0
UPDATES_A_LINE = 10

Say = Callable[[TrainingEvent], None]


@dataclass(frozen=True, slots=True)
class Report:
    """How the student did: before, after stage 1 and at the end. `tripped`: what is out of bounds in the end;
    `rolled_back`: why stage 2 was given up, if it was."""

    before: Measured
    after_trajectory: Measured
    after: Measured
    tripped: tuple[str, ...]
    rolled_back: str | None
    fake_losses: tuple[float, ...] = ()

    def save(self, folder: Path, **more: Any) -> Path:
        path = folder / REPORT_FILE
        path.write_text(json.dumps({**more, "passed": not self.tripped, **asdict(self)}, indent=2) + "\n", "utf-8")
        return path


@dataclass(slots=True, eq=False)
class Run:
    """All that updates change. `good` are the averages that last passed in stage 2, or that it began with."""

    teacher: Field
    rollouts: Rollouts
    examination: Examination
    student: Trained
    name: str
    fingerprint: str  # of model, adapters and samples: what a run resumed must have in common with its beginning
    fake: Trained | None = None
    step: int = 0
    measured: dict[str, Measured] = field(default_factory=dict)
    fake_losses: list[float] = field(default_factory=list)
    good: list[Tensor] | None = None
    rolled_back: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.rollouts.recipe

    def state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "student": self.student.state(),
            "fake": self.fake.state() if self.fake else None,
            "measured": {name: asdict(measured) for name, measured in self.measured.items()},
            "fake_losses": list(self.fake_losses),
            "good": self.good,
            "rolled_back": self.rolled_back,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.good, self.rolled_back = state["step"], state["good"], state["rolled_back"]
        self.student.restore(state["student"])
        self.measured = {name: Measured(**values) for name, values in state["measured"].items()}
        self.fake_losses = state["fake_losses"]
        if state["fake"] is not None:
            self.fake = fake_score(self)
            self.fake.restore(state["fake"])


def fake_score(run: Run) -> Trained:
    """What learns to know the student's pictures: of the student's own kind, and at first the teacher."""
    betas = (0.0, 0.999)
    if run.recipe.product == "adapter":
        return lightning(run.teacher, run.recipe.rank, run.recipe.seed + 1, betas)
    return whole(run.teacher, betas)


def train(run: Run, folder: Path, say: Say, stopped: Callable[[], bool] = lambda: False) -> Report | None:
    """Runs or goes on with `run`, whose state is in `folder`. None: it was stopped, its state kept.

    Raises OutputError for the state of another run, and EngineError where the loss is no number any more.
    """
    recipe = run.recipe
    _resume(run, folder)
    say(Started(run.step, recipe.num_updates, run.name, len(run.rollouts.samples), recipe.seed))
    if "before" not in run.measured:
        run.measured["before"] = _validate(run, folder, say, with_diversity=True)
    begun = saved_at = time.monotonic()
    first, losses = run.step, []
    while run.step < recipe.num_updates and run.rolled_back is None:
        if stopped():
            save_state(folder / STATE_FILE, run.state())
            say(Paused(run.step))
            return None
        if run.step == recipe.first_polished:
            _begin_polish(run, folder, say)
        rate = learning_rate(recipe, run.step)
        losses.append(_update(run, rate))
        run.step += 1
        if run.step % UPDATES_A_LINE == 0 or run.step == recipe.num_updates:
            left = (time.monotonic() - begun) / (run.step - first) * (recipe.num_updates - run.step)
            say(Progressed(run.step, recipe.num_updates, sum(losses) / len(losses), rate, left))
            losses.clear()
        if run.step % recipe.validate_every == 0 and run.step < recipe.num_updates:
            _keep_if_good(run, _validate(run, folder, say))
        if time.monotonic() - saved_at > SECONDS_A_STATE:
            saved_at = time.monotonic()
            save_state(folder / STATE_FILE, run.state())
    return _end(run, folder, say)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up, then half a cosine from `rate` to `final_rate`, in stage 1; a constant in stage 2."""
    if step >= recipe.first_polished:
        return recipe.polish_rate
    progress = step / max(1, recipe.first_polished)
    rate = recipe.final_rate + (recipe.rate - recipe.final_rate) * cosine(progress)
    return rate * min(1.0, (step + 1) / max(1, recipe.warmup))


def _update(run: Run, rate: float) -> float:
    """One update of the student, unless a guard trips; gives its loss. Raises EngineError where that is no number."""
    loss = _trajectory_loss(run) if run.step < run.recipe.first_polished else _polish_loss(run)
    value = float(loss.detach())
    if run.rolled_back is None and math.isfinite(value):
        run.student.update(loss, rate, run.recipe)
    elif run.good is None:
        hint = f"start over in another folder with a lower rate, for example --set rate={run.recipe.rate / 3:.2g}"
        raise EngineError(f"the loss of update {run.step} is not a number", hint)
    elif run.rolled_back is None:
        run.rolled_back = f"the loss of update {run.step} is not a number"
    return value


def _trajectory_loss(run: Run) -> Tensor:
    student, recipe = run.student.field, run.recipe
    given = lessons(student, run.rollouts, run.step, run.step / recipe.first_polished)
    return torch.stack(errors(student, given, recipe)).mean()


def _polish_loss(run: Run) -> Tensor:
    """After the fake score's updates, whose losses are watched."""
    assert run.fake is not None
    student, fake = run.student.field, run.fake
    losses = [update_fake(fake, student, run.rollouts, run.step, number) for number in range(run.recipe.fake_updates)]
    run.fake_losses.append(sum(losses) / len(losses))
    run.rolled_back = fake_loss_tripped(run.fake_losses)
    del run.fake_losses[: -REMEMBERED - 1]
    return polish_loss(student, fake.field, run.rollouts, run.step)


def _begin_polish(run: Run, folder: Path, say: Say) -> None:
    if "after_trajectory" not in run.measured:
        run.measured["after_trajectory"] = _validate(run, folder, say, with_diversity=True)
    if run.good is None:
        run.good = [mean.clone() for mean in run.student.average]
        run.fake = fake_score(run)


def _keep_if_good(run: Run, measured: Measured) -> None:
    """In stage 2: what passes is kept to roll back to, and what does not ends it."""
    if run.good is None:
        return
    if tripped := measured.tripped():
        run.rolled_back = "; ".join(tripped)
    else:
        run.good = [mean.clone() for mean in run.student.average]


def _end(run: Run, folder: Path, say: Say) -> Report:
    after = None
    if run.rolled_back is None:
        after = _validate(run, folder, say, with_diversity=True)
        _keep_if_good(run, after)
    if run.rolled_back is not None:
        assert run.good is not None
        for mean, kept in zip(run.student.average, run.good, strict=True):
            mean.copy_(kept)
        say(Warned(f"stage 2 was given up and undone: {run.rolled_back}", run.step))
        after = _validate(run, folder, say, with_diversity=True)
    assert after is not None
    save_state(folder / STATE_FILE, run.state())
    tripped = after.tripped()
    for words in tripped:
        say(Warned(words, run.step))
    return Report(
        before=run.measured["before"],
        after_trajectory=run.measured.get("after_trajectory", after),
        after=after,
        tripped=tripped,
        rolled_back=run.rolled_back,
        fake_losses=tuple(run.fake_losses),
    )


def _validate(run: Run, folder: Path, say: Say, *, with_diversity: bool = False) -> Measured:
    with run.student.averaged() as student:
        measured = run.examination.measure(student, with_diversity=with_diversity)
        sheet = Path("previews") / f"step-{run.step}.png"
        run.examination.sheet(student, folder / sheet)
    by_window = {str(k): distance for k, distance in enumerate(measured.by_window, 1)}
    say(Validated(run.step, measured.distance, by_window, measured.metrics()))
    say(Previewed(run.step, run.name, str(sheet)))
    return measured


def _resume(run: Run, folder: Path) -> None:
    state = load_state(folder / STATE_FILE)
    if state is None:
        return
    if state["fingerprint"] != run.fingerprint:
        raise OutputError(
            f"{folder} holds a run of another model, other adapters or other samples",
            "give the same again, or name another folder",
        )
    run.restore(state)
