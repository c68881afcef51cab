"""Whether what is configured fits together, and what is there without being written: the engine and its models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from kleinbild.gateway.configured import (
    ARRAYS,
    DeploymentSettings,
    Lists,
    PriceSettings,
    ProviderSettings,
)
from kleinbild.gateway.mistakes import guess, label

LOCAL = "local"
FREE = PriceSettings(per_image=0, version="local", source="this machine")  # type: ignore[arg-type, call-arg]


class MisfitError(ValueError):
    """`place` is the entry, or the setting, that is wrong."""

    def __init__(self, place: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.place, self.message, self.hint = place, message, hint


def all_providers(lists: Lists) -> tuple[ProviderSettings, ...]:
    """Those configured, and the engine's if it is not among them."""
    if any(provider.kind == "local" for provider in lists.providers):
        return lists.providers
    return (ProviderSettings(name=LOCAL, kind="local"), *lists.providers)  # type: ignore[call-arg]


def all_deployments(lists: Lists, engine_models: Iterable[str]) -> tuple[DeploymentSettings, ...]:
    """One for each model of the engine that none is configured for, free of charge; then those configured."""
    local = _local(lists)
    written = {each.at_provider for each in lists.deployments if each.provider == local}
    unwritten = (model for model in engine_models if model not in written)
    return (*(_of_engine(model, local) for model in unwritten), *lists.deployments)


def check(lists: Lists, engine_models: tuple[str, ...], public_url: str | None = None) -> None:
    """Raises MisfitError for the first thing that does not fit."""
    for steps in (
        _names(lists),
        _calling_back(lists, public_url),
        _places(lists, engine_models),
        _served(lists, engine_models),
        _asking(lists, engine_models),
    ):
        for misfit in steps:
            raise misfit


def _local(lists: Lists) -> str:
    return next(provider.name for provider in all_providers(lists) if provider.kind == "local")


def _of_engine(model: str, provider: str) -> DeploymentSettings:
    # A model of the engine may be a path, which is no name that could be written.
    return DeploymentSettings.model_construct(name=model, model=model, provider=provider, price=FREE)


def _names(lists: Lists) -> Iterator[MisfitError]:
    """None comes twice."""
    for array in ARRAYS:
        seen = set()
        for index, entry in enumerate(getattr(lists, array)):
            name = label(entry, index)
            if name in seen:
                yield MisfitError(f"{array}.{name}", "it is there twice", f"name each of [[{array}]] differently")
            seen.add(name)


def _calling_back(lists: Lists, public_url: str | None) -> Iterator[MisfitError]:
    """Services reach this server from the internet; what stands in for one on this machine need not."""
    here = urlsplit(public_url or "")
    for provider in lists.providers:
        if provider.webhooks and here.scheme != "https" and here.hostname not in ("127.0.0.1", "::1", "localhost"):
            yield MisfitError(
                f"providers.{provider.name}.webhooks",
                "services call back by https alone, and server.public_url is no such address",
                "set server.public_url to the https:// address by which this server is reached from the internet",
            )


def _places(lists: Lists, engine_models: tuple[str, ...]) -> Iterator[MisfitError]:
    """Each deployment is at a provider that there is."""
    local = [provider for provider in lists.providers if provider.kind == "local"]
    for again in local[1:]:
        yield MisfitError(f"providers.{again.name}", "there is one engine on this machine", "leave one of kind local")
    for provider in lists.providers:
        if provider.name == LOCAL and provider.kind != "local":
            yield MisfitError(
                "providers.local", f"local is the engine, not of kind {provider.kind}", "name it otherwise"
            )
    providers = {provider.name: provider for provider in all_providers(lists)}
    for each in lists.deployments:
        if each.provider not in providers:
            yield _unknown(f"deployments.{each.name}.provider", "provider", each.provider, providers)
        elif providers[each.provider].kind == "local" and each.at_provider not in engine_models:
            yield MisfitError(
                f"deployments.{each.name}.provider_model",
                f"the engine does not serve {each.at_provider!r}",
                f"engine.models lists what it serves: {', '.join(engine_models) or 'nothing'}",
            )
        elif each.seed is not None and providers[each.provider].kind != "openai":
            yield MisfitError(
                f"deployments.{each.name}.seed",
                f"of the kind {providers[each.provider].kind} it is known who takes a seed",
                "leave it out",
            )


def _served(lists: Lists, engine_models: tuple[str, ...]) -> Iterator[MisfitError]:
    """There is something to ask for, and each name means one thing."""
    deployments = all_deployments(lists, engine_models)
    if not deployments:
        yield MisfitError(
            "engine.models",
            "it is empty and there are no [[deployments]]: nothing could be asked for",
            "add one of them",
        )
    names = [each.name for each in deployments]
    for each in lists.deployments:
        if names.count(each.name) > 1:
            yield MisfitError(
                f"deployments.{each.name}",
                "the model of the engine has a deployment of this name already",
                f"choose another name, or take {each.name} out of engine.models",
            )
    models = {each.model for each in deployments}
    for alias in lists.aliases:
        if alias.name in models:
            yield MisfitError(
                f"aliases.{alias.name}", "there is a model of this name", "rename the alias, or the deployments' model"
            )
        if alias.model not in models:
            yield _unknown(f"aliases.{alias.name}.model", "model", alias.model, models)


def _asking(lists: Lists, engine_models: tuple[str, ...]) -> Iterator[MisfitError]:
    """Keys and budgets are of models that there are."""
    models = {each.model for each in all_deployments(lists, engine_models)}
    names = models | {alias.name for alias in lists.aliases}
    for key in lists.keys:
        for model in key.models or ():
            if model not in names:
                yield _unknown(f"keys.{key.name}.models", "model", model, names)
    for index, budget in enumerate(lists.budgets):
        if budget.scope == "model" and budget.subject not in models:
            yield _unknown(f"budgets.{label(budget, index)}.subject", "model", budget.subject, models)


def _unknown(place: str, what: str, name: str, known: Iterable[str]) -> MisfitError:
    listed = sorted(known)
    return MisfitError(
        place, f"there is no {what} {name!r}", f"{guess(name, listed)}{what}s are {', '.join(listed) or 'none'}"
    )
