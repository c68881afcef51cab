"""From what is configured and what is known to `core.deployments`: places with their prices and what they can do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

from kleinbild.core.deployments import UNKNOWN_PRICE, Can, Deployment, Parameter, account_model
from kleinbild.core.money import written
from kleinbild.core.prices import Price
from kleinbild.core.sizes import Size, parse_size
from kleinbild.gateway.catalog import Catalog, KnownLimit, KnownModel
from kleinbild.gateway.configured import DeploymentSettings, PriceSettings, ProviderSettings, Section
from kleinbild.gateway.settings import ConfigurationError, Settings

SEED: frozenset[Parameter] = frozenset({"seed"})
MAX_SIDE = 65_536
NOT_AMOUNTS = ("version", "source", "read_on")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alias:
    """`note` says why to whoever asks for it."""

    model: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """None is no limit that is known."""

    max_active: int | None = None
    requests_per_minute: int | None = None
    images_per_minute: int | None = None


def deployments_of(
    settings: Settings, catalog: Catalog, can_of: Callable[[ProviderSettings, str], Can]
) -> tuple[Deployment, ...]:
    """All of them, the engine's first. Prices are the configuration's, else the catalog's, else unknown. `can_of` tells what
    a provider does with its model of a name; it is cut down to the deployment's `tasks`.

    Raises ConfigurationError for tasks of which a place does none, and what `can_of` does.
    """
    providers = {provider.name: provider for provider in settings.all_providers}
    return tuple(_deployment(each, providers[each.provider], catalog, can_of) for each in settings.all_deployments)


def aliases_of(settings: Settings, catalog: Catalog) -> dict[str, Alias]:
    """Those configured, then the catalog's whose model is served here under no such name."""
    models = {each.model for each in settings.all_deployments}
    known = {
        each.name: Alias(each.model, each.note)
        for each in catalog.aliases
        if each.model in models and each.name not in models
    }
    return known | {each.name: Alias(each.model, each.note) for each in settings.aliases}


def limits_of(provider: ProviderSettings, catalog: Catalog) -> AccountLimits:
    """Each is the configuration's, else the catalog's. Those of single models are `model_limits_of`'s to say."""
    known = catalog.limit(provider.kind)
    return AccountLimits(*(_first(limit.name, provider, known) for limit in fields(AccountLimits)))


def model_limits_of(settings: Settings, catalog: Catalog) -> dict[str, AccountLimits]:
    """Of an account's calls of one model, by `core.deployments.Deployment.account_model`; of several deployments of it the
    last that says something has its way."""
    kinds = {provider.name: provider.kind for provider in settings.all_providers}
    found: dict[str, AccountLimits] = {}
    for each in settings.all_deployments:
        known = catalog.limit(kinds[each.provider], each.at_provider)
        limits = AccountLimits(*(_first(limit.name, each, known) for limit in fields(AccountLimits)))
        if limits != AccountLimits():
            found[account_model(each.provider, each.at_provider)] = limits
    return found


def key_of(provider: ProviderSettings, environment: Mapping[str, str] = os.environ) -> str | None:
    """None: it is asked without a key. Raises ConfigurationError that names the variable."""
    if provider.key_variable is None:
        return None
    return _secret(provider.key_variable, f"the key of the provider {provider.name}", environment)


def webhook_secret_of(provider: ProviderSettings, environment: Mapping[str, str] = os.environ) -> str | None:
    """None: its webhooks are known by published keys. Raises ConfigurationError that names the variable."""
    if provider.webhook_secret_env is None:
        return None
    return _secret(provider.webhook_secret_env, f"the secret of webhooks of the provider {provider.name}", environment)


