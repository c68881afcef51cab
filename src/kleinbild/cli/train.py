"""`kleinbild train RECIPE --data DIR`: a training run, in a process of its own. And `train recipes`, `train check`.

The worker tells in lines what happens (`core.training`); here they become a progress bar and words. Ctrl-C reaches the
worker too, which keeps its state and ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kleinbild.cli import options
from kleinbild.cli.checking import check_command
from kleinbild.cli.terminal import Steps, progress, result, result_table, say, warn
from kleinbild.core.errors import OutputError, RequestError, WorkerError, error_of
from kleinbild.core.home import home
from kleinbild.core.training import (
    Checkpointed,
    Failed,
    Finished,
    Paused,
    Prepared,
    Previewed,
    Progressed,
    Started,
    TrainingEvent,
    Validated,
    Warned,
    from_line,
    to_line,
)

RUN = "run"
PAUSED = 130
MOST_STEPS = 10_000_000


class _RunFirst(TyperGroup):
    """A first word that is no command is a recipe: `train style` is `train run style`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ("-h", "--help"))
        return super().parse_args(ctx, args if named or not args else [RUN, *args])


train = typer.Typer(cls=_RunFirst, no_args_is_help=True, help="Train adapters on your pictures; check them first.")
train.command("check")(check_command)


@train.callback()
def group() -> None:
    """Train adapters on your pictures; check them first.

    A first word that is no command is a recipe: `kleinbild train style --data DIR`.
    """


@train.command()
def recipes() -> None:
    """List the recipes: what each is for, and what it sets."""
    from kleinbild.train import recipe

    rows = []
    for name in recipe.names():
        values = recipe.read(name)
        about = values.pop("about", "")
        rows.append((name, about, " ".join(f"{key}={value}" for key, value in values.items())))
    result_table(["recipe", "for", "settings"], rows)
    say("kleinbild train RECIPE --data DIR trains; --set key=value changes any setting.")


def _length(name: str, about: str) -> Any:
    """An option that says how long a stage takes. (typer declares no type of its options.)"""

    def read(text: str) -> int:
        return options.whole_number(name, text, 1, MOST_STEPS)

    return typer.Option(name, metavar="N", parser=read, show_default=False, help=about)


@train.command("nano")
def nano_itself(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", show_default=False, help="Folder of the run. Default: runs/nano.")
    ] = Path("runs/nano"),
    minutes: Annotated[int, _length("--minutes", "Of the autoencoder. Default: 40.")] = 40,
    sharpen_steps: Annotated[int, _length("--sharpen-steps", "Of the autoencoder, after that. Default: 2000.")] = 2000,
    steps: Annotated[int, _length("--steps", "Of the base model. Default: 20000.")] = 20_000,
    updates: Annotated[int, _length("--updates", "Of the student. Default: 3500.")] = 3500,
    finish_steps: Annotated[int, _length("--finish-steps", "Of the autoencoder, at last. Default: 2000.")] = 2000,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", parser=options.read_seed, show_default=False, help="Default: 0.")
    ] = 0,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps. Default: the best here.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start", metavar="DIR", help="Weights of nano to go on from, without --minutes: a run's DIR/weights."
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks: faster after the first minutes.")
    ] = False,
) -> None:
    """Train nano itself, from nothing or further, on the world that it is drawn from.

    The same command goes on after a stop. The model is in DIR/weights at the end; `kleinbild nano eval -m
    DIR/weights/nano.safetensors` measures it.
    """
    from kleinbild.engine.runtime import choose_device
    from kleinbild.train.nano.compute import Compute
    from kleinbild.train.nano.pool import Data
    from kleinbild.train.nano.whole import Plan, train_all

    chosen = choose_device(device)
    plan = Plan(minutes, sharpen_steps, steps, updates, finish_steps, Data(seed), start)
    for path in train_all(out, plan, Compute.on(chosen), compiled=compiled):
        result(str(path))


