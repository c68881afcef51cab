"""What can be set, in one place: a TOML file, the environment, flags; the later overrides the earlier.

    kleinbild.toml          [server]          port = 9000
    environment             KLEINBILD_SERVER__PORT=9000
    flags                   kleinbild serve --port 9000

Lists ([[deployments]] and the like, `gateway.configured`) stand in the file alone. Unknown settings are errors that list
the known ones. `kleinbild config show` prints what is in force and where from. No error shows what may be a secret.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kleinbild.core.callers import Limits
from kleinbild.core.errors import KleinbildError
from kleinbild.core.home import home
from kleinbild.gateway.coherent import MisfitError, all_deployments, all_providers, check
from kleinbild.gateway.configured import (
    ARRAYS,
    DeploymentSettings,
    Lists,
    ProviderSettings,
    Routing,
    Section,
)
from kleinbild.gateway.mistakes import Mistake, first_mistake, guess, label

PREFIX = "KLEINBILD_"
DEFAULT_PORT = 8190
OTHERS_VARIABLES = frozenset({"KLEINBILD_HOME", "KLEINBILD_DEBUG", "KLEINBILD_BASE_URL", "KLEINBILD_API_KEY"})
"""Variables with our prefix that are not the server's."""


class ConfigurationError(KleinbildError):
    """A setting that is unknown or wrong."""

    exit_code = 2


class Server(Section):
    host: str = Field("127.0.0.1", description="address to listen on; any but loopback needs keys")
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="0 takes a free one")
    data: Path | None = Field(None, description="folder of the database and the pictures; default: ~/.kleinbild/server")
    public_url: str | None = Field(
        None, description="how clients and services reach this server, for URLs of pictures and webhooks"
    )
    drain_seconds: float = Field(30.0, ge=0, description="what running requests get to end when the server stops")


class EngineSettings(Section):
    models: tuple[str, ...] = Field(
        ("nano",), description="models to serve; the first is the default; none: a gateway without an engine"
    )
    device: str | None = Field(None, description="cpu, cuda or mps; default: the best there is")
    dtype: str | None = Field(None, description="as `kleinbild generate --dtype`")
    offload: Literal["none", "components", "blocks"] | None = Field(None, description="as `kleinbild generate`")
    compile: bool = Field(False, description="compile what gets faster by it")


class Storage(Section):
    database_url: str | None = Field(
        None, description="postgresql://user:password@host/database; default: SQLite in the data folder"
    )
    blobs_url: str | None = Field(
        None,
        description="s3://bucket/prefix, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION in the environment, "
        "for others than Amazon AWS_ENDPOINT_URL (and AWS_ALLOW_HTTP=true for http://); "
        "default: a folder in the data folder",
    )
    image_days: float = Field(30.0, gt=0, description="how long pictures and their jobs are kept")
    upload_hours: float = Field(24.0, gt=0, description="how long pictures sent with a request are kept")
    url_minutes: float = Field(60.0, gt=0, description="how long a signed URL of a picture is good")


class LimitSettings(Section):
    max_queue: int = Field(256, ge=1, description="jobs queued or running at once; more get 429")
    max_body_mb: float = Field(512.0, gt=0, description="of one request; JSON is limited to a tenth of that")
    max_image_mb: float = Field(50.0, gt=0, description="of one picture that is sent or fetched")
    max_image_megapixels: float = Field(25.0, gt=0, description="checked before a picture is decoded")
    fetch_seconds: float = Field(20.0, gt=0, description="for a remote picture, in all")
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="private networks that URLs of pictures and webhooks may lead to; default: none"
    )
    allowed_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (80, 443), description="ports that URLs of pictures and webhooks may lead to"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="of a caller whose key has no such limit")
    images_per_minute: int | None = Field(None, ge=1, description="of a caller whose key has no such limit")
    megapixels_per_minute: int | None = Field(None, ge=1, description="of a caller whose key has no such limit")
    concurrent_jobs: int | None = Field(None, ge=1, description="of a caller whose key has no such limit")
    shared_url: str | None = Field(
        None,
        description="valkey://:password@host:6379/0, or redis://…, for several servers that count these limits by the "
        "minute, and those of providers, together; while it does not answer, nothing is let through; "
        "default: each server counts for itself",
    )

    @property
    def callers(self) -> Limits:
        """Of those whose keys have none."""
        return Limits(
            self.requests_per_minute, self.images_per_minute, self.concurrent_jobs, self.megapixels_per_minute
        )


