"""`kleinbild models`: the list, `check` and `export`. And `kleinbild pull`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import progress, result, result_json, result_table, say
from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import ModelError, WeightsError

if TYPE_CHECKING:
    from kleinbild.model.catalog import Entry
    from kleinbild.model.weights.report import ComponentReport, Report

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `kleinbild models`.")]

models = typer.Typer(invoke_without_command=True, help="List the known models; check and export weights.")


@models.callback()
def list_models(context: typer.Context, as_json: options.Json = False) -> None:
    from kleinbild.model.catalog import entries

    if context.invoked_subcommand is not None:
        return
    known = [described(entry) for entry in entries()]
    if as_json:
        result_json(known)
        return
    rows = [(m["name"], gigabytes(m["size_bytes"]), m["licence"], whereabouts(m), m["title"]) for m in known]
    result_table(["model", "size", "licence of the weights", "where", "what"], rows, numbers=["size"])
    say("kleinbild pull MODEL fetches one that is not here.")


@models.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A weight file, or a model's folder.")],
    as_json: options.Json = False,
) -> None:
    """Say what weights these are and whether they are whole.

    Reads headers only, so it is quick for files of any size. Exits with 0 only if nothing is missing, extra or misshapen.
    """
    from kleinbild.model.weights.report import check as check_weights

    report = check_weights(path.expanduser())
    if as_json:
        result_json(report.to_json())
    else:
        print_report(report)
    if not report.complete:
        raise WeightsError(
            f"{path} is not a whole model", "see the list above; fetch the file again, or take the other parts"
        )


@models.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `kleinbild models`, or a weight file or folder.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Write a model as a diffusers folder."""
    with progress(f"writing {model}"):
        from kleinbild.model.weights import export_diffusers

        written = export_diffusers(model, folder.expanduser())
    result(str(written))


def pull(
    model: Name,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal, nothing is asked either.")
    ] = False,
) -> None:
    """Fetch a model's weights from the hub.

    Shows size and licence first. Goes on where it was interrupted, and verifies checksums.
    """
    from kleinbild.model.catalog import find, locate, models_folder

    entry = find(model)
    located = locate(entry)
    if located is None and entry.repo:
        say(f"{entry.name}: {gigabytes(entry.size_bytes)} into {models_folder() / entry.name}")
        say(f"from {entry.repo}; licence of the weights: {entry.licence}, {entry.licence_url}")
        if not yes and sys.stdin is not None and sys.stdin.isatty():
            typer.confirm("Fetch it?", abort=True, err=True)
    elif located:
        say(f"{entry.name} is here already")
    result(str(located or fetch(entry)))


def fetch(entry: Entry) -> Path:
    from kleinbild.model.hub import pull as pull_from_hub

    with progress(f"fetching {entry.name}", in_bytes=True) as bar:
        return pull_from_hub(entry, progress=bar.step)


def described(entry: Entry) -> dict[str, Any]:
    """A catalog entry, and where its weights are here (`path` is None: nowhere)."""
    from kleinbild.model.catalog import locate

    located = locate(entry)
    return {
        "name": entry.name,
        "title": entry.title,
        "family": entry.family,
        "variant": entry.variant,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "size_bytes": entry.size_bytes or size_on_disk(located),
        "num_parameters": entry.num_parameters,
        "repo": entry.repo,
        "path": str(located) if located else None,
    }


def whereabouts(described: dict[str, Any]) -> str:
    if described["path"] is None:
        return "not here"
    return "in the package" if described["repo"] is None else described["path"].replace(str(Path.home()), "~", 1)


def size_on_disk(path: Path | None) -> int | None:
    """Bytes of all weight files that the model at `path` consists of; None where it is damaged or not there."""
    from kleinbild.model.weights.sources import find_parts

    if path is None:
        return None
    try:
        parts = find_parts(path)
    except ModelError:
        return None
    files = {file for component in parts.components.values() for file in component.stored.paths}
    return sum(file.stat().st_size for file in files)


def print_report(report: Report) -> None:
    result(f"{report.path}: family {report.family or 'unknown'}, variant {report.variant or 'unknown'}")
    rows: list[tuple[str, ...]] = [
        (
            part.kind,
            part.layout,
            part.dtype,
            f"{part.parameters:,}",
            "complete" if part.complete else "NOT COMPLETE",
            part.place,
        )
        for part in report.components
    ]
    rows += [(absent, "", "", "", "ABSENT", "") for absent in report.absent]
    result_table(["part", "layout", "dtype", "parameters", "state", "where"], rows, numbers=["parameters"])
    for part in report.components:
        for line in faults(part):
            result(f"{part.kind}: {line}")
    if report.problem:
        result(report.problem)


def faults(part: ComponentReport) -> list[str]:
    """Every tensor that is not as it should be."""
    return [
        *(f"missing {name}" for name in part.missing),
        *(f"extra {name}" for name in part.extra),
        *(
            f"misshapen {bad.name}: {dimensions(bad.actual)} instead of {dimensions(bad.expected)}"
            for bad in part.misshapen
        ),
        *(f"unreadable {name}: of a number type that is not supported" for name in part.unreadable),
    ]


def dimensions(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
