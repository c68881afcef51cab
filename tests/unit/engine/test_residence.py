"""Where weights are placed: the choice over sizes of memory, its numbers, its refusals; and engines that follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kleinbild.core.amounts import gigabytes
from kleinbild.core.errors import CapacityError, RequestError
from kleinbild.core.messages import Decoding, Encoding, Stepped, Terms
from kleinbild.core.offload import Offload
from kleinbild.core.precision import PRECISIONS, Precision
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.batcher import TURN_STEPS, Batcher
from kleinbild.engine.caches import Caches
from kleinbild.engine.residence import best_placement, choose, place, usual_need
from kleinbild.engine.runtime import FREE_SHARE, Engine
from kleinbild.model.official import KLEIN_4B, KLEIN_9B
from kleinbild.model.offload import Offloaded
from kleinbild.model.placement import WeightBytes, packed_bytes
from kleinbild.model.weights import load_model
from tests.unit.engine.test_batcher import Ear, put, run
from tests.unit.engine.test_pipeline import A, mixed, request

GB = 10**9
BFLOAT16: Precision = "bfloat16"
COUNTER = packed_bytes([8])  # BatchNorm's, which is in no file


def of_card(gigabytes: int) -> int:
    """What is used of a card of that size: some is the driver's, some is left for others."""
    return int(FREE_SHARE * gigabytes * GB)


@pytest.mark.parametrize(
    ("card", "way", "autoencoder_alone"),
    [
        (6, "blocks", False),
        (8, "blocks", False),
        (10, "components", True),
        (12, "components", False),
        (16, "components", False),
        (24, "none", False),
        (80, "none", False),
    ],
)
def test_klein_4b_is_placed_by_the_card(card: int, way: Offload, autoencoder_alone: bool) -> None:
    placement = choose("klein-4b", KLEIN_4B, BFLOAT16, of_card(card))
    assert placement.offload == way
    assert (placement.autoencoder < placement.transformer) == autoencoder_alone
    assert usual_need(KLEIN_4B, BFLOAT16).peak_with(placement) <= of_card(card)


def test_the_bytes_of_klein_4b() -> None:
    """As published, in bfloat16: the transformer 7.75 GB, of the text encoder 27 layers and the embedding, 6.2 GB."""
    weights = WeightBytes.of(KLEIN_4B, BFLOAT16)
    assert weights.transformer.whole == pytest.approx(7.75e9, rel=0.001)
    assert weights.text_encoder.whole == pytest.approx(6.23e9, rel=0.001)
    assert weights.autoencoder.whole == pytest.approx(0.168e9, rel=0.01)
    everything, together, alone, blocks = weights.placements()
    assert everything.most == pytest.approx(14.15e9, rel=0.002)
    assert together.most == alone.most == weights.transformer.whole + weights.autoencoder.whole
    assert blocks.most == pytest.approx(1.54e9, rel=0.01)  # two blocks of 0.49, 0.39 of modulation and the like
    assert usual_need(KLEIN_4B, BFLOAT16).peak_with(blocks) < 4.5e9


def test_eight_bits_need_half_the_memory() -> None:
    whole, eight_bits = (next(WeightBytes.of(KLEIN_4B, precision).placements()) for precision in (BFLOAT16, "int8"))
    assert eight_bits.most == pytest.approx(0.55 * whole.most, rel=0.02)
    chosen = [choose("klein-4b", KLEIN_4B, "int8", of_card(card)).offload for card in (5, 6, 12)]
    assert chosen == ["blocks", "components", "none"]


def test_guidance_is_reckoned_with() -> None:
    base = replace(KLEIN_4B, default_guidance=4.0)
    assert usual_need(base, BFLOAT16).step == pytest.approx(2 * usual_need(KLEIN_4B, BFLOAT16).step)


def test_more_memory_never_means_more_moving() -> None:
    order = ["blocks", "components", "none"]
    for spec in (KLEIN_4B, KLEIN_9B):
        chosen = [best_placement(spec, BFLOAT16, of_card(card)).offload for card in range(4, 100)]
        assert [order.index(way) for way in chosen] == sorted(order.index(way) for way in chosen)
        assert set(chosen) == set(order)


def test_too_little_for_blocks_is_refused_with_the_numbers() -> None:
    with pytest.raises(CapacityError) as caught:
        choose("klein-4b", KLEIN_4B, BFLOAT16, 3 * GB)
    assert caught.value.message == (
        "klein-4b needs 4.24 GB on the device even with its blocks offloaded "
        "(1.54 GB of weights, 2.70 GB for a picture of 1024x1024), 3.00 GB are free"
    )
    assert "smaller pictures" in caught.value.hint
    assert choose("klein-4b", KLEIN_4B, BFLOAT16, 3 * GB, "blocks").offload == "blocks"  # smaller ones it is


