"""`kleinbild serve`: the server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleinbild.cli.terminal import say
from kleinbild.core.errors import RequestError

if TYPE_CHECKING:
    from kleinbild.gateway.settings import Settings

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings (default: kleinbild.toml).")]


def serve(
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on; 0 takes a free one.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the database and the pictures.")] = None,
    config: Config = None,
) -> None:
    """Serve OpenAI's image API, jobs and files from this machine.

    Nothing needs to be set: the embedded model, on loopback, without keys. Any other address needs keys
    (`kleinbild keys create`). `kleinbild config show` prints what can be set.
    """
    from kleinbild.gateway.settings import read_configuration

    given: dict[str, Any] = {"host": host, "port": port, "data": data}
    flags = {"server": {name: value for name, value in given.items() if value is not None}}
    configuration = read_configuration(config, flags)
    settings = configuration.settings
    check_data(settings)
    _check_models(settings.engine.models)

    from kleinbild.gateway.deployments import require_secrets
    from kleinbild.gateway.serve import Server

    require_secrets(settings)
    models = ", ".join(dict.fromkeys(each.model for each in settings.all_deployments))

    def announce(url: str) -> None:
        say(f"Kleinbild serves {models} at {url}/v1")
        say(f"  docs  {url}/docs")
        say(f"  data  {settings.data}")

    Server(settings, announce, lambda: read_configuration(config, flags)).run()


def check_data(settings: Settings) -> None:
    """Raises what opening the data would, before anything starts, and RequestError for an address that others can
    reach, on a server without keys."""
    import asyncio

    from kleinbild.gateway.flow.authenticate import has_keys
    from kleinbild.gateway.lifespan import own
    from kleinbild.storage.blobs import store_at

    with own(settings.data):
        if settings.storage.blobs_url:
            store_at(settings.storage.blobs_url)
        there_are_keys = asyncio.run(has_keys(settings))
    if not settings.loopback and not there_are_keys:
        raise RequestError(
            f"{settings.server.host} can be reached from other machines, and there are no keys",
            "make one with `kleinbild keys create`, or listen on 127.0.0.1",
        )


def _check_models(models: tuple[str, ...]) -> None:
    """Raises what loading would, of models that are unknown or whose weights are not here, before anything starts."""
    from kleinbild.model.weights.sources import locate_parts

    for model in models:
        locate_parts(model)
