"""Where a request goes: what a model's name means, what is asked of places, and why there is none."""

from __future__ import annotations

import pytest

from kleinbild.gateway.deployments import Alias
from kleinbild.gateway.errors import ApiError
from kleinbild.gateway.flow.route import model_of, wish_of
from kleinbild.gateway.wanted import Pictures, Wanted, read
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