def require_secrets(settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigurationError for the first secret that is needed and not there: the key of a provider that a deployment
    is at, what signs its webhooks, or the key of a caller."""
    used = {each.provider for each in settings.all_deployments}
    for provider in settings.all_providers:
        if provider.name in used:
            key_of(provider, environment)
            webhook_secret_of(provider, environment)
    for key in settings.keys:
        _secret(key.secret_env, f"the key {key.name} of callers", environment)


def price_of(price: PriceSettings) -> Price:
    """With a version told from the amounts, if it has none: the same amounts have the same one."""
    values = {part.name: getattr(price, part.name) for part in fields(Price)}
    return Price(**values | {"version": price.version or _fingerprint(values)})


def _deployment(
    each: DeploymentSettings,
    provider: ProviderSettings,
    catalog: Catalog,
    can_of: Callable[[ProviderSettings, str], Can],
) -> Deployment:
    known = catalog.find(provider.kind, each.at_provider)
    if known is not None and known.retired_on:
        log.warning("deployment %s: %s was retired on %s", each.name, known.provider_model, known.retired_on)
    price = each.price or (known.price if known else None)
    return Deployment(
        name=each.name,
        model=each.model,
        provider=each.provider,
        kind=provider.kind,
        provider_model=each.at_provider,
        can=_bounded(
            each,
            catalog.limit(provider.kind, each.at_provider),
            _able(each, known, can_of(provider, each.at_provider)),
        ),
        price=price_of(price) if price else UNKNOWN_PRICE,
        region=each.region,
        quality=each.quality,
        weight=each.weight,
    )


def _able(each: DeploymentSettings, known: KnownModel | None, can: Can) -> Can:
    """`can`, with what the catalog and the configuration know beyond it, and no more than is wanted."""
    if can.default_steps is None and known is not None:
        can = replace(can, default_steps=known.default_steps)
    if each.seed is not None:
        can = replace(can, parameters=can.parameters | SEED if each.seed else can.parameters - SEED, one_seed=each.seed)
    if each.tasks is None:
        return can
    tasks = can.tasks.intersection(each.tasks)
    if not tasks:
        raise ConfigurationError(
            f"deployments.{each.name}.tasks: {each.at_provider} does none of them",
            f"it does {', '.join(sorted(can.tasks))}",
        )
    return replace(can, tasks=tasks)


def _bounded(each: DeploymentSettings, limit: KnownLimit | None, can: Can) -> Can:
    """`can`, with what of it the deployment says, else the catalog. Raises ConfigurationError for more than a place can."""
    for name in ("max_images", "max_references"):
        own, most = getattr(each, name), getattr(can, name)
        if own is not None and own > most:
            raise ConfigurationError(
                f"deployments.{each.name}.{name}: {own} are more than the {most} that {each.at_provider} takes in a call",
                "write a smaller number, or leave it out",
            )
        if (least := _first(name, each, limit)) is not None:
            can = replace(can, **{name: min(least, most)})
    side, megapixels = _first("max_side", each, limit), _first("max_megapixels", each, limit)
    if side is None and megapixels is None:
        return can
    side, pixels = side or MAX_SIDE, MAX_SIDE**2 if megapixels is None else int(megapixels * 1_000_000)
    exact = {text: parse_size(text) for text in can.exact_sizes}
    kept = tuple(text for text, size in exact.items() if max(size.width, size.height) <= side and size.area <= pixels)
    sizes = can.sizes and replace(
        can.sizes,
        max_side=min(can.sizes.max_side, side // can.sizes.multiple * can.sizes.multiple),
        max_pixels=min(can.sizes.max_pixels, pixels),
    )
    if (exact and not kept) or (sizes and not sizes.contains(Size(sizes.min_side, sizes.min_side))):
        if each.max_side is None and each.max_megapixels is None:  # no catalog keeps a server from its start
            log.warning("deployment %s: the catalog's sizes of %s are none that it makes", each.name, each.at_provider)
            return can
        raise ConfigurationError(
            f"deployments.{each.name}: {each.at_provider} makes no picture that small",
            "raise max_side or max_megapixels",
        )
    return replace(can, sizes=sizes, exact_sizes=kept)


def _first(name: str, own: Section, known: KnownLimit | None) -> Any:
    """What is written, else what is known."""
    written_here = getattr(own, name, None)
    return getattr(known, name, None) if written_here is None else written_here


def _secret(variable: str, what: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip()
    if not value:
        raise ConfigurationError(
            f"{variable} is not set in the environment, which should hold {what}",
            f"set {variable}, or take out what needs it",
        )
    return value


def _fingerprint(values: Mapping[str, object]) -> str:
    told = {name: _plain(value) for name, value in values.items() if name not in NOT_AMOUNTS}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: object) -> object:
    """The same for the same amount, however it was written."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return written(value) if isinstance(value, Decimal) else value
