"""`kleinbild config show`: the server's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import result_json, result_table

if TYPE_CHECKING:
    from kleinbild.gateway.settings import Configuration

PASSWORD = re.compile(r"(://[^:/@]*):.*@")
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
    values = _without_passwords(configuration.settings.model_dump(mode="json"))
    if as_json:
        result_json({"settings": values, "sources": configuration.sources})
        return
    result_table(("setting", "value", "from", "what it is"), _rows(values, configuration))


def _rows(values: dict[str, Any], configuration: Configuration) -> Iterator[tuple[str, ...]]:
    """All settings, and of the entries of lists what was written."""
    from kleinbild.gateway.configured import ARRAYS
    from kleinbild.gateway.mistakes import label

    for section, entries in values.items():
        if section not in ARRAYS:
            for name, value in entries.items():
                setting = f"{section}.{name}"
                source = configuration.sources.get(setting, "default")
                yield setting, _text(value), source, configuration.describe(section, name)
    for array in ARRAYS:
        for index, entry in enumerate(getattr(configuration.settings, array)):
            which = f"{array}.{label(entry, index)}"
            for name in type(entry).model_fields:
                if name in entry.model_fields_set and name != "name":
                    value = entry.model_dump(mode="json", include={name}, exclude_unset=True)[name]
                    text = _text(_without_passwords(value))
                    yield f"{which}.{name}", text, configuration.sources[which], configuration.describe(array, name)


def _without_passwords(value: Any) -> Any:
    """The same, with `***` for the password of each URL in it."""
    if isinstance(value, dict):
        return {name: _without_passwords(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_passwords(each) for each in value]
    return PASSWORD.sub(r"\1:***@", value) if isinstance(value, str) else value


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
