"""The judge of a run: at its intervals it validates and makes previews, says when to stop, and writes what becomes of it.

1. `at_step`: previews and what their pictures tell, then the validation loss, then whether that is reason to stop.
2. `finish`: the weights that count, the strengths they are best used with, card, report, registry.

It draws from no random stream of the run and changes no weight. What it decides follows from the run's events, so a run
that is resumed is judged as one that was not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from kleinbild.core.errors import KleinbildError
from kleinbild.core.training import Finished, Previewed, TrainingEvent, Validated, Warned, from_line
from kleinbild.model.adapters.registry import check_name, write_card
from kleinbild.model.weights import Model
from kleinbild.train.card import Origin, Outcome, card_of, header, origin_of
from kleinbild.train.checkpoint import replace_whole
from kleinbild.train.curves import Curves, sinks_of
from kleinbild.train.data.cache import Encoded
from kleinbild.train.exam import Exam, exam_of, once_each
from kleinbild.train.finish import finish, sweep_strengths
from kleinbild.train.likeness import look_at
from kleinbild.train.loop import Run, Verdict
from kleinbild.train.networks import Trained
from kleinbild.train.preview import save_sheet, sheet
from kleinbild.train.recipe import Recipe
from kleinbild.train.results import checkpoint_path, result_path, write_result
from kleinbild.train.studio import Studio, open_studio
from kleinbild.train.sweep import Trial, recommended
from kleinbild.train.validate import Validation, hold_out
from kleinbild.train.watch import Limits, Shown, measure, reason_to_stop

PREVIEWS = "previews"


@dataclass(slots=True, eq=False)
class Judge:
    """Who looks at one run.

    Events go to `tell`, from where they come back by `hear`, with those of others; `events` are all of the run so far,
    of earlier starts, too.
    """

    folder: Path
    recipe: Recipe
    origin: Origin
    model: Model
    studio: Studio
    exam: Exam
    validation: Validation
    tell: Callable[[TrainingEvent], None]
    events: list[TrainingEvent] = field(default_factory=list)
    curves: Curves = field(default_factory=Curves)
    limits: Limits = field(default_factory=Limits)
    stopped: str | None = None
    _plain: list[Image.Image] = field(default_factory=list)

    def hear(self, event: TrainingEvent) -> None:
        """Takes note of what is told of the run."""
        self.events.append(event)
        self.curves.add(event)

    def at_step(self, step: int, trained: Trained) -> Verdict:
        """Looks, where it is time to; `stop` says that the run has learnt all that it will."""
        shown = self._is_due(step, self.recipe.preview_every)
        if not shown and not self._is_due(step, self.recipe.validate_every):
            return Verdict()
        self._forget_from(step)
        metrics = self._preview(step, trained) if shown else {}
        with trained.served() as uses:
            losses = self.validation.losses(trained.transformer, self.model.device, uses)
        check = Validated(step, losses.mean, losses.by_time, metrics)
        is_best = all(check.loss < before.loss for before in self._checks)
        self.tell(check)
        if is_best and not trained.is_full:
            write_result(self.best_path, trained, header(self.origin))
        self.stopped = reason_to_stop(self._checks, self.limits) if self.recipe.early_stop else None
        return Verdict(stop=True, reason=self.stopped) if self.stopped else Verdict()

    def finish(self, trained: Trained) -> Finished | None:
        """What to say at the end. An adapter is measured and registered; of a whole model there is nothing to register."""
        if trained.is_full:
            return None
        adapter, best = result_path(self.folder, trained), None
        if self.stopped and self.best_path.is_file():
            best = min(self._checks, key=lambda check: check.loss).step
            replace_whole(adapter, lambda place: shutil.copyfile(self.best_path, place))
        trials = self._sweep(trained.step, adapter)
        outcome = Outcome(trained.step, tuple(self.events), trials, recommended(trials), self.stopped, best)
        self.curves.close()
        return finish(self.folder, adapter, self.origin, outcome)

    @property
    def best_path(self) -> Path:
        return checkpoint_path(self.folder, 0).with_name("best.safetensors")

    @property
    def _checks(self) -> list[Validated]:
        return [event for event in self.events if isinstance(event, Validated)]

    def _is_due(self, step: int, interval: int) -> bool:
        """The last step is looked at, too; at the first there is nothing to see."""
        return interval > 0 and (step % interval == 0 or step == self.recipe.steps)

    def _forget_from(self, step: int) -> None:
        """What an earlier start has seen of steps that are taken again."""
        self.events = [e for e in self.events if not isinstance(e, Validated | Previewed) or e.step < step]

    def _preview(self, step: int, trained: Trained) -> dict[str, float]:
        """Makes the sheet; gives what its pictures tell. A run does not fail for want of a preview."""
        try:
            return self._shown(step, trained)
        except KleinbildError as error:
            self.tell(Warned(f"no preview: {error.message}", step))
            return {}

    def _shown(self, step: int, trained: Trained) -> dict[str, float]:
        exam, studio = self.exam, self.studio
        asks = (*exam.previews, *exam.neutral)
        with tempfile.TemporaryDirectory(prefix="kleinbild-") as place, trained.served():
            file = None if trained.is_full else stage(Path(place), trained, self.origin)
            made = {
                kind: studio.pictures(kind, asks if kind == studio.served else exam.previews, file)
                for kind in studio.kinds
            }
            if not self._plain:  # at no strength: the model as it was, which yet knows the adapter's words
                self._plain = studio.pictures(studio.served, asks, file, 0.0)
        plain = self._plain
        columns = {f"{studio.models[studio.served].name}, without": plain[: len(exam.previews)]}
        columns |= {studio.models[kind].name: images[: len(exam.previews)] for kind, images in made.items()}
        path = save_sheet(
            sheet(exam.previews, columns, f"{self.origin.name}, step {step}"), self.folder / PREVIEWS, step
        )
        names = ", ".join(model.name for model in studio.models.values())
        self.tell(Previewed(step, names, str(path.relative_to(self.folder))))
        pairs = [
            Shown(ask.prompt, look_at(self.model, adapted), look_at(self.model, before))
            for ask, adapted, before in zip(asks, made[studio.served], plain, strict=True)
        ]
        return dict(measure(exam.training, exam.captions, pairs[: len(exam.previews)], pairs[len(exam.previews) :]))

    def _sweep(self, step: int, adapter: Path) -> tuple[Trial, ...]:
        """An adapter that is trained is not lost because it could not be measured."""
        exam = self.exam
        if not self.recipe.sweep or not exam.swept:
            return ()
        write_card(self.folder, card_of(self.origin, Outcome(step, ()), adapter))
        try:
            return sweep_strengths(self.studio, adapter, exam.swept, exam.taught, exam.neutral)
        except KleinbildError as error:
            self.tell(Warned(f"the best strength was not measured: {error.message}", step))
            return ()


def judge_of(run: Run, model: Model, held_out: Sequence[Encoded] = ()) -> Judge:
    """The judge of a run, listening from now on. `held_out` are samples that are not trained on, if there are any.

    The adapter is written once and its prompts are read, so that what cannot work does not fail at the first preview.
    Raises RequestError for a name that no adapter can have, and PromptError for a prompt that the model does not know.
    """
    recipe, training = run.recipe, once_each(run.samples)
    learned = [one for one in training if not one.example.regularization]
    validating = held_out or hold_out(learned, [one.example.name for one in learned], recipe.seed)[1]
    exam = exam_of(model, training, validating, recipe.preview_prompts, recipe.seed, recipe.trigger_words)
    origin = origin_of(
        model,
        name=check_name(recipe.name or run.folder.name.lower()),
        config=asdict(recipe),
        examples=[one.example for one in training],
        trigger_words=recipe.trigger_words,
        licence=recipe.licence,
        preview_prompt=exam.previews[0].prompt if exam.previews else "",
    )
    judge = Judge(
        folder=run.folder,
        recipe=recipe,
        origin=origin,
        model=model,
        studio=Studio(model, None) if run.trained.is_full else open_studio(model),
        exam=exam,
        validation=Validation(validating, recipe.seed),
        tell=run.tell,
        events=read_events(run.folder),
        curves=Curves(*sinks_of(recipe, run.folder)),
    )
    if not run.trained.is_full:
        with tempfile.TemporaryDirectory(prefix="kleinbild-") as place:
            judge.studio.prime((*exam.previews, *exam.neutral, *exam.swept), stage(Path(place), run.trained, origin))
    _listen(run, judge)
    run.metadata.update(header(origin))
    return judge


def stage(place: Path, trained: Trained, origin: Origin) -> Path:
    """The adapter as it is now in a folder, with a card beside it: what calls it up stands there."""
    file = result_path(place, trained)
    write_result(file, trained, header(origin))
    write_card(place, card_of(origin, Outcome(trained.step, ()), file))
    return file


def read_events(folder: Path) -> list[TrainingEvent]:
    """What earlier starts of a run have told. A line that was cut short by a crash is left out."""
    path = folder / "events.jsonl"
    events = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            events.append(from_line(line)[0])
    return events


def _listen(run: Run, judge: Judge) -> None:
    others = run.tell

    def tell(event: TrainingEvent) -> None:
        others(event)
        judge.hear(event)

    run.tell = judge.tell = tell
