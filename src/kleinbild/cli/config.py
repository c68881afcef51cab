"""`kleinbild config show`: the server's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import result_json, result_table

config = typer.Typer(help="The server's settings.", no_args_is_help=True)


@config.command()
def show(
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings (default: kleinbild.toml).")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the settings in force, and where each comes from: default, a file, the environment."""
    from kleinbild.gateway.settings import read_configuration

    configuration = read_configuration(file)
    values = configuration.settings.model_dump(mode="json")
    if as_json:
        result_json({"settings": values, "sources": configuration.sources})
        return
    rows = [
        (f"{section}.{name}", _text(value), configuration.sources.get(f"{section}.{name}", "default"), described)
        for section, entries in values.items()
        for name, value in entries.items()
        for described in [configuration.describe(section, name)]
    ]
    result_table(("setting", "value", "from", "what it is"), rows)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
