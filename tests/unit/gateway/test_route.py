"""Where a request goes: what a model's name means, what is asked of places, and why there is none."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kleinbild.core.callers import LOCAL
from kleinbild.core.jobs import ImageWork, PictureRef
from kleinbild.core.prices import FIDELITY_TOKENS
from kleinbild.core.sizes import Size
from kleinbild.gateway.deployments import Alias
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.route import _measure, model_of, policy_of, wish_of
from kleinbild.gateway.flow.submit import fingerprint
from kleinbild.gateway.settings import Settings
from kleinbild.gateway.wanted import Pictures, Wanted, read
from kleinbild.providers.base import Inputs
from tests.unit.gateway import fleets

BOTH = fleets.models("nano", "nano-base")


@pytest.mark.parametrize(
    ("model", "served"),
    [(None, "nano"), ("gpt-image-1", "nano"), ("dall-e-3", "nano"), ("nano-base", "nano-base"), ("auto", "auto")],
)
def test_openais_names_mean_the_first_model(model: str | None, served: str) -> None:
    assert model_of(BOTH, read(Wanted, {"prompt": "a fox", "model": model}))[0] == served


@pytest.mark.parametrize("fields", [{"model": "x"}, {"model": "gpt-image-1", "strict": True}])
def test_a_model_that_nobody_has_is_404_and_the_answer_names_those_that_there_are(fields: dict[str, object]) -> None:
    with pytest.raises(ApiError, match="nano, nano-base") as refused:
        model_of(BOTH, read(Wanted, {"prompt": "a fox", **fields}))
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


def test_an_alias_says_what_it_stands_for() -> None:
    fleet = fleets.fleet(fleets.deployment("a"), aliases={"dall-e-3": Alias("sketch", "it was retired on 2026-05-12")})
    model, told = model_of(fleet, read(Wanted, {"prompt": "a fox", "model": "dall-e-3"}))
    assert (model, told) == ("sketch", ("model: dall-e-3 stands for sketch: it was retired on 2026-05-12",))
    assert fleet.models == ("sketch", "dall-e-3")


def test_only_what_was_said_can_be_lost() -> None:
    usual = {"prompt": "a fox", "size": "auto", "quality": "auto", "guidance": 1, "n": 2}
    assert wish_of(read(Wanted, usual), Pictures()).given == {}
    said = {"prompt": "a fox", "size": "512x512", "seed": 5, "steps": 8, "background": "transparent"}
    assert set(wish_of(read(Wanted, said), Pictures()).given) == {"size", "seed", "steps", "background"}
    of_edits = read(Wanted, {"prompt": "a fox", "strength": 0.5, "input_fidelity": "high"})
    assert wish_of(of_edits, Pictures()).given == {}
    edit = Pictures((PictureRef("a"),))
    assert wish_of(of_edits, edit).given == {"strength": 0.5, "input_fidelity": "high"}


@pytest.mark.parametrize("changed", [{"strength": 0.5}, {"moderation": "low"}, {"input_fidelity": "high"}])
def test_a_key_for_one_request_is_not_one_for_another(changed: dict[str, Any]) -> None:
    work = ImageWork("image.edit", "a fox", "sketch", seed=1)
    first, second = (
        fingerprint("/v1/images/edits", each, seed_drawn=True) for each in (work, replace(work, **changed))
    )
    assert first != second


def test_pictures_given_are_measured_in_tokens_too() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 96)).save(out, "PNG")
    work = ImageWork("image.edit", "a fox", "sketch", seed=1, size=Size(512, 512), num_previews=2)
    measure = asyncio.run(_measure(SimpleNamespace(), work, Inputs((out.getvalue(),), out.getvalue())))  # type: ignore[arg-type]
    each = 65 + 2 * 129
    assert (measure.input_tokens, measure.most_input_tokens) == (2 * each, 2 * (each + FIDELITY_TOKENS))
    assert (measure.references, measure.previews) == (1, 2)


@pytest.mark.parametrize(
    ("asked", "key", "project", "expected"),
    [
        ({"policy": {"cost": 1, "quality": 3}}, "latency", "acme", ("weights", 0.25, "request")),
        ({"policy": "quality"}, "latency", "acme", ("quality", 0.0, "request")),
        ({}, "latency", "acme", ("latency", 0.0, "key")),
        ({}, '{"cost": 2, "latency": 2}', "acme", ("weights", 0.5, "key")),
        ({}, None, "acme", ("weights", 0.7, "project")),
        ({}, None, "other", ("cost", 1.0, "server")),
    ],
)
def test_a_policy_is_the_requests_the_keys_the_projects_or_the_servers(
    asked: dict[str, object], key: str | None, project: str, expected: tuple[str, float, str]
) -> None:
    projects = [{"name": "acme", "policy": {"cost": 0.7, "quality": 0.3}}]
    services = SimpleNamespace(settings=Settings.model_validate({"projects": projects, "routing": {"policy": "cost"}}))
    wish = wish_of(read(Wanted, {"prompt": "a fox", **asked}), Pictures())
    policy, source = policy_of(services, replace(LOCAL, policy=key, project=project), wish)  # type: ignore[arg-type]
    assert (policy.name, policy.cost, source) == expected


@pytest.mark.parametrize("policy", ["luck", {}, {"luck": 1}, {"cost": -1}, 7, "{"])
def test_what_is_no_policy_is_400_and_names_the_field(policy: object) -> None:
    with pytest.raises(ApiError) as refused:
        read(Wanted, {"prompt": "a fox", "policy": policy})
    assert (refused.value.status, refused.value.param) == (400, "policy")


def test_pins_are_part_of_what_is_asked_for() -> None:
    wish = wish_of(read(Wanted, {"prompt": "a fox", "pins": ["b", "a"]}), Pictures())
    assert wish.pins == ("b", "a")
    assert wish.identity != wish_of(read(Wanted, {"prompt": "a fox"}), Pictures()).identity
