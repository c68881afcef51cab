"""What is set aside for a call is the most that its tokens can come to."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleinbild.core.prices import FIDELITY_TOKENS, BilledTokens, Measure, tokens_given
from kleinbild.core.sizes import Size
from kleinbild.gateway.catalog import shipped
from kleinbild.gateway.deployments import price_of
from kleinbild.gateway.fleet import FleetTerms
from kleinbild.providers.hosted import Answer, Fetched
from tests.unit.gateway.routing import places
from tests.unit.gateway.routing.places import decided, place
from tests.unit.gateway.test_chain import Scripted, World, png, run

MODEL = shipped().find("openai", "gpt-image-2.5-flare")
assert MODEL is not None
assert MODEL.price is not None
PRICE = price_of(MODEL.price)
sides = st.integers(16, 4096)
sizes = st.builds(Size, sides, sides)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [(Size(1024, 1024), 1), (Size(512, 513), 2), (Size(1024, 1536), 2), (Size(3840, 2160), 2), (Size(512, 2000), 4)],
)
def test_a_picture_given_is_counted_in_squares_of_its_shorter_side(size: Size, tiles: int) -> None:
    low = 65 + 129 * tiles
    assert tokens_given(size) == (low, low + 6240)


@settings(max_examples=300)
@given(
    prompt=st.text(min_size=1),
    given_sizes=st.lists(sizes, max_size=16),
    is_faithful=st.booleans(),
    asked_faithful=st.booleans(),
    quality=st.sampled_from(sorted(PRICE.tokens_by_quality)),
    images=st.integers(1, 10),
    area=st.decimals("0.1", "8.3", places=6),
    previews=st.integers(0, 3),
    data=st.data(),
)
def test_what_tokens_come_to_is_never_more_than_was_set_aside(
    prompt: str,
    given_sizes: list[Size],
    is_faithful: bool,
    asked_faithful: bool,
    quality: str,
    images: int,
    area: Decimal,
    previews: int,
    data: st.DataObject,
) -> None:
    """As they are documented: of a prompt, squares of pictures given with or without a high fidelity, those of a quality
    (of larger pictures as many more at most as they are larger), and 100 of each preview."""
    tokens = [tokens_given(size) for size in given_sizes]
    low, high = sum(each for each, _ in tokens), sum(each for _, each in tokens)
    asked = Measure(
        images,
        area,
        quality=quality,
        references=len(given_sizes),
        input_tokens=high if asked_faithful else low,
        most_input_tokens=high,
        previews=previews,
    )
    num_bytes = len(prompt.encode())
    reserved = PRICE.of(asked) + PRICE.beyond(asked, num_bytes)
    extra = sum(4160 if size.width == size.height else 6240 for size in given_sizes) if is_faithful else 0
    made = PRICE.tokens_by_quality[quality] * max(Decimal(1), area / Decimal("1.048576"))
    reported = BilledTokens(
        input_text=data.draw(st.integers(0, num_bytes)),
        input_image=low + extra,
        output_image=data.draw(st.integers(1, int(made))) * images + 100 * previews * images,
    )
    settled = PRICE.of(Measure(images, area, quality=quality, references=len(given_sizes), tokens=reported))
    assert settled <= reserved
    assert reserved - PRICE.of(asked) >= FIDELITY_TOKENS * len(given_sizes) * 8 / Decimal(10**6) * (not asked_faithful)


@pytest.mark.parametrize(
    ("can", "asked", "tokens"),
    [
        ({}, {}, 194),
        ({"always": (("input_fidelity", "high"),)}, {}, 6434),
        ({"parameters": frozenset({"input_fidelity"})}, {"parameters": {"input_fidelity": "high"}}, 6434),
        ({"parameters": frozenset({"input_fidelity"})}, {}, 194),
        ({}, {"parameters": {"input_fidelity": "high"}}, 194),
    ],
    ids=["low", "always high", "high if asked", "not asked", "lost"],
)
def test_a_quote_has_the_tokens_of_the_pictures_given(can: Any, asked: Any, tokens: int) -> None:
    at = place("a", **can)
    wanted = places.asked(input_tokens=194, most_input_tokens=6434, quality="low", **asked)
    (candidate,) = decided(wanted, [replace(at, price=PRICE)]).candidates
    assert candidate.price == (196 * 30 + tokens * 8) / Decimal(10**6)


def test_an_edit_is_reserved_with_its_pictures_at_their_dearest(tmp_path: Path) -> None:
    tokens = BilledTokens(input_text=5, input_image=6434, output_image=196)

    async def scenario(world: World) -> None:
        measure = Measure(quality="low", references=1, input_tokens=194, most_input_tokens=6434)
        made = await world.prepared(measure=measure).run(fresh=True)
        [entry] = await world.entries()
        assert entry.attempt.quoted == (196 * 30 + 194 * 8) / Decimal(10**6)
        assert entry.attempt.reserved == (196 * 30 + 6434 * 8 + len("a fox") * 5) / Decimal(10**6)
        assert made.cost == entry.cost == entry.attempt.reserved

    answer = Answer((Fetched(png(), 7),), tokens=tokens)
    run(tmp_path, scenario, changes={"a": {"price": PRICE}}, a=Scripted([answer]))


def test_what_is_known_of_a_price_is_reserved_beside_what_is_not(tmp_path: Path) -> None:
    unpublished = replace(PRICE, tokens_by_quality={})

    async def scenario(world: World) -> None:
        world.services.fleet.terms = FleetTerms(unknown_price_reserve=Decimal("0.20"))
        measure = Measure(quality="low", references=1, input_tokens=194, most_input_tokens=6434)
        await world.prepared(measure=measure, allow_unknown_price=True).run(fresh=True)
        [entry] = await world.entries()
        assert entry.attempt.quoted is None
        assert entry.attempt.reserved == Decimal("0.20") + (6434 * 8 + len("a fox") * 5) / Decimal(10**6)

    run(tmp_path, scenario, changes={"a": {"price": unpublished}}, a=Scripted(["pictures"]))
