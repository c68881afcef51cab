"""The training loop: draw, differentiate, step; look, keep, tell. Stopped at any moment, it goes on to the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from kleinbild.core.errors import EngineError
from kleinbild.core.training import Checkpointed, Finished, Paused, Progressed, Started, TrainingEvent, Warned
from kleinbild.model.adapters.registry import digest
from kleinbild.train.data.cache import Encoded
from kleinbild.train.data.examples import Example
from kleinbild.train.networks import Network, Trained
from kleinbild.train.objective import draw, loss_of, num_tokens_of
from kleinbild.train.optimizers import Optimizers, average, optimizers_of, rate_factor
from kleinbild.train.order import Order, order_of
from kleinbild.train.processes import Processes
from kleinbild.train.recipe import Recipe
from kleinbild.train.results import checkpoint_path, result_path, write_result
from kleinbild.train.state import Identity, keep, take_up

WATCHED_STEPS = 3  # after each start: were activations infinite, they would be at once


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run should stop here, and why."""

    stop: bool = False
    reason: str = ""


class Judge(Protocol):
    """Who looks at a run: validation, previews, the watch against learning by heart, and what follows at its end."""

    def at_step(self, step: int, trained: Trained) -> Verdict:
        """After every step (from 1); most of the time there is nothing to do."""
        ...

    def finish(self, trained: Trained) -> Finished | None:
        """After the last step, with the result in the run's folder: what to say of it, or None for the least."""
        ...


@dataclass(slots=True, eq=False)
class Run:
    """A run in memory. `stopped` is asked after each step; `tell` hears what happens.

    `samples` are the examples at each of their sizes, encoded; `empty_LX` is the context of the empty caption.
    """

    folder: Path
    recipe: Recipe
    identity: Identity
    trained: Trained
    samples: Sequence[Encoded]
    examples: Sequence[Example]  # of the samples, one for each
    empty_LX: Tensor
    processes: Processes
    tell: Callable[[TrainingEvent], None]
    stopped: Callable[[], bool] = lambda: False
    judge: Judge | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def train(run: Run) -> bool:
    """Trains to the end, or until it is stopped: then False, with everything kept to go on.

    Raises EngineError where the numbers are no longer finite, and OutputError where the disk is full; what was kept
    before is whole then.
    """
    recipe, trained = run.recipe, run.trained
    network = Network(trained)
    optimizers = optimizers_of(trained.parameters, recipe)
    take_up(run.folder, run.identity, trained, optimizers)
    order = order_of(run.examples, recipe.seed, recipe.regularization_share)
    num_learned = len({example for example in run.examples if not example.regularization})
    run.tell(Started(trained.step, recipe.steps, recipe.model, num_learned, recipe.seed))
    pace = _Pace(trained.step)
    while trained.step < recipe.steps:
        with _finite_activations(network, watched=trained.step - pace.first_step < WATCHED_STEPS):
            loss = take_step(run, network, optimizers, order)
        _tell_progress(run, pace, loss)
        verdict = run.judge.at_step(trained.step, trained) if run.judge else Verdict()
        paused, judged = _agreed(run.processes, run.stopped(), verdict.stop)
        last, due = judged or trained.step == recipe.steps, _is_due(trained.step, recipe.checkpoint_every)
        if last or paused or due or pace.late(recipe.checkpoint_minutes):
            _keep(run, optimizers, pace)
        if due and not last:
            _write_checkpoint(run, loss)
        if judged:
            run.tell(Warned(verdict.reason, trained.step))
            break
        if paused and not last:
            run.tell(Paused(trained.step))
            return False
    _finish(run)
    return True


