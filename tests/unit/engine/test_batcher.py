"""Who is served when, and that nobody's picture depends on it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kleinbild.core.errors import CancelledError, CapacityError, DeadlineError, KleinbildError, RequestError
from kleinbild.core.messages import Decoding, Encoding, Event, Queued, Stepped, Terms
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine import batcher as batching
from kleinbild.engine.batcher import Batcher, Job
from kleinbild.engine.caches import Caches
from kleinbild.engine.picture import Picture
from kleinbild.engine.runtime import Engine
from tests import tiny
from tests.unit.engine.test_pipeline import A, B, request


@dataclass
class Ear:
    """Hears everything."""

    events: list[Event] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    on_event: Callable[[Event], None] = lambda _event: None

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def picture(self, job: Job, picture: Picture) -> None:
        self.pictures[job.id] = picture

    def error(self, job: Job, error: Exception) -> None:
        self.errors[job.id] = error

    def of(self, name: str) -> list[Event]:
        return [event for event in self.events if event.id == name]


@pytest.fixture
def ear() -> Ear:
    return Ear()


def put(batcher: Batcher, ear: Ear, name: str, one: PictureRequest, **terms: Any) -> Job:
    job = batcher.job(name, one, Terms(**terms), ear)
    batcher.submit(job)
    return job


def run(batcher: Batcher, limit: int = 1000) -> None:
    for _ in range(limit):
        if not batcher.busy:
            return
        batcher.tick()
    raise AssertionError("the batcher does not come to an end")


def test_the_life_of_a_request_in_events(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model)
    put(batcher, ear, "a", request(engine, 1, steps=3))
    run(batcher)
    steps = [Stepped("a", k, 3) for k in (1, 2, 3)]
    assert ear.events == [Queued("a", 0), Encoding("a"), *steps, Decoding("a")]
    assert ear.pictures["a"].to_bytes() == engine.generate(request(engine, 1, steps=3)).to_bytes()


def test_a_request_joins_between_two_steps(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model)
    put(batcher, ear, "long", request(engine, 1, steps=6))
    batcher.tick()
    batcher.tick()
    put(batcher, ear, "short", request(engine, 2, steps=2, references=(A,)))
    run(batcher)
    order = [(event.id, event.step) for event in ear.events if isinstance(event, Stepped)]
    assert order.index(("short", 2)) < order.index(("long", 5))
    assert list(ear.pictures) == ["short", "long"]


def test_cancelling_frees_the_place_within_one_step(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model)
    job = put(batcher, ear, "a", request(engine, 1, steps=50))
    waiting = put(batcher, ear, "b", request(engine, 2, steps=50))
    batcher.tick()
    job.cancel()
    waiting.cancel()
    batcher.tick()
    assert not batcher.busy
    assert job.sequence is None
    assert all(isinstance(ear.errors[name], CancelledError) for name in ("a", "b"))


def test_previews_come_as_often_as_asked(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model)
    put(batcher, ear, "a", request(engine, 1, steps=6, size=Size(96, 64)), preview_every=2)
    run(batcher)
    previews = {event.step: event.preview for event in ear.of("a") if isinstance(event, Stepped)}
    assert [step for step, preview in previews.items() if preview] == [2, 4]  # the sixth step's is the picture itself
    for preview in filter(None, previews.values()):
        assert Image.open(io.BytesIO(preview)).size == (12, 8)


def test_a_preview_that_cannot_be_drawn_costs_nobody_the_picture(
    engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(_model: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kleinbild.engine.preview.fit", fit)
    batcher = Batcher(engine.model)
    put(batcher, ear, "a", request(engine, 1, steps=3), preview_every=1)
    put(batcher, ear, "b", request(engine, 2, steps=3))
    run(batcher)
    assert [event for event in ear.of("a") if isinstance(event, Stepped)] == [Stepped("a", k, 3) for k in (1, 2, 3)]
    assert list(ear.pictures) == ["a", "b"]
    assert ear.errors == {}


def test_deadlines(engine: Engine, ear: Ear) -> None:
    now = 0.0
    batcher = Batcher(engine.model, clock=lambda: now)
    put(batcher, ear, "late", request(engine, 1, steps=50), deadline_s=5)
    put(batcher, ear, "whenever", request(engine, 2, steps=3))
    batcher.tick()
    now = 5.5
    run(batcher)
    assert isinstance(ear.errors["late"], DeadlineError)
    assert list(ear.pictures) == ["whenever"]


def test_a_near_deadline_goes_first(engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS_ENOUGH", 1)  # one at a time
    now = 0.0
    batcher = Batcher(engine.model, clock=lambda: now)
    put(batcher, ear, "first", request(engine, 1, steps=4))
    put(batcher, ear, "urgent", request(engine, 2, steps=4), deadline_s=10)
    batcher.tick()
    batcher._seconds_a_flop = 1.0  # slow enough for the deadline to be near
    run(batcher)
    assert list(ear.pictures) == ["urgent", "first"]


def test_a_large_job_does_not_hold_up_a_thumbnail(engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS_ENOUGH", 100)
    batcher = Batcher(engine.model)
    put(batcher, ear, "large", request(engine, 1, steps=50, size=Size(256, 256)), caller="a")
    batcher.tick()
    put(batcher, ear, "small", request(engine, 2, steps=4, size=Size(32, 32)), caller="b")
    run(batcher)
    order = [event.id for event in ear.events if isinstance(event, Stepped)]
    between = order[order.index("small") : order.index("small") + 4]
    assert between == ["small"] * 4  # four small steps cost less than one large one
    assert order.index("small") <= 2
    assert order.count("large") == 50


def test_callers_get_equal_shares(engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS_ENOUGH", 1)
    batcher = Batcher(engine.model)
    for i in range(6):
        put(batcher, ear, f"many-{i}", request(engine, i, steps=8), caller="many")
    put(batcher, ear, "one", request(engine, 9, steps=8), caller="one")
    run(batcher)
    order = [event.id for event in ear.events if isinstance(event, Stepped)]
    until = len(order) - order[::-1].index("one")
    assert 14 <= until <= 20  # its eight steps, and about as many of the six others' 48 together


def test_priorities_are_shares(engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "ROWS_ENOUGH", 1)
    batcher = Batcher(engine.model)
    put(batcher, ear, "batch", request(engine, 1, steps=40), priority="batch", caller="a")
    put(batcher, ear, "interactive", request(engine, 2, steps=40), priority="interactive", caller="b")
    run(batcher)
    order = [event.id for event in ear.events if isinstance(event, Stepped)]
    last = len(order) - 1 - order[::-1].index("interactive")
    assert 1 <= order[:last].count("batch") <= 4  # 16 to 1


def test_memory_bounds_admission(engine: Engine, ear: Ear) -> None:
    requests = [request(engine, seed, size=Size(128, 128), steps=3) for seed in range(4)]
    need = Batcher(engine.model).job("", requests[0], Terms(), ear).need
    batcher = Batcher(engine.model, memory_bytes=need.peak + need.held // 2)
    for i, one in enumerate(requests):
        put(batcher, ear, str(i), one)
    most = 0
    while batcher.busy:
        batcher.tick()
        most = max(most, len(batcher.active))
    assert most == 1
    assert list(ear.pictures) == ["0", "1", "2", "3"]
    positions = [event.position for event in ear.of("3") if isinstance(event, Queued)]
    assert positions == sorted(positions, reverse=True)
    assert positions[-1] == 0


def test_what_never_fits_is_refused_with_the_numbers(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model, memory_bytes=1_000_000)
    with pytest.raises(CapacityError, match=r"needs [\d.]+ [GM]B beside the weights, 1.00 MB are there") as caught:
        batcher.job("a", request(engine, 1, size=Size(256, 256)), Terms(), ear)
    assert caught.value.hint
    assert not batcher.busy


def test_small_ones_pass_a_large_one_but_not_for_ever(engine: Engine, ear: Ear) -> None:
    large, small = request(engine, 1, size=Size(256, 256), steps=2), request(engine, 2, size=Size(32, 32), steps=2)
    need = Batcher(engine.model).job("", large, Terms(), ear).need
    batcher = Batcher(engine.model, memory_bytes=need.peak)
    put(batcher, ear, "s", small)
    batcher.tick()
    put(batcher, ear, "large", large)
    for i in range(60):
        if "large" not in ear.pictures:
            put(batcher, ear, f"s{i}", small)
        batcher.tick()
    assert "large" in ear.pictures
    assert "s0" in ear.pictures
    assert list(ear.pictures).index("s0") < list(ear.pictures).index("large")


def test_out_of_memory_in_a_step_fails_one_request_and_not_the_rest(
    engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batching.step

    def step(model: Any, caches: Any, sequences: list[Any], compiled: Any) -> None:
        if any(sequence.segment.num_image > 16 for sequence in sequences):
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(model, caches, sequences, compiled)

    monkeypatch.setattr(batching, "step", step)
    batcher = Batcher(engine.model)
    put(batcher, ear, "large", request(engine, 1, size=Size(128, 128)))
    put(batcher, ear, "small", request(engine, 2, size=Size(64, 64)))
    run(batcher)
    assert isinstance(ear.errors["large"], CapacityError)
    assert "128x128" in str(ear.errors["large"])
    assert ear.pictures["small"].to_bytes() == engine.generate(request(engine, 2, size=Size(64, 64))).to_bytes()


def test_a_bug_fails_its_request_and_not_the_rest(engine: Engine, ear: Ear) -> None:
    broken = copy.deepcopy(tiny.transformer())
    with torch.no_grad():
        broken.final_layer.linear.weight[0, 0] = torch.nan
    batcher = Batcher(replace(engine.model, transformer=broken))
    put(batcher, ear, "a", request(engine, 1))
    run(batcher)
    assert isinstance(ear.errors["a"], KleinbildError)


def test_wrong_requests_are_refused_before_they_queue(engine: Engine, ear: Ear) -> None:
    batcher = Batcher(engine.model)
    with pytest.raises(RequestError):
        batcher.job("a", request(engine, 1, steps=0), Terms(), ear)
    assert not batcher.busy


def test_exact_requests_step_alone(engine: Engine, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = batching.step

    def step(model: Any, caches: Any, sequences: list[Any], compiled: Any) -> None:
        sizes.append(len(sequences))
        real(model, caches, sequences, compiled)

    monkeypatch.setattr(batching, "step", step)
    batcher = Batcher(engine.model)
    put(batcher, ear, "a", request(engine, 1), exact=True)
    put(batcher, ear, "b", request(engine, 2), exact=True)
    put(batcher, ear, "c", request(engine, 3))
    put(batcher, ear, "d", request(engine, 4))
    run(batcher)
    assert set(sizes) == {1, 2}  # c and d together, the others never


def test_equal_prompts_and_references_are_encoded_once(engine: Engine) -> None:
    caches = Caches.of(engine.model)
    batcher = Batcher(engine.model, caches=caches)
    batcher.make([request(engine, seed, references=(A, B)) for seed in range(3)])
    assert (caches.prompts.counters.num_misses, caches.prompts.counters.num_hits) == (1, 2)
    assert (caches.references.counters.num_misses, caches.references.counters.num_hits) == (2, 4)


# --- alone or in company: random mixes -------------------------------------------------------------------------------

asked = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "prompt": st.sampled_from(["a red cat", "two blue dogs"]),
        "size": st.sampled_from([Size(32, 32), Size(48, 32), Size(64, 80), Size(96, 48)]),
        "steps": st.integers(1, 4),
        "references": st.sampled_from([(), (A,), (B, A)]),
    }
)
arrival = st.integers(0, 5)
leaving = st.one_of(st.none(), st.integers(0, 6))


@pytest.mark.parametrize("kind", ["engine", "base", "kv"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mix=st.lists(st.tuples(asked, arrival, leaving, st.booleans()), min_size=2, max_size=5))
def test_the_same_picture_alone_or_in_company(
    kind: str, request: pytest.FixtureRequest, mix: list[tuple[dict[str, Any], int, int | None, bool]]
) -> None:
    """Requests come at random ticks, some are cancelled at random ticks; what is finished is the picture made alone."""
    engine: Engine = request.getfixturevalue(kind)
    batcher, ear = Batcher(engine.model), Ear()
    jobs: dict[str, Job] = {}
    for tick in range(200):
        for i, (fields, comes, _, _) in enumerate(mix):
            if comes == tick:
                jobs[str(i)] = put(batcher, ear, str(i), PictureRequest(model=engine.name, **fields))
        for i, (_, comes, stays, _) in enumerate(mix):
            if stays is not None and comes + stays == tick:
                jobs[str(i)].cancel()
        batcher.tick()
        if tick > 6 and not batcher.busy:
            break
    for i, (fields, _, stays, _) in enumerate(mix):
        if str(i) in ear.pictures:
            alone = engine.generate(PictureRequest(model=engine.name, **fields))
            assert ear.pictures[str(i)].pil.tobytes() == alone.pil.tobytes()
        else:
            assert stays is not None
            assert isinstance(ear.errors[str(i)], CancelledError)


def test_nanos_pictures_are_those_alone_in_a_company_of_many_rows(ear: Ear) -> None:
    nano = Engine("nano", device="cpu", dtype="float32")
    words = ["a fox on red", "a cat on a beach", "two pigs on mint", "a rocket on a night sky"]
    requests = [PictureRequest(words[i % 4], seed=i, size=Size(128, 128 - 32 * (i % 3)), steps=2) for i in range(9)]
    batcher = Batcher(nano.model)
    for i, one in enumerate(requests):
        put(batcher, ear, str(i), one)
    run(batcher)
    for i, one in enumerate(requests):
        assert ear.pictures[str(i)].to_bytes() == nano.generate(one).to_bytes(), f"picture {i}"


# --- bfloat16: within a tolerance, exact on request ------------------------------------------------------------------

BFLOAT16_MEAN = 0.5  # of 255 levels, over a picture; docs/performance.md states it


@pytest.fixture(scope="module")
def half() -> Engine:
    return Engine("nano", device="cpu", dtype="bfloat16")


def company() -> list[PictureRequest]:
    words = ["a fox on red", "a cat on a beach", "two pigs on mint"]
    return [PictureRequest(prompt, seed=i, size=Size(128, 64 + 32 * i), steps=3 + i) for i, prompt in enumerate(words)]


def test_bfloat16_in_company_is_the_picture_alone_within_rounding(half: Engine, ear: Ear) -> None:
    batcher = Batcher(half.model)
    for i, one in enumerate(company()):
        put(batcher, ear, str(i), one)
    run(batcher)
    for i, one in enumerate(company()):
        together, alone = (np.asarray(picture.pil, dtype=int) for picture in (ear.pictures[str(i)], half.generate(one)))
        assert np.abs(together - alone).mean() <= BFLOAT16_MEAN


def test_bfloat16_is_exact_on_request(half: Engine, ear: Ear) -> None:
    batcher = Batcher(half.model)
    for i, one in enumerate(company()):
        put(batcher, ear, str(i), one, exact=i != 1)
    run(batcher)
    for i in (0, 2):
        assert ear.pictures[str(i)].pil.tobytes() == half.generate(company()[i]).pil.tobytes()
