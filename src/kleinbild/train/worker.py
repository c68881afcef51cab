"""A training run as a process: `python -m kleinbild.train.worker FOLDER`, alone or under `accelerate launch`.

FOLDER holds `recipe.toml`; the run goes on from what else it holds. What happens is told in lines of JSON
(`core.training`), on stdout and in `events.jsonl`. SIGTERM and Ctrl-C pause it: the state is kept, and the exit code is
0. A failure is told as `Failed`, and leaves with its error's code.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import kleinbild
from kleinbild.core.errors import CapacityError, KleinbildError, OutputError
from kleinbild.core.precision import Precision as ModelPrecision
from kleinbild.core.training import Failed, Prepared, TrainingEvent, Warned, to_line
from kleinbild.engine.prepare import size_range
from kleinbild.model.weights import Model, load_model
from kleinbild.train.checkpointed import checkpoint_blocks
from kleinbild.train.data.buckets import Framing
from kleinbild.train.data.cache import Encoded, Encodings, Progress
from kleinbild.train.data.cache import prepare as encode
from kleinbild.train.data.given import resolved
from kleinbild.train.defaults import trainee_of
from kleinbild.train.exam import once_each
from kleinbild.train.frozen import quantize_base
from kleinbild.train.loop import Judge, Run, train
from kleinbild.train.networks import trained_from
from kleinbild.train.prior import FOLDER as PRIOR
from kleinbild.train.prior import prior_examples, prior_requests
from kleinbild.train.processes import Processes, check_share, join_processes
from kleinbild.train.recipe import FILE, MODEL, Recipe, read, write
from kleinbild.train.results import prepare_model
from kleinbild.train.state import identity_of
from kleinbild.train.validate import hold_out

EVENTS = "events.jsonl"
TELL_EVERY = 2.0  # seconds
LOADED: dict[str, ModelPrecision] = {"fp32": "float32", "bf16": "bfloat16", "int8": "bfloat16", "nf4": "bfloat16"}

JudgeOf = Callable[[Run, Model, Sequence[Encoded]], Judge]
"""Who looks at a run, given samples that are not trained on, if there are any."""


@dataclass(slots=True)
class Stop:
    """Whether somebody asked the process to stop. A second Ctrl-C does not wait for the step."""

    asked: bool = field(default=False)

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"holds {FILE}")
    from kleinbild.train.judge import judge_of

    sys.exit(work(parser.parse_args().folder, judge_of))


def work(folder: Path, judge_of: JudgeOf | None = None) -> int:
    """Runs or resumes what `folder` describes, tells of it, and gives the exit code."""
    stop = Stop()
    stop.listen()
    tell: Callable[[TrainingEvent], None] = lambda event: _tell(folder, event)  # noqa: E731 - replaced when its place is known
    try:
        processes = join_processes()
        if not processes.is_first:
            tell = _say_nothing
        run = prepare(folder, processes, tell, stop, judge_of)
        train(run)
    except Exception as error:  # noqa: BLE001 - whatever it is, those who watch are told
        known = in_words(error)
        if known is None:
            traceback.print_exc()
            known = KleinbildError(f"{type(error).__name__}: {error}", "this is a bug in Kleinbild; please report it")
        tell(Failed(type(known).__name__, known.message, known.hint))
        return known.exit_code
    return 0


def prepare(
    folder: Path,
    processes: Processes,
    tell: Callable[[TrainingEvent], None],
    stop: Stop,
    judge_of: JudgeOf | None = None,
) -> Run:
    """Everything up to the first step: recipe, model, data. Raises KleinbildError for what cannot be trained so."""
    values, progress = read(folder / FILE), now_and_then(tell)
    trainee = trainee_of(str(values.get("model", MODEL)))
    recipe, dataset, validation = resolved(values, trainee)
    check_share(processes, recipe.batch_size)
    if processes.is_first:
        write(recipe, folder / FILE)
    if recipe.prior_pictures:
        with processes.first_alone():  # the others find what it has made
            asked = prior_requests(
                dataset.examples, recipe.trigger_words, trainee.settings.vocabulary, recipe.prior_pictures
            )
            prior = prior_examples(folder / PRIOR, recipe.model, trainee, asked, processes.device, progress)
        dataset = replace(dataset, examples=(*dataset.examples, *prior))
    model = load_model(recipe.model, device=processes.device, precision=LOADED[recipe.precision])
    with processes.first_alone():  # the others find what it has encoded
        encodings = encode(model, dataset, framing_of(recipe, model), progress=progress)
        validating = encode(model, validation, framing_of(recipe, model), progress=progress) if validation else None
    notes = validation.notes if validation else ()
    for note in (*model.notes, *dataset.notes, *notes, *encodings.notes):
        tell(Warned(note))
    quantize_base(model.transformer, recipe.precision)
    if recipe.gradient_checkpointing:
        checkpoint_blocks(model.transformer)
    if recipe.method == "full" and processes.is_first:
        prepare_model(folder, model, recipe.model)
    trained_on, held_out = divide(encodings, recipe) if validating is None else (encodings, validating)
    run = Run(
        folder=folder,
        recipe=recipe,
        identity=identity_of(
            recipe, model.fingerprint, (*dataset.examples, *(validation.examples if validation else ()))
        ),
        trained=trained_from(model.transformer, recipe),
        samples=trained_on,
        examples=[entry.example for entry in trained_on.entries],
        empty_LX=encodings.context(""),
        processes=processes,
        tell=tell,
        stopped=lambda: stop.asked,
        metadata=metadata_of(recipe, model),
    )
    run.judge = judge_of(run, model, once_each(held_out)) if judge_of is not None and processes.is_first else None
    return run


def now_and_then(tell: Callable[[TrainingEvent], None]) -> Progress:
    """Tells of what takes long, once in `TELL_EVERY` seconds."""
    told = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            tell(Prepared(what, done, total))

    return progress


def divide(encodings: Encodings, recipe: Recipe) -> tuple[Encodings, Encodings]:
    """Those to train on, and those that nothing but the validation sees: none where every picture is needed."""
    learned = list(dict.fromkeys(e.example for e in encodings.entries if not e.example.regularization))
    kept = set(hold_out(learned, [example.name for example in learned], recipe.seed)[0])
    ours = [entry.example.regularization or entry.example in kept for entry in encodings.entries]
    return encodings.only(ours), encodings.only([not each for each in ours])


def framing_of(recipe: Recipe, model: Model) -> Framing:
    """How the data's pictures meet the model."""
    sizes = size_range(model.settings, model.spec)
    return Framing(sizes, recipe.sizes, recipe.references, alpha_masks=recipe.alpha_masks)


def metadata_of(recipe: Recipe, model: Model) -> dict[str, str]:
    """What the adapter's file says of its origin."""
    return {
        "kleinbild.version": kleinbild.__version__,
        "kleinbild.base": model.name,
        "kleinbild.base_fingerprint": model.fingerprint,
        "kleinbild.trigger_words": json.dumps(recipe.trigger_words),
        "kleinbild.licence": recipe.licence,
    }


def in_words(error: Exception) -> KleinbildError | None:
    """`error` as one that says what to do, or None: then it is a bug of ours."""
    if isinstance(error, KleinbildError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return CapacityError(
            "not enough memory for a step",
            "set gradient_checkpointing=true, a smaller batch_size or size, or precision=int8",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutputError("no space left in the run's folder", "make room, then start again")
    return None


def _tell(folder: Path, event: TrainingEvent) -> None:
    line = to_line(event, time.time()) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    with (folder / EVENTS).open("a", encoding="utf-8") as file:
        file.write(line)


def _say_nothing(_event: TrainingEvent) -> None:
    """The other processes' part."""


if __name__ == "__main__":
    main()