@train.command(RUN)
def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A name from `kleinbild train recipes`, or a TOML file.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", show_default=False, help="Folder, zip, tar or table of your pictures."),
    ] = None,
    regularization: options.Regularization = None,
    validation: options.Validation = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The adapter's name. Default: RECIPE-DIR."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", show_default=False, help="A base model. Default: the recipe's."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Change a setting; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            show_default=False,
            help="The run's folder. Default: training/runs in Kleinbild's own.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train an adapter on your pictures.

    Prints the adapter's file. Ctrl-C pauses: everything is kept, and --resume goes on.
    """
    from kleinbild.train.recipe import FILE, read, with_settings

    values = with_settings(read(recipe), settings or ())
    values |= options.recipe_paths(data=data, regularization_data=regularization, validation_data=validation)
    values |= {key: value for key, value in {"name": name, "model": model}.items() if value is not None}
    if not values.get("data"):
        raise RequestError("no pictures were given", "add --data DIR, a folder of pictures with captions beside them")
    values.setdefault("name", _default_name(recipe, Path(values["data"])))
    folder = (out or home() / "training" / "runs" / values["name"]).expanduser()
    begun = (folder / FILE).is_file()
    if begun and not resume:
        raise RequestError(
            f"there is a run in {folder} already", "--resume goes on with it; --out chooses another folder"
        )
    if resume and not begun:
        raise RequestError(
            f"there is no run in {folder} to go on with", "leave --resume out, or name its folder by --out"
        )
    _write_recipe(values, folder)
    say(f"the run's folder is {folder}")
    finished = follow(_events(folder), folder, as_json=as_json)
    if finished is None:
        raise typer.Exit(PAUSED)
    if not as_json:
        result(str(folder / finished.path))


def _default_name(recipe: str, data: Path) -> str:
    from kleinbild.model.adapters.registry import NAME

    name = f"{Path(recipe).stem}-{data.stem}".lower().replace(" ", "-")
    return name if NAME.fullmatch(name) else Path(recipe).stem.lower()


def _write_recipe(values: dict[str, Any], folder: Path) -> None:
    """The recipe as it is resolved, so that what cannot be trained is told before a process starts."""
    from kleinbild.train.data.given import resolved
    from kleinbild.train.defaults import trainee_of
    from kleinbild.train.recipe import FILE, MODEL, write

    recipe, *_ = resolved(values, trainee_of(str(values.get("model", MODEL))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}", "choose another --out") from error
    write(recipe, folder / FILE)


def _events(folder: Path) -> Iterator[TrainingEvent]:
    """What the worker says, to its end. Raises WorkerError if it ends without a last word."""
    command = [sys.executable, "-m", "kleinbild.train.worker", str(folder)]
    last: TrainingEvent | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        assert process.stdout is not None
        while line := _line(process):
            try:
                last, _ = from_line(line)
            except ValueError:
                say(line.rstrip())  # something else that a library printed
                continue
            yield last
    if not isinstance(last, Finished | Failed | Paused):
        raise WorkerError(
            f"the training process ended with {process.returncode}",
            "start it again with --resume; see what it said above",
        )


def _line(process: subprocess.Popen[str]) -> str:
    """The next line. Ctrl-C is for the worker, which has it too and still has something to say."""
    assert process.stdout is not None
    while True:
        try:
            return process.stdout.readline()
        except KeyboardInterrupt:
            say("pausing after this step…")


def follow(events: Iterator[TrainingEvent], folder: Path, *, as_json: bool = False) -> Finished | None:
    """Shows a run's events until it is finished (then what it gave) or paused. Raises what it failed with."""
    import time

    finished = None
    with progress("reading the model and the pictures") as bar:
        for event in events:
            if as_json:
                result(to_line(event, time.time()))
            if isinstance(event, Failed):
                raise error_of(event.kind, event.message, event.hint)
            if isinstance(event, Finished):
                finished = event
            _show(event, bar, folder)
    return finished


def _show(event: TrainingEvent, bar: Steps, folder: Path) -> None:
    if isinstance(event, Prepared):
        bar.stage(event.what)
        bar.step(event.done, event.total)
    elif isinstance(event, Started):
        bar.stage(f"training {event.model} on {event.num_examples} examples")
        bar.step(event.step, event.num_steps)
    elif isinstance(event, Progressed):
        bar.stage(f"loss {event.loss:.4f}, {_minutes(event.seconds_left)} left")
        bar.step(event.step, event.num_steps)
    elif isinstance(event, Validated):
        say(f"step {event.step}: validation loss {event.loss:.4f}")
    elif isinstance(event, Previewed | Checkpointed):
        say(f"step {event.step}: {folder / event.path}")
    elif isinstance(event, Warned):
        warn(event.message) if event.step else say(f"note: {event.message}")
    elif isinstance(event, Paused):
        say(f"paused after step {event.step}; the same command with --resume goes on")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
