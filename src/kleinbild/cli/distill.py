"""`kleinbild distill`: a base model to one of four steps, or to an adapter that makes it one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import result, result_json, say, warn
from kleinbild.core.adapters import read_use
from kleinbild.core.errors import ModelError, RequestError
from kleinbild.core.training import Paused, Progressed, Started, TrainingEvent, Validated, Warned

if TYPE_CHECKING:
    from kleinbild.train.distill.recipe import Product

MAX_UPDATES = 1_000_000


def read_updates(text: str) -> int:
    return options.whole_number("--steps", text, 1, MAX_UPDATES)


def read_product(text: str) -> Product:
    products: dict[str, Product] = {"model": "model", "adapter": "adapter"}
    if text in products:
        return products[text]
    raise RequestError(f"--as {text!r}: not something that can be made", "use model or adapter")


def distill(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A base model: a name, or a weight file or folder.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder of the run and its result. Its name becomes the model's or the adapter's.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Pictures with captions, as for `kleinbild train`.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Instead of --data: prompts, one a line; no pictures are needed."
        ),
    ] = None,
    adapter: Annotated[
        list[Any] | None,
        typer.Option(
            "--adapter", metavar="NAME[:SCALE]", parser=read_use, help="Customises the base. May be repeated."
        ),
    ] = None,
    product: Annotated[
        Any,
        typer.Option(
            "--as",
            metavar="WHAT",
            parser=read_product,
            show_default=False,
            help="model: all weights anew. adapter: a LoRA that makes the base a model of four steps. Default: model.",
        ),
    ] = "model",
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", parser=read_updates, help="Updates. Default: 3000.")
    ] = None,
    polish: Annotated[
        bool, typer.Option("--polish", help="A second stage that sharpens: slower, and watched more closely.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any number of the recipe. May be repeated."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps. Default: the best here.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a base model quick: four steps, no guidance.

    The base teaches; what comes out makes in 4 passes what it makes in 100. Stopped by Ctrl-C or SIGTERM it keeps its
    state, and the same line goes on. Exits with 3 if the result is out of the bounds that report.json names.
    """
    from kleinbild.engine.runtime import choose_device
    from kleinbild.train.distill.job import Order
    from kleinbild.train.distill.job import distill as run

    asked = [*([f"num_updates={steps}"] if steps else []), *(["polish=true"] if polish else []), *(settings or [])]
    order = Order(
        model=model,
        folder=output,
        adapters=tuple(adapter or ()),
        data=data,
        prompts=prompts,
        product=product,
        settings=tuple(asked),
        device=str(choose_device(device)),
    )
    with stop_signals() as stopped:
        made = run(order, tell, stopped)
    if made is None:
        say("the same line goes on from here")
        return
    files, report = made
    if as_json:
        from dataclasses import asdict

        result_json({"path": str(files.path), "adapter": files.adapter, "sha256": files.sha256, **asdict(report)})
    else:
        result(str(files.path))
    if report.tripped:
        raise ModelError(
            f"{files.path} is out of bounds: {'; '.join(report.tripped)}",
            "train longer (--steps), or look at the sheets in previews/ whether it will do",
        )


def tell(event: TrainingEvent) -> None:
    """What happens, in a line each for the person at the terminal."""
    match event:
        case Started():
            say(
                f"{event.model}: {event.num_examples} samples, {event.num_steps} updates from {event.step}, seed {event.seed}"
            )
        case Progressed():
            say(f"{event.step}/{event.num_steps}  loss {event.loss:.4f}  {event.seconds_left / 60:.1f} min left")
        case Validated():
            values = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in event.metrics.items())
            say(f"after {event.step}: {values}")
        case Warned():
            warn(event.message)
        case Paused():
            say(f"stopped after {event.step} updates; all of it is kept")


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether one of SIGTERM and SIGINT came; the second ends the program as ever."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