@pytest.mark.parametrize(
    ("wanted", "memory", "weights"), [("none", 14, "14.1"), ("components", 7, "7.92"), ("blocks", 1, "1.54")]
)
def test_what_is_asked_for_is_done_or_refused_with_the_numbers(wanted: Offload, memory: int, weights: str) -> None:
    with pytest.raises(
        CapacityError, match=rf"offload '{wanted}' keeps {weights} GB .*, {gigabytes(memory * GB)} are free"
    ):
        choose("klein-4b", KLEIN_4B, BFLOAT16, memory * GB, wanted)
    for enough in (memory + 1, 80, None):
        free = enough and enough * GB
        assert choose("klein-4b", KLEIN_4B, BFLOAT16, free, wanted).offload == wanted


def test_a_device_without_memory_of_its_own_holds_everything() -> None:
    assert choose("klein-4b", KLEIN_4B, BFLOAT16, None).offload == "none"


def offloaded(engine: Engine) -> Offloaded:
    assert engine.model.offloaded is not None
    return engine.model.offloaded


@pytest.fixture(params=["components", "blocks"])
def way(request: pytest.FixtureRequest) -> Offload:
    found: Offload = request.param
    return found


def test_engines_choose_by_themselves_and_do_as_told(engine: Engine, way: Offload) -> None:
    assert engine.offload == Engine(engine.name).offload == Engine(engine.name, offload="none").offload == "none"
    assert Engine(engine.name, offload=way).offload == way
    with pytest.raises(RequestError, match="not a way to offload"):
        Engine(engine.name, offload="everything")  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["engine", "base", "kv"])
def test_pictures_do_not_depend_on_it(which: str, way: Offload, request: pytest.FixtureRequest) -> None:
    """Mixed sizes, references, masks, guidance and cached references, together and alone."""
    resident: Engine = request.getfixturevalue(which)
    moving = Engine(resident.name, offload=way)
    expected = [picture.to_bytes() for picture in resident.generate_all(mixed(resident))]
    assert [picture.to_bytes() for picture in moving.generate_all(mixed(moving))] == expected
    assert moving.generate(mixed(moving)[4]).to_bytes() == expected[4]
    assert moving.placement.most == offloaded(moving).traffic.peak_bytes - COUNTER


def test_nano_in_all_numbers(way: Offload) -> None:
    asked = [PictureRequest("a fox on red", seed=1), PictureRequest("a cat on mint", seed=2, size=Size(96, 64))]
    for dtype in PRECISIONS:
        resident, moving = Engine("nano", dtype=dtype), Engine("nano", dtype=dtype, offload=way)
        for one, other in zip(resident.generate_all(asked), moving.generate_all(asked), strict=True):
            assert one.to_bytes() == other.to_bytes()
        traffic = offloaded(moving).traffic
        assert traffic.peak_bytes - COUNTER == moving.placement.most < 0.9 * resident.placement.most
        assert (traffic.num_moves == 2) == (way == "components")  # text encoder, transformer


def test_the_autoencoder_alone(engine: Engine) -> None:
    """What is chosen where memory is short: nobody else is there while it works."""
    model = load_model(engine.name)
    *_, alone, _ = WeightBytes.of(model.spec, "float32").placements()
    place(model, alone)
    assert model.offloaded is not None
    resident: list[int] = []
    model.autoencoder.decoder.register_forward_pre_hook(
        lambda *_: resident.append(model.offloaded.traffic.resident_bytes)  # type: ignore[union-attr]
    )
    asked = request(engine, 1, references=(A,))
    assert Batcher(model).make([asked])[0].to_bytes() == engine.generate(asked).to_bytes()
    assert set(resident) == {alone.autoencoder + COUNTER}
    large = replace(asked, size=Size(128, 128))
    needs = [Batcher(each).job("", large, Terms(), Ear()).need for each in (engine.model, model)]
    assert needs[1].decode == needs[0].decode - (alone.transformer - alone.autoencoder) > 0


def test_the_picture_may_take_what_leaves_for_it() -> None:
    need = usual_need(KLEIN_4B, BFLOAT16)
    everything, together, alone, _ = WeightBytes.of(KLEIN_4B, BFLOAT16).placements()
    assert need.beside(everything) == need.beside(together) == need
    assert need.beside(alone).decode == 0
    assert need.peak_with(alone) == max(
        alone.transformer + need.held + need.step, alone.autoencoder + need.held + need.decode
    )


def test_room_is_what_is_left_once_the_weights_are_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kleinbild.engine.runtime.available_memory", lambda _device: 10**8)
    free = int(FREE_SHARE * 10**8)
    moving = Engine(engine.name, offload="components")
    weights = WeightBytes.of(moving.model.spec, "float32")
    assert engine.room() == free
    assert moving.room() == free - weights.transformer.whole + COUNTER  # the autoencoder is there, nobody else yet
    moving.generate(request(moving, 1))
    assert moving.room() == free + COUNTER


@pytest.fixture
def turns(engine: Engine) -> Engine:
    return Engine(engine.name, offload="components")