def _plain_https(value: str) -> str:
    """Says nothing of the value: there may be a password in it."""
    parts = urlsplit(value)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
        raise ValueError("it is not an address that begins with https:// and a host, without a user and a password")
    return value


class FineTuningSettings(Section):
    runs: int = Field(1, ge=0, description="fine-tuning jobs that train at once on this machine; 0: none is taken on")
    max_jobs: int = Field(16, ge=1, description="of one project, queued, running or paused")
    max_file_mb: float = Field(512.0, gt=0, description="of a training file as it is uploaded")
    max_unpacked_mb: float = Field(4096.0, gt=0, description="of a training file's contents")


class CatalogSettings(Section):
    url: Annotated[str, AfterValidator(_plain_https)] | None = Field(
        None, description="where newer catalogs of prices and limits are fetched from, by https; default: nowhere"
    )
    file: Path | None = Field(None, description="instead of a URL: a file that somebody else keeps up to date")
    refresh_hours: float = Field(24.0, ge=0.1, description="between looks at either")

    @model_validator(mode="after")
    def _one_source(self) -> CatalogSettings:
        if self.url is not None and self.file is not None:
            raise ValueError("url and file are two places for one catalog; set one of them")
        return self

    @property
    def source(self) -> str | None:
        return self.url or (None if self.file is None else str(self.file))


class Settings(Lists):
    server: Server = Server()  # type: ignore[call-arg]
    engine: EngineSettings = EngineSettings()  # type: ignore[call-arg]
    storage: Storage = Storage()  # type: ignore[call-arg]
    limits: LimitSettings = LimitSettings()  # type: ignore[call-arg]
    routing: Routing = Routing()  # type: ignore[call-arg]
    catalog: CatalogSettings = CatalogSettings()  # type: ignore[call-arg]
    fine_tuning: FineTuningSettings = FineTuningSettings()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        check(self, self.engine.models, self.server.public_url)
        return self

    @property
    def all_providers(self) -> tuple[ProviderSettings, ...]:
        """The engine's, too."""
        return all_providers(self)

    @property
    def all_deployments(self) -> tuple[DeploymentSettings, ...]:
        """The engine's, too. The first serves whoever names no model."""
        return all_deployments(self, self.engine.models)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        host = self.server.host
        if host == "localhost":
            return True
        try:
            return ip_address(host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def data(self) -> Path:
        return self.server.data or home() / "server"

    @property
    def database_file(self) -> Path | None:
        """None: the database is at `storage.database_url`."""
        return None if self.storage.database_url else self.data / "kleinbild.sqlite"

    @property
    def database_url(self) -> str:
        from kleinbild.storage.database import sqlite_url

        file = self.database_file
        return sqlite_url(file) if file else str(self.storage.database_url)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in Settings.model_fields.items()
    if name not in ARRAYS
}
KNOWN = f"sections are {', '.join(SECTIONS)}; lists are {', '.join(ARRAYS)}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings in force; `sources` says for each that is not the default (`section.name`, or `list.entry`) where it came
    from."""

    settings: Settings
    sources: dict[str, str]

    def describe(self, section: str, name: str) -> str:
        """What the setting is, in words."""
        return (SECTIONS | ARRAYS)[section].model_fields[name].description or ""


Values = dict[str, dict[str, Any]]
Entries = dict[str, list[dict[str, Any]]]


def read_configuration(file: Path | None = None, flags: Values | None = None) -> Configuration:
    """Raises ConfigurationError that names the setting, where it stands, and what is known or allowed."""
    path = file or default_file()
    from_path, entries = from_file(path, required=file is not None)
    layers = [(str(path), from_path), ("environment", from_environment()), ("flag", flags or {})]
    merged: dict[str, Any] = dict(entries)
    sources = {
        f"{array}.{label(each, index)}": str(path) for array in entries for index, each in enumerate(entries[array])
    }
    for source, values in layers:
        for section, settings in values.items():
            for name, value in settings.items():
                _require_known(section, name, source)
                merged.setdefault(section, {})[name] = value
                sources[f"{section}.{name}"] = source
    try:
        return Configuration(Settings.model_validate(merged), sources)
    except ValidationError as error:
        raise _in_words(error, merged, sources, path) from None  # its text holds the values


def from_file(path: Path, *, required: bool) -> tuple[Values, Entries]:
    """What stands in the file as sections, and as lists."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigurationError(f"there is no file {path}", "check --config") from None
        return {}, {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8", "save it as UTF-8") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", "mend that line") from error
    for name, content in values.items():
        _require_form(name, content, path)
    entries = {name: content for name, content in values.items() if name in ARRAYS}
    return {name: content for name, content in values.items() if name not in ARRAYS}, entries


