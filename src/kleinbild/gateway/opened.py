"""What the settings name, opened: providers with their keys, deployments with their prices, callers' keys, and budgets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal

from kleinbild.core.callers import Caller
from kleinbild.core.deployments import Can
from kleinbild.gateway import catalog
from kleinbild.gateway.canary import BUDGET, CANARY
from kleinbild.gateway.catalog import Catalog
from kleinbild.gateway.configured import ProviderSettings
from kleinbild.gateway.deployments import (
    aliases_of,
    deployments_of,
    key_of,
    limits_of,
    model_limits_of,
    webhook_secret_of,
)
from kleinbild.gateway.fleet import Facts, Fleet, FleetTerms
from kleinbild.gateway.flow.circuits import Circuits, Tolerance
from kleinbild.gateway.flow.hedging import Hedges
from kleinbild.gateway.limits.counters import Counters
from kleinbild.gateway.limits.providers import ProviderLimit, ProviderLimits
from kleinbild.gateway.routing.predict import Predictor
from kleinbild.gateway.routing.rules import Rule, read_rules
from kleinbild.gateway.settings import ConfigurationError, Settings
from kleinbild.providers.base import Provider
from kleinbild.providers.hooks import FAL_KEYS_URL, Bells, FalKeys, Hook, verify_bfl, verify_replicate
from kleinbild.providers.hosted import Hosted
from kleinbild.providers.kinds import capabilities, hosted
from kleinbild.providers.on_machine import OnMachine, can
from kleinbild.safety.fetch import Fetcher
from kleinbild.storage import budgets, keys, servers
from kleinbild.storage.budgets import Budget, Budgets
from kleinbild.storage.database import Database

log = logging.getLogger(__name__)
MAX_KEYS_BYTES = 64_000
GUESSABLE = 20  # characters of a secret
BUDGETS_TURN = 2
CONFIGURED = "toml:"
"""Begins the ids of keys and budgets that stand in the configuration."""


def open_fleet(
    settings: Settings,
    local: Provider,
    fetcher: Fetcher,
    *,
    waiting: Callable[[], float],
    predictor: Predictor | None = None,
    counters: Counters | None = None,
    known: Catalog | None = None,
) -> Fleet:
    """Raises ConfigurationError where a provider that is used has no key."""
    known = known or catalog.current(settings.data)
    providers, facts = _used(settings), facts_of(settings, local, known, counters)
    routing, bells = settings.routing, Bells()
    hooks = {name: _hook(each, settings, fetcher, bells) for name, each in providers.items() if each.webhooks}
    return Fleet(
        deployments=facts.deployments,
        places={name: _place(each, local, fetcher, hooks.get(name)) for name, each in providers.items()},
        local=local,
        circuits=Circuits(Tolerance(consecutive=routing.failures, open_seconds=routing.rest_seconds)),
        predictor=predictor or Predictor(),
        limits=facts.limits,
        hedges=Hedges(share=routing.hedge_share),
        default_model=next(iter(facts.deployments.values())).model,
        aliases=facts.aliases,
        rules=rules_of(settings),
        terms=FleetTerms(
            call_seconds=routing.call_seconds,
            unknown_price_reserve=routing.unknown_price_reserve,
        ),
        hooks=hooks,
        bells=bells,
        waiting=waiting,
    )


def facts_of(settings: Settings, local: Provider, known: Catalog, counters: Counters | None = None) -> Facts:
    """Raises ConfigurationError for what a deployment says of itself and cannot be."""
    return Facts(
        {each.name: each for each in deployments_of(settings, known, _can_of(local))},
        aliases_of(settings, known),
        ProviderLimits(_limits(settings, _used(settings), known), counters),
    )


def _used(settings: Settings) -> dict[str, ProviderSettings]:
    """The providers that a deployment is at."""
    used = {each.provider for each in settings.all_deployments}
    return {each.name: each for each in settings.all_providers if each.name in used}


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    return read_rules([each.flat for each in settings.rules])


def configured_callers(settings: Settings, secret: bytes) -> dict[str, Caller]:
    """By the digests of their keys. Raises ConfigurationError for a key whose variable is not set."""
    found: dict[str, Caller] = {}
    for each in settings.keys:
        value = os.environ.get(each.secret_env, "").strip()
        if not value:
            raise ConfigurationError(
                f"the variable {each.secret_env} of keys.{each.name} is not set",
                "set it to a secret that is hard to guess",
            )
        if len(value) < GUESSABLE and not settings.loopback:
            log.warning("the key %s has %d characters only: it can be guessed", each.name, len(value))
        found[keys.digest(secret, value)] = Caller(
            id=CONFIGURED + each.name,
            owner=each.owner,
            project=each.project,
            role=each.role,
            models=each.models,
            routes=each.routes,
            limits=each.limits.limits,
            policy=each.policy,
        )
    return found


async def settle_budgets(settings: Settings, database: Database, known_budgets: Budgets) -> None:
    """Makes the budgets in the database those of the settings. What was spent of one that stays, stays spent."""
    wanted = {each.id: each for each in configured_budgets(settings)}
    async with database.write() as connection:
        await servers.turn(connection, BUDGETS_TURN, wait=True)
        for known in await budgets.listed(connection):
            if known.id.startswith(CONFIGURED) and known.id not in wanted:
                await budgets.remove(connection, known.id)
        for each in wanted.values():
            await budgets.put(connection, each)
    known_budgets.forget()


def configured_budgets(settings: Settings) -> Iterator[Budget]:
    names = {each.name for each in settings.keys}
    for key in settings.keys:
        if (budget := key.budget) is not None:
            alerts = tuple(Decimal(str(share)) for share in budget.alerts)
            yield Budget(
                f"{CONFIGURED}keys.{key.name}", budget.amount, budget.window, key=CONFIGURED + key.name, alerts=alerts
            )
    if (canaries := settings.routing.canary_budget) is not None:
        yield Budget(BUDGET, canaries, settings.routing.canary_window, key=CANARY)
    for each in settings.budgets:
        subject = CONFIGURED + each.subject if each.scope == "key" and each.subject in names else each.subject
        alerts = tuple(Decimal(str(share)) for share in each.alerts)
        of = {each.scope: subject}
        yield Budget(f"{CONFIGURED}{each.scope}.{each.subject}"[:64], each.amount, each.window, alerts=alerts, **of)


def _can_of(local: Provider) -> Callable[[ProviderSettings, str], Can]:
    def can_of(provider: ProviderSettings, model: str) -> Can:
        if provider.kind == "local":
            return can(local.capabilities(model))
        return capabilities(provider.kind, model, provider.base_url)

    return can_of


def _place(provider: ProviderSettings, local: Provider, fetcher: Fetcher, hook: Hook | None) -> Hosted:
    if provider.kind == "local":
        return OnMachine(local)
    return hosted(provider.kind, key_of(provider), provider.base_url, fetcher=fetcher, hook=hook)


def _hook(provider: ProviderSettings, settings: Settings, fetcher: Fetcher, bells: Bells) -> Hook:
    url = f"{str(settings.server.public_url).rstrip('/')}/hooks/{provider.name}"
    secret = webhook_secret_of(provider)
    if secret is None:
        return Hook(provider.name, url, FalKeys(lambda: _fal_keys(fetcher)).verify, bells=bells)
    verify = {"bfl": verify_bfl, "replicate": verify_replicate}[provider.kind]

    async def verified(body: bytes, headers: Mapping[str, str]) -> str:
        return verify(body, headers, secret)

    return Hook(provider.name, url, verified, secret if provider.kind == "bfl" else None, bells)


async def _fal_keys(fetcher: Fetcher) -> bytes:
    async with await fetcher.fetch(FAL_KEYS_URL, accept="application/json", max_bytes=MAX_KEYS_BYTES) as file:
        return await file.read()


def _limits(settings: Settings, providers: Mapping[str, ProviderSettings], known: Catalog) -> dict[str, ProviderLimit]:
    """Of accounts, and of their calls of single models."""
    found = {name: limits_of(each, known) for name, each in providers.items()} | model_limits_of(settings, known)
    return {
        name: ProviderLimit(each.max_active, each.requests_per_minute, each.images_per_minute)
        for name, each in found.items()
    }