@pytest.fixture
def ear() -> Ear:
    return Ear()


def moves(engine: Engine) -> Iterator[int]:
    """How often a network was moved since the last time."""
    before = 0
    while True:
        now = offloaded(engine).traffic.num_moves
        yield now - before
        before = now


def test_an_unknown_prompt_waits_for_those_under_way(turns: Engine, ear: Ear) -> None:
    batcher, count = Batcher(turns.model), moves(turns)
    put(batcher, ear, "first", request(turns, 1, "a red cat", steps=5))
    batcher.tick()
    put(batcher, ear, "other", request(turns, 2, "two blue dogs", steps=2))
    put(batcher, ear, "same", request(turns, 3, "a red cat", steps=2))
    run(batcher)
    story = [event for event in ear.events if isinstance(event, Encoding | Decoding)]
    assert story.index(Encoding("same")) < story.index(Decoding("first")) < story.index(Encoding("other"))
    assert next(count) == 4  # text encoder, transformer; and once more for the other prompt


def test_but_not_for_ever(turns: Engine, ear: Ear) -> None:
    batcher = Batcher(turns.model)
    put(batcher, ear, "long", request(turns, 1, "a red cat", steps=40))
    batcher.tick()
    put(batcher, ear, "short", request(turns, 2, "two blue dogs", steps=1))
    run(batcher)
    steps = [event.id for event in ear.events if isinstance(event, Stepped)]
    assert TURN_STEPS < steps.index("short") <= TURN_STEPS + 2
    assert ear.pictures["short"].to_bytes() == turns.generate(request(turns, 2, "two blue dogs", steps=1)).to_bytes()


def test_nor_with_a_deadline_near(turns: Engine, ear: Ear) -> None:
    batcher = Batcher(turns.model, clock=lambda: 0.0)
    put(batcher, ear, "long", request(turns, 1, "a red cat", steps=40))
    batcher.tick()
    batcher._seconds_a_flop = 1.0  # slow enough for any deadline to be near
    put(batcher, ear, "urgent", request(turns, 2, "two blue dogs", steps=1), deadline_s=10)
    batcher.tick()
    assert "urgent" in ear.pictures


def test_all_who_wait_are_encoded_in_one_turn(turns: Engine, ear: Ear) -> None:
    """Also those for whom there is no memory yet: the text encoder comes once, the transformer once."""
    requests = [request(turns, i, f"{i} blue dogs", size=Size(128, 128), steps=3) for i in range(5)]
    need = Batcher(turns.model).job("", requests[0], Terms(), ear).need
    batcher, count = Batcher(turns.model, memory_bytes=need.peak + need.held // 2), moves(turns)
    for i, one in enumerate(requests):
        put(batcher, ear, str(i), one)
    run(batcher)
    assert list(ear.pictures) == ["0", "1", "2", "3", "4"]
    assert next(count) == 2
    assert batcher.caches.prompts.counters.num_misses == 5


@pytest.mark.parametrize("kept", [0, 3])
def test_a_small_cache_of_prompts_costs_turns_and_nothing_else(turns: Engine, ear: Ear, kept: int) -> None:
    text = turns.model.spec.text_encoder
    num_bytes = kept * 4 * text.max_tokens * text.context_size
    need = Batcher(turns.model).job("", request(turns, 0), Terms(), ear).need
    batcher = Batcher(turns.model, memory_bytes=2 * need.peak, caches=Caches.of(turns.model, prompt_bytes=num_bytes))
    requests = [request(turns, i, f"{i} blue dogs", steps=2) for i in range(6)]
    for i, one in enumerate(requests):
        put(batcher, ear, str(i), one)
    run(batcher)
    for i, one in enumerate(requests):
        assert ear.pictures[str(i)].to_bytes() == turns.generate(one).to_bytes()


def test_a_prompt_that_cannot_be_encoded_fails_alone(turns: Engine, ear: Ear) -> None:
    batcher = Batcher(turns.model)

    def fail_once(*_: object) -> None:
        handle.remove()
        raise MemoryError

    handle = turns.model.text_encoder.model.layers[1].register_forward_pre_hook(fail_once)
    for i in range(2):
        put(batcher, ear, str(i), request(turns, i, f"{i} blue dogs"))
    run(batcher)
    assert isinstance(ear.errors["0"], CapacityError)
    assert ear.pictures["1"].to_bytes() == turns.generate(request(turns, 1, "1 blue dogs")).to_bytes()


def test_blocks_do_not_wait_for_each_other(engine: Engine, ear: Ear) -> None:
    moving = Engine(engine.name, offload="blocks")
    batcher = Batcher(moving.model)
    put(batcher, ear, "long", request(moving, 1, "a red cat", steps=6))
    batcher.tick()
    put(batcher, ear, "short", request(moving, 2, "two blue dogs", steps=2))
    run(batcher)
    assert list(ear.pictures) == ["short", "long"]