def _require_form(name: str, content: object, path: Path) -> None:
    """A section is a table, a list an array of tables."""
    is_list = isinstance(content, list) and all(isinstance(entry, dict) for entry in content)
    if name in ARRAYS and not is_list:
        raise ConfigurationError(f"{path}: {name} is a list", f"write [[{name}]] above each of them")
    if name in SECTIONS and is_list:
        raise ConfigurationError(f"{path}: {name} is a section, there is one of it", f"write [{name}]")
    if name not in ARRAYS and not isinstance(content, dict):
        if is_list:
            raise ConfigurationError(_unknown(name, "list", str(path)), guess(name, [*ARRAYS]) + KNOWN)
        raise ConfigurationError(f"{path}: {name!r} stands outside a section", KNOWN)


def from_environment() -> Values:
    """KLEINBILD_SECTION__NAME; lists are separated by commas."""
    values: Values = {}
    for variable, value in os.environ.items():
        if not variable.startswith(PREFIX) or "__" not in variable or variable in OTHERS_VARIABLES:
            continue
        section, name = variable.removeprefix(PREFIX).lower().split("__", 1)
        if section in ARRAYS:
            raise ConfigurationError(
                f"{variable}: {section} cannot be set in the environment", f"write [[{section}]] in the file"
            )
        values.setdefault(section, {})[name] = _parse(section, name, value)
    return values


def _parse(section: str, name: str, text: str) -> Any:
    field = SECTIONS[section].model_fields.get(name) if section in SECTIONS else None
    if field is not None and "tuple" in str(field.annotation):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _require_known(section: str, name: str, source: str) -> None:
    if section not in SECTIONS:
        raise ConfigurationError(_unknown(section, "section", source), KNOWN)
    known = list(SECTIONS[section].model_fields)
    if name not in known:
        raise ConfigurationError(
            _unknown(f"{section}.{name}", "setting", source), f"{guess(name, known)}{section} knows {', '.join(known)}"
        )


def _unknown(name: str, what: str, source: str) -> str:
    return f"unknown {what} {name!r} ({source})"


def _in_words(
    error: ValidationError, merged: dict[str, Any], sources: dict[str, str], path: Path
) -> ConfigurationError:
    cause = error.errors()[0].get("ctx", {}).get("error")
    if isinstance(cause, MisfitError):
        mistake = Mistake(cause.place, f"is wrong: {cause.message}", cause.hint)
    else:
        mistake = first_mistake(error.errors(), Settings, merged)
    section, _, rest = mistake.place.partition(".")
    source = str(path) if section in ARRAYS else sources.get(f"{section}.{rest.partition('.')[0]}", "default")
    return ConfigurationError(
        f"{mistake.place} {mistake.message} ({source})",
        mistake.hint or "`kleinbild config show` prints every setting with what it means",
    )


def default_file() -> Path:
    return Path("kleinbild.toml")
