"""Adapters that a request names, among those registered on this machine: which its caller may use, and for which model.

What fine-tuning has made is its project's alone, and admins'; every other adapter is everybody's. A fine-tuned model is a model with
an adapter: `ft:nano:fuchur-1a2b3c4d`, or the adapter's name alone, is nano with that adapter.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kleinbild.core.adapters import MAX_ADAPTERS, Card
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.routing.asked import AUTO
from kleinbild.gateway.wanted import Wanted, WantedAdapter
from kleinbild.model.adapters import registry
from kleinbild.storage import tunings

if TYPE_CHECKING:
    from kleinbild.core.callers import Caller
    from kleinbild.gateway.fleet import Fleet
    from kleinbild.gateway.services import Services

PREFIX = "ft:"
CHECKPOINT = "ckpt-step-"


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A fine-tuned model by its name: `step` is the checkpoint's, None for the whole run's."""

    model: str
    adapter: str
    step: int | None = None

    @classmethod
    def read(cls, name: str) -> TunedModel | None:
        """None if it is no name of one."""
        model, _, rest = name.removeprefix(PREFIX).rpartition(":") if name.startswith(PREFIX) else ("", "", "")
        if not rest.startswith(CHECKPOINT):
            return cls(model, rest) if model and registry.NAME.fullmatch(rest) else None
        step = rest.removeprefix(CHECKPOINT)
        whole = cls.read(PREFIX + model)
        return cls(whole.model, whole.adapter, int(step)) if whole and step.isascii() and step.isdecimal() else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.model}:{self.adapter}" + ("" if self.step is None else f":{CHECKPOINT}{self.step}")


async def adapted(services: Services, caller: Caller, wanted: Wanted) -> Wanted:
    """`wanted` with a model and adapters that there are. Raises ApiError: 404 for a fine-tuned model that there is not, 400
    for such an adapter. Whoever names none of them is not kept waiting."""
    asked = wanted.model
    tuned = (
        None if asked is None or asked == AUTO or _is_served(services.fleet, asked) else await _tuned(services, asked)
    )
    if tuned is None and not wanted.adapters:
        return wanted
    theirs = await _of_others(services, caller)
    known = {card.name: card for card in await asyncio.to_thread(registry.cards) if card.name not in theirs}
    for index, each in enumerate(wanted.adapters):
        _require_known(each, index, known, [other.name for other in wanted.adapters[:index]])
    if tuned is None:
        return wanted
    used = await _file_of(services, tuned, known, theirs)
    if used is None or not services.fleet.knows(tuned.model):
        raise ApiError(404, f"The model {asked!r} does not exist.", code="model_not_found", param="model")
    adapters = (
        *wanted.adapters,
        *([] if used in [each.name for each in wanted.adapters] else [WantedAdapter(name=used, scale=None)]),
    )
    if len(adapters) > MAX_ADAPTERS:
        message = f"{asked} is an adapter, too, and a picture has {MAX_ADAPTERS} of them at most"
        raise ApiError(400, message, code="invalid_value", param="adapters")
    return wanted.model_copy(update={"model": tuned.model, "adapters": adapters})


async def visible_cards(services: Services, caller: Caller) -> dict[str, tuple[Card, str | None]]:
    """The adapters that the caller may know of, by name, each with the project that has made it, if one has."""
    async with services.database.read() as connection:
        owners = await tunings.owners(connection)
    found = {card.name: (card, owners.get(card.name)) for card in await asyncio.to_thread(registry.cards)}
    is_admin = caller.may("admin")
    return {name: each for name, each in found.items() if is_admin or each[1] in (None, caller.project)}


def tuned_models(services: Services, card: Card) -> Iterator[TunedModel]:
    """The models that the adapter makes of those that the engine here serves."""
    for deployment in services.fleet.listed:
        if deployment.on_machine and family_of(services, deployment.provider_model) == card.family:
            yield TunedModel(deployment.model, card.name)


def family_of(services: Services, provider_model: str) -> str | None:
    """Of a model of the engine here."""
    return services.provider.capabilities(provider_model).family


def run_folder(data: Path, job_id: str) -> Path:
    """Where a fine-tuning job's run is."""
    return data / "fine-tuning" / job_id


def _is_served(fleet: Fleet, model: str) -> bool:
    return model in fleet.aliases or fleet.knows(model)


async def _tuned(services: Services, asked: str) -> TunedModel | None:
    if asked.startswith(PREFIX):
        found = TunedModel.read(asked)
        if found is None:
            message = f"The model {asked!r} does not exist; the name of a fine-tuned one is such as ft:nano:NAME."
            raise ApiError(404, message, code="model_not_found", param="model")
        return found
    if not registry.NAME.fullmatch(asked):
        return None
    cards = await asyncio.to_thread(registry.cards)
    card = next((card for card in cards if card.name == asked), None)
    return next(tuned_models(services, card), None) if card else None


async def _of_others(services: Services, caller: Caller) -> frozenset[str]:
    """The adapters of other projects; none is hidden from an admin."""
    if caller.may("admin"):
        return frozenset()
    async with services.database.read() as connection:
        owners = await tunings.owners(connection)
    return frozenset(name for name, project in owners.items() if project != caller.project)


def _require_known(wanted: WantedAdapter, index: int, known: dict[str, Card], before: list[str]) -> None:
    if wanted.name not in known:
        there_are = f"there are {', '.join(known)}" if known else "there is none"
        message = f"there is no adapter {wanted.name!r}; {there_are}"
        raise ApiError(400, message, code="adapter_not_found", param=f"adapters.{index}.name")
    if wanted.name in before:
        message = f"the adapter {wanted.name!r} is there twice; give it once, as strong as it is to be"
        raise ApiError(400, message, code="invalid_value", param=f"adapters.{index}.name")


async def _file_of(services: Services, tuned: TunedModel, known: dict[str, Card], theirs: frozenset[str]) -> str | None:
    """What the engine knows the adapter by: its name, or the file of a checkpoint. None: there is none for this caller."""
    if tuned.step is None:
        return tuned.adapter if tuned.adapter in known else None
    async with services.database.read() as connection:
        job = await tunings.of_adapter(connection, tuned.adapter)
        if job is None or tuned.adapter in theirs:
            return None
        found = await tunings.find_checkpoint(connection, job.id, tuned.step)
    if found is None:
        return None
    file = run_folder(services.settings.data, job.id) / found.path
    return str(file) if await asyncio.to_thread(os.path.isfile, file) else None
