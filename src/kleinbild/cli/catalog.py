"""`kleinbild catalog`: what is known of hosted services' prices, and who says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from kleinbild.cli import options
from kleinbild.cli.terminal import printable, result, result_json, warn
from kleinbild.core.money import written

if TYPE_CHECKING:
    from kleinbild.gateway.catalog import KnownModel, KnownPrice

UNITS = {
    "per_request": "a request",
    "per_image": "a picture",
    "first_megapixel": "the first megapixel",
    "per_megapixel": "a megapixel",
    "per_input_megapixel": "a megapixel given",
    "per_step": "a step",
    "per_1m_input_text_tokens": "1M tokens of text",
    "per_1m_input_image_tokens": "1M tokens of pictures given",
    "per_1m_output_image_tokens": "1M tokens of pictures made",
}
WIDTH, INDENT = 100, "    "
catalog = typer.Typer(help="Prices of hosted services, as far as they are known.", no_args_is_help=True)


Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings of the server (default: kleinbild.toml).")
]


@catalog.command()
def show(
    file: Config = None,
    as_json: options.Json = False,
) -> None:
    """Show each price in US dollars, how far to trust it, when it was so and who says so.

    It is the catalog that came with this version, or a newer catalog.toml in the server's data folder.
    """
    from kleinbild.gateway.catalog import current
    from kleinbild.gateway.refresh import last_of
    from kleinbild.gateway.settings import read_configuration

    data = read_configuration(file).settings.data
    found, last = current(data), last_of(data)
    if last is not None and last.error is not None:
        warn(f"a newer catalog was looked for at {last.source}, and none was taken: {last.error}")
    if as_json:
        result_json(found.model_dump(mode="json", exclude_defaults=True))
        return
    for line in (line for each in found.models for line in _lines(each)):
        result(line)


@catalog.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A catalog, in TOML.")],
) -> None:
    """Check a catalog before a server takes it: whether all of it is right, and newer than what came with this version."""
    from kleinbild.gateway.catalog import read, shipped

    found = read(file)
    newer = "newer" if found.is_newer_than(shipped()) else "not newer"
    result(f"{file} is a catalog of {found.version}, {newer} than {shipped().version}: {len(found.models)} models")


@catalog.command()
def refresh(config: Config = None) -> None:
    """Look now where [catalog] in the settings says. A server that runs on the same data folder takes it within a minute."""
    import asyncio

    from kleinbild.gateway.catalog import CatalogError, current
    from kleinbild.gateway.lifespan import fetching
    from kleinbild.gateway.refresh import Refreshed, refreshed
    from kleinbild.gateway.settings import ConfigurationError, read_configuration
    from kleinbild.safety.fetch import Fetcher

    settings = read_configuration(config).settings
    if settings.catalog.source is None:
        raise ConfigurationError("catalog.url is not set", "set it, or catalog.file, in the settings")

    async def looked() -> Refreshed:
        fetcher = Fetcher(*fetching(settings.limits))
        try:
            return await refreshed(settings, fetcher)
        finally:
            await fetcher.aclose()

    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = asyncio.run(looked())
    if found.error is not None:
        raise CatalogError(f"none was taken: {found.error}", "what was known before still holds")
    result(f"the catalog {current(settings.data).version} is known")


def _lines(model: KnownModel) -> Iterator[str]:
    """The model and, below it, its price, what to think of it and what else is to be known: none wider than `WIDTH`."""
    yield printable(f"{model.kind} {model.provider_model}")
    price = model.price
    said = "" if price is None else f", {price.as_of or price.read_on}, {price.source}"
    retired = f"retired on {model.retired_on}" if model.retired_on else ""
    for text in filter(None, (_price(price), f"confidence {model.confidence}{said}", retired, model.note)):
        yield from wrap(printable(text), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)


def _price(price: KnownPrice | None) -> str:
    if price is None:
        return "unknown price"
    tokens = f" ({_listed(price.tokens_by_quality)} tokens)" if price.tokens_by_quality else ""
    return " + ".join(_parts(price)) + tokens


def _parts(price: KnownPrice) -> Iterator[str]:
    for name, unit in UNITS.items():
        if (amount := getattr(price, name)) is not None:
            yield f"{written(amount)} for {_further(name, unit, price)}"
    if price.by_quality:
        yield f"{_listed(price.by_quality)} for a picture"


def _further(name: str, unit: str, price: KnownPrice) -> str:
    return "each further" if name == "per_megapixel" and price.first_megapixel is not None else unit


def _listed(by_quality: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{name} {written(each)}" for name, each in by_quality.items())