def take_step(run: Run, network: nn.Module, optimizers: Optimizers, order: Order) -> float:
    """One step of the weights; gives the mean loss of its samples. Raises EngineError before NaN reaches the weights."""
    recipe, trained, processes = run.recipe, run.trained, run.processes
    spec, first = trained.transformer.spec, trained.step * recipe.batch_size * recipe.accumulation
    total, num_tokens = 0.0, 0
    for i in range(recipe.accumulation):
        start = first + i * recipe.batch_size
        numbers = processes.share(range(start, start + recipe.batch_size))
        samples = [draw(run.samples[order.example(n)], run.empty_LX, recipe, n) for n in numbers]
        loss = loss_of(network, samples, spec, processes.device) / recipe.accumulation
        loss.backward()
        total += loss.item()
        num_tokens += num_tokens_of(samples)
    gradients = [parameter.grad for parameter in trained.parameters.values() if parameter.grad is not None]
    processes.average(gradients)
    total, tokens_a_process = processes.mean(total, num_tokens)
    norm = nn.utils.get_total_norm(gradients)
    if not (math.isfinite(total) and math.isfinite(float(norm))):
        raise _not_finite(run, f"the loss is {total:g}, the gradient's norm {float(norm):g}")
    if recipe.clip:
        nn.utils.clip_grads_with_norm_(trained.parameters.values(), recipe.clip, norm)
    optimizers.step(rate_factor(recipe, trained.step))
    optimizers.clear()
    trained.step += 1
    trained.num_tokens += round(tokens_a_process * processes.count)
    averaged = [trained.parameters[name] for name in trained.average]
    average(list(trained.average.values()), averaged, recipe.ema, trained.step)
    return total


class _Pace:
    """How fast it goes, what was lost since the last word, and when the state was last kept."""

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.losses: list[float] = []
        self.started = self.kept = time.monotonic()

    def seconds_left(self, step: int, num_steps: int) -> float:
        return (time.monotonic() - self.started) / (step - self.first_step) * (num_steps - step)

    def late(self, minutes: float) -> bool:
        return bool(minutes) and time.monotonic() - self.kept > minutes * 60


def _tell_progress(run: Run, pace: _Pace, loss: float) -> None:
    recipe, step = run.recipe, run.trained.step
    pace.losses.append(loss)
    if _is_due(step, recipe.progress_every) or step == recipe.steps:
        rate = recipe.learning_rate * rate_factor(recipe, step - 1)
        mean = sum(pace.losses) / len(pace.losses)
        run.tell(Progressed(step, recipe.steps, mean, rate, pace.seconds_left(step, recipe.steps)))
        pace.losses.clear()


def _keep(run: Run, optimizers: Optimizers, pace: _Pace) -> None:
    if run.processes.is_first:
        keep(run.folder, run.identity, run.trained, optimizers)
    pace.kept = time.monotonic()


def _write_checkpoint(run: Run, loss: float) -> None:
    if run.processes.is_first:
        path = checkpoint_path(run.folder, run.trained.step)
        write_result(path, run.trained, run.metadata)
        run.tell(Checkpointed(run.trained.step, str(path.relative_to(run.folder)), loss))


def _finish(run: Run) -> None:
    if not run.processes.is_first:
        return
    path = result_path(run.folder, run.trained)
    write_result(path, run.trained, run.metadata)
    said = run.judge.finish(run.trained) if run.judge else None
    finished = said or Finished(run.trained.step, run.recipe.name, str(path.relative_to(run.folder)), digest(path))
    run.tell(replace(finished, metrics={**finished.metrics, "tokens": run.trained.num_tokens}))


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _agreed(processes: Processes, *wanted: bool) -> list[bool]:
    """What any process wants: all have to stop after the same step."""
    return [share > 0 for share in processes.mean(*map(float, wanted))]


@contextmanager
def _finite_activations(network: Network, *, watched: bool) -> Iterator[None]:
    """While `watched`, raises EngineError that names the first block whose numbers are not finite."""

    def check(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, outputs: object) -> None:
            tensors = outputs if isinstance(outputs, tuple) else (outputs,)
            if not all(bool(torch.isfinite(each).all()) for each in tensors if isinstance(each, Tensor)):
                raise EngineError(
                    f"{name} gives numbers that are not finite", "use precision=bf16 or fp32; check the base's weights"
                )

        return look

    blocks = {
        f"{kind}.{i}": block
        for kind in ("double_blocks", "single_blocks")
        for i, block in enumerate(getattr(network.transformer, kind))
    }
    hooks = [block.register_forward_hook(check(name)) for name, block in blocks.items()] if watched else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _not_finite(run: Run, what: str) -> EngineError:
    last = (
        run.trained.step // run.recipe.checkpoint_every * run.recipe.checkpoint_every
        if run.recipe.checkpoint_every
        else 0
    )
    path = checkpoint_path(run.folder, last)
    kept = f"{path} is the last good one" if path.exists() else "nothing was kept yet"
    return EngineError(
        f"step {run.trained.step + 1} was not taken: {what}",
        f"{kept}; begin another run with a lower learning_rate (this was {run.recipe.learning_rate:g})",
    )
