"""What is known of hosted services, as facts with a source and a date: `catalog.toml` here, or a newer one in the data folder.

A file is taken whole or not at all: one that is wrong in any place is refused in words, and what was known before stays.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kleinbild.core.deployments import ProviderKind
from kleinbild.core.errors import KleinbildError
from kleinbild.gateway.configured import Day, ModelName, PriceSettings, Section
from kleinbild.gateway.mistakes import first_mistake

FILE = "catalog.toml"
MAX_BYTES = 4_000_000
log = logging.getLogger(__name__)
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.\d{1,4})?")

OF_A_CALL = frozenset({"max_images", "max_references", "max_side", "max_megapixels"})
Confidence = Literal["high", "medium", "low"]


class CatalogError(KleinbildError):
    """A catalog that cannot be used. What was known before is still known."""

    exit_code = 2


class KnownAlreadyError(CatalogError):
    """It is as good as what is known, or older."""


def _version(value: str) -> str:
    if not _VERSION.fullmatch(value):
        raise ValueError("it is not a day such as 2026-11-22, with .1, .2, … for further ones of that day")
    return value


class Known(Section):
    """A fact: who says so, and when that was read; `as_of` is the source's own date, where that is another."""

    source: str = Field(min_length=1)
    read_on: Day
    as_of: str = Field("", pattern=r"^(\d{4}(-\d{2}(-\d{2})?)?)?$")


class KnownPrice(PriceSettings, Known):
    source: str = Field(min_length=1)
    read_on: Day


class KnownModel(Section):
    """A service's model. Of one whose price nobody knows, `price` is left out; `also` are names of the same thing.

    `default_steps` are those that the service takes, where its adapter cannot know.
    """

    kind: ProviderKind
    provider_model: str = Field(min_length=1, max_length=256)
    also: tuple[str, ...] = ()
    price: KnownPrice | None = None
    confidence: Confidence
    note: str = ""
    default_steps: int | None = Field(None, ge=1)
    retired_on: Day = ""


class KnownAlias(Known):
    """A name that callers still use, and the model that they get where that is served."""

    name: ModelName
    model: ModelName
    note: str = Field(min_length=1, max_length=256)


class KnownLimit(Known):
    """Of an account, or of an account's calls of one model; what is in a call is limited by model."""

    kind: ProviderKind
    provider_model: str | None = None
    max_active: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    images_per_minute: int | None = Field(None, ge=1)
    max_images: int | None = Field(None, ge=1)
    max_references: int | None = Field(None, ge=0)
    max_side: int | None = Field(None, ge=64)
    max_megapixels: Annotated[Decimal, Field(gt=0)] | None = None
    note: str = ""

    @model_validator(mode="after")
    def _of_a_call(self) -> KnownLimit:
        if self.provider_model is None and self.model_fields_set & OF_A_CALL:
            raise ValueError(f"{', '.join(sorted(OF_A_CALL))} are a model's; name it in provider_model")
        return self


class Catalog(Section):
    version: Annotated[str, AfterValidator(_version)]
    models: tuple[KnownModel, ...] = ()
    aliases: tuple[KnownAlias, ...] = ()
    limits: tuple[KnownLimit, ...] = ()

    def find(self, kind: ProviderKind, provider_model: str) -> KnownModel | None:
        for each in self.models:
            if each.kind == kind and provider_model in (each.provider_model, *each.also):
                return each
        return None

    def limit(self, kind: ProviderKind, provider_model: str | None = None) -> KnownLimit | None:
        """Of the account, or of one model alone."""
        return next((each for each in self.limits if (each.kind, each.provider_model) == (kind, provider_model)), None)

    def is_newer_than(self, other: Catalog) -> bool:
        return _order(self.version) > _order(other.version)

    @model_validator(mode="after")
    def _each_once(self) -> Catalog:
        seen = set()
        for name in _names(self):
            if name in seen:
                raise ValueError(f"{' '.join(filter(None, name))} is there twice")
            seen.add(name)
        return self


@cache
def shipped() -> Catalog:
    """The one that came with this version."""
    return parsed(files(__package__).joinpath(FILE).read_text("utf-8"), "the catalog of this version")


def parsed(text: str, name: str) -> Catalog:
    """Raises CatalogError that says where `text`, which is called `name`, is wrong."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{name} is not TOML: {error}", "mend that line") from error
    try:
        return Catalog.model_validate(values)
    except ValidationError as error:
        mistake = first_mistake(error.errors(), Catalog, values)
        said = f"{mistake.place} {mistake.message}".strip()
        raise CatalogError(
            f"{name}: {said}", mistake.hint or "`kleinbild catalog check FILE` checks it before it is used"
        ) from error


def read(path: Path) -> Catalog:
    """Raises CatalogError."""
    return parsed(_text(path), str(path))


def current(data: Path) -> Catalog:
    """The newest that is known: that in the data folder if there is one, else the shipped. Raises CatalogError for one in
    the data folder that is wrong; whoever has read one before keeps that, others have `shipped`."""
    file = data / FILE
    if not file.exists():
        return shipped()
    found = read(file)
    return found if found.is_newer_than(shipped()) else shipped()


def usable(data: Path) -> Catalog:
    """`current`, for a server that starts: if what is in the data folder is wrong, the log says so and the shipped one holds."""
    try:
        return current(data)
    except CatalogError as error:
        log.warning("the catalog that came with this version is used: %s; %s", error.message, error.hint)
        return shipped()


def load(source: Path | str, last_good: Path) -> Catalog:
    """Takes over a file, or the text that came from a URL, and keeps it as `last_good`, a server's data / FILE.

    Raises CatalogError for what is wrong, KnownAlreadyError for what is not newer than what is known; then `last_good` stays as it was.
    """
    name = str(source) if isinstance(source, Path) else "the catalog that was fetched"
    text = _text(source) if isinstance(source, Path) else source
    found, known = parsed(text, name), _best(last_good)
    if not found.is_newer_than(known):
        raise KnownAlreadyError(
            f"{name} is of {found.version}, and {known.version} is known already", "raise its version if it says more"
        )
    _replace(last_good, text)
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CatalogError(f"{path} is larger than a catalog", f"at most {MAX_BYTES:,} bytes are read")
        return path.read_text("utf-8")
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror}", "check its name and permissions") from error
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path} is not UTF-8", "save it as UTF-8") from error


def _best(last_good: Path) -> Catalog:
    """What is known, whatever state the file is in."""
    try:
        found = read(last_good) if last_good.exists() else shipped()
    except CatalogError:
        found = shipped()
    return max(found, shipped(), key=lambda catalog: _order(catalog.version))


def _replace(file: Path, text: str) -> None:
    """At once: there is never half a catalog."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, file)  # noqa: PTH105 - the same call, by a name that says that it is atomic
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CatalogError(f"{file} cannot be written: {error.strerror}", "check the data folder") from error


def _order(version: str) -> tuple[str, int]:
    day, _, further = version.partition(".")
    return day, int(further or 0)


def _names(catalog: Catalog) -> Iterator[tuple[str, ...]]:
    for model in catalog.models:
        for name in (model.provider_model, *model.also):
            yield "models", model.kind, name
    for alias in catalog.aliases:
        yield "aliases", alias.name
    for limit in catalog.limits:
        yield "limits", limit.kind, limit.provider_model or ""
