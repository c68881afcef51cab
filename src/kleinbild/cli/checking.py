"""`kleinbild train check`: what would spoil a training run, and what it needs, told before it begins."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.doctor import duration
from kleinbild.cli.plan import numbers_of
from kleinbild.cli.terminal import progress, result, result_json, result_table
from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import MissingWeightsError, RequestError
from kleinbild.core.home import home

if TYPE_CHECKING:
    from kleinbild.train.data.check import Report, Subject

MOST_BUCKETS = 8
FAILED = 2


def read_price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price <= 1e6:
        raise RequestError(
            f"--price {text!r} is no price", "give what the machine costs an hour, for example --price 2.5"
        )
    return price


def check_command(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Folder, zip, tar or table of pictures and captions.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="RECIPE", show_default=False, help="One of ours by name, or a TOML file."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", show_default=False, help="What is trained. Default: the recipe's."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False, help="Change a setting of the recipe; repeatable."
        ),
    ] = None,
    regularization: options.Regularization = None,
    validation: options.Validation = None,
    smoke: Annotated[
        bool, typer.Option("--smoke/--no-smoke", help="Train 20 steps to measure the time; off by default.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(
            "--price",
            metavar="PRICE",
            parser=read_price,
            show_default=False,
            help="What the machine costs an hour, for the cost of the run. Needs --smoke.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check pictures and captions before training on them.

    Nothing is changed. Exits with 2 if there is an error that would keep a run from starting.
    """
    from kleinbild.train.data.check import check
    from kleinbild.train.data.smoke import smoke_run
    from kleinbild.train.recipe import read, with_settings

    if price is not None and not smoke:
        raise RequestError("--price was given, but the time is not measured", "add --smoke")
    changes = [*(settings or ()), *([f"model={model}"] if model else ())]
    values = with_settings(read(recipe) if recipe else {}, changes)
    values |= options.recipe_paths(regularization_data=regularization, validation_data=validation)
    subject = subject_of(str(values.get("model", "nano-base")))
    with progress("looking at pictures") as bar:
        stages: list[str] = []

        def told(stage: str, done: int, total: int) -> None:
            if stages[-1:] != [stage]:
                stages.append(stage)
                bar.stage(stage)
            bar.step(done, total)

        report = check(
            data,
            values,
            subject,
            smoke=smoke_run if smoke else None,
            price_an_hour=price,
            remembered=home() / "training" / "encoded" / "pictures.json",
            progress=told,
        )
    if as_json:
        result_json(as_values(report))
    else:
        show(report, subject)
    if report.num_errors:
        raise typer.Exit(FAILED)


def subject_of(name_or_path: str) -> Subject:
    """The model, as far as it is known; its weights need not be here."""
    from kleinbild.model.weights.sources import locate_parts
    from kleinbild.model.weights.specs import family
    from kleinbild.train.data.check import Subject
    from kleinbild.train.defaults import Trainee

    name, settings, spec = numbers_of(name_or_path)
    count_tokens = None
    try:
        _, parts = locate_parts(name_or_path)
    except MissingWeightsError:
        parts = None
    if parts is not None and parts.tokenizer is not None:
        from kleinbild.model.tokenizer import PromptTokenizer

        count_tokens = PromptTokenizer(parts.tokenizer, spec.text_encoder.max_tokens).count
    return Subject(name, spec, Trainee(family(spec.transformer), settings), count_tokens)


def as_values(report: Report) -> dict[str, Any]:
    """All of the report in plain values."""
    values = asdict(report)
    values["memory"] = None if report.memory is None else {**asdict(report.memory), "total": report.memory.total}
    values["choices"] = {
        name: {"plain": plain, "gradient_checkpointing": checkpointed}
        for name, (plain, checkpointed) in report.choices.items()
    }
    return values


def show(report: Report, subject: Subject) -> None:
    result(f"layout    {report.layout}")
    for note in report.notes:
        result(f"          {note}")
    if subject.count_tokens is None:
        result(f"          the lengths of captions were not checked: {subject.name} is not on this machine")
    _show_sizes(report)
    _show_needs(report)
    _show_time(report)
    result("")
    if not report.findings:
        result("nothing found that would spoil a run")
    for finding in report.findings:
        result(f"{finding.severity:<8}  {finding.what}")
        result(f"          {finding.advice}")


def _show_sizes(report: Report) -> None:
    if not report.buckets:
        return
    most = list(report.buckets.items())[:MOST_BUCKETS]
    more = len(report.buckets) - len(most)
    sizes = ", ".join(f"{size} ({number})" for size, number in most) + (f" and {more} more" if more else "")
    result(f"sizes     {sizes}")
    if report.tokens is not None:
        tokens = report.tokens
        result(
            f"tokens    {tokens.a_step:,.0f} a step; {tokens.smallest:,} to {tokens.largest:,} an example, text included"
        )


def _show_needs(report: Report) -> None:
    if report.memory is None:
        return
    recipe, need = report.recipe, report.memory
    parts = {
        "weights": need.weights,
        "adapter": need.parameters,
        "gradients": need.gradients,
        "optimizer": need.moments,
        "activations": need.activations,
    }
    told = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
    result(f"memory    about {gigabytes(need.total)} ({told})")
    result(f"disk      {gigabytes(report.disk_bytes)} for latents and contexts")
    result("")
    columns = ["precision of the base", "memory", "with gradient checkpointing", ""]
    rows = [
        (name, gigabytes(plain), gigabytes(checkpointed), "the recipe's" if name == recipe.precision else "")
        for name, (plain, checkpointed) in report.choices.items()
    ]
    result_table(columns, rows, numbers=columns[1:3])


def _show_time(report: Report) -> None:
    if report.smoke is None or report.seconds is None:
        return
    cost = "" if report.cost is None else f", {report.cost:.2f} at the price given"
    result("")
    result(
        f"time      {duration(report.seconds)} for {report.recipe.steps} steps{cost} "
        f"({report.smoke.seconds_a_step:.3g} s a step, measured; encoding and previews come on top)"
    )
