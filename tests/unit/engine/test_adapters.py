"""Requests with adapters: each gets its own in whatever company, from a budget of bytes, and wrong ones are told at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kleinbild.core.adapters import AdapterUse, Card
from kleinbild.core.errors import CancelledError, CapacityError, KleinbildError, ModelError, RequestError, WeightsError
from kleinbild.core.messages import Terms
from kleinbild.core.metadata import AdapterRecord
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.adapters import AdapterCache
from kleinbild.engine.batcher import Batcher, Job
from kleinbild.engine.caches import MODULATIONS_KEPT, Caches, Modulator
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.named import Named
from kleinbild.engine.picture import Picture
from kleinbild.engine.prepare import check
from kleinbild.engine.runtime import Engine
from kleinbild.model.adapters.adapter import Adapter
from kleinbild.model.adapters.applied import Use
from kleinbild.model.adapters.magnitude import merged
from kleinbild.model.adapters.registry import digest, register
from kleinbild.model.adapters.served import serve, served_bytes
from kleinbild.model.weights.load import load_model
from tests import adapters, tiny
from tests.adapters import Kind, Maker
from tests.unit.engine.test_batcher import Ear, put, run
from tests.unit.engine.test_pipeline import HOLE, A, B, request

EVERYWHERE = tuple(adapters.shapes())
NAMES: dict[str, Kind] = {"plain": "lora", "long": "dora", "grid": "lokr", "woven": "loha", "whole": "full"}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for adapters of these tests alone; files are those of `tests.adapters`."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("KLEINBILD_HOME", str(place))
    monkeypatch.setattr("kleinbild.engine.adapters.load_file", adapters.read)
    return place


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(params=["engine", "base", "kv"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def ear() -> Ear:
    return Ear()


def batcher_of(engine: Engine, limit_bytes: int = 2**30, **options: Any) -> Batcher:
    return Batcher(engine.model, adapters=AdapterCache(engine.model, limit_bytes, adapters.read), **options)


def registered(name: str, adapter: Adapter, tmp: Path, **card: Any) -> Adapter:
    file = adapters.write(tmp / f"{name}.safetensors", adapter)
    facts = {"family": "nano", "sha256": digest(file), "size_bytes": file.stat().st_size, "created_at": 0.0, **card}
    register(file, Card(name, **facts))
    return adapter


def everyone(tmp: Path) -> None:
    """One of each kind, in every layer."""
    for seed, (name, kind) in enumerate(NAMES.items()):
        registered(name, Maker(seed).adapter(kind, EVERYWHERE), tmp)


def using(engine: Engine, seed: int, *uses: str | tuple[str, float], **fields: Any) -> PictureRequest:
    pairs = [(use, 1.0) if isinstance(use, str) else use for use in uses]
    return request(engine, seed, adapters=tuple(AdapterUse(*pair) for pair in pairs), **fields)


def make(batcher: Batcher, *requests: PictureRequest) -> list[bytes]:
    return [picture.to_bytes() for picture in batcher.make(requests)]


def pixels(picture: Picture) -> bytes:
    return picture.pil.tobytes()


def mixed(engine: Engine) -> list[PictureRequest]:
    """Equal and different shapes, with the same, other, several and no adapters."""
    return [
        using(engine, 1, "plain"),
        using(engine, 2),
        using(engine, 3, "long", ("grid", -0.5)),
        using(engine, 4, "plain", steps=2),
        using(engine, 5, "woven", size=Size(80, 32)),
        using(engine, 6, "whole", "plain", "long", references=(A,)),
        using(engine, 7, references=(A,)),
        using(engine, 8, "long", references=(A,)),
        using(engine, 9, ("plain", 0.3), references=(A, B), size=Size(64, 64)),
        using(engine, 10, "grid", references=(A,), mask=HOLE),
        using(engine, 11, "long", references=(A,), cache_references=True),
        using(engine, 12, "woven", references=(A,), cache_references=True),
        using(engine, 13, references=(A,), cache_references=True),
    ]


def test_a_picture_in_a_pass_is_the_picture_alone(any_engine: Engine, tmp: Path) -> None:
    everyone(tmp)
    batcher, requests = batcher_of(any_engine), mixed(any_engine)
    together = make(batcher, *requests)
    for one, made in zip(requests, together, strict=True):
        assert make(batcher, one) == [made], one
    plain = batcher.make([replace(one, adapters=()) for one in requests])
    for one, made, without in zip(requests, batcher.make(requests), plain, strict=True):
        assert (pixels(made) == pixels(without)) == (not one.adapters), one


asked = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "size": st.sampled_from([Size(32, 32), Size(48, 32), Size(64, 80)]),
        "steps": st.integers(1, 4),
        "references": st.sampled_from([(), (A,)]),
        "uses": st.lists(st.sampled_from(sorted(NAMES)), max_size=3, unique=True),
    }
)
arrival, leaving = st.integers(0, 5), st.one_of(st.none(), st.integers(0, 6))


@pytest.mark.parametrize("kind", ["base", "kv"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mix=st.lists(st.tuples(asked, arrival, leaving), min_size=2, max_size=5))
def test_the_same_picture_alone_or_in_company(
    kind: str,
    request: pytest.FixtureRequest,
    tmp: Path,
    mix: list[tuple[dict[str, Any], int, int | None]],
) -> None:
    engine: Engine = request.getfixturevalue(kind)
    everyone(tmp)
    batcher, ear = batcher_of(engine), Ear()
    requests = [
        using(engine, fields["seed"], *fields["uses"], **{k: fields[k] for k in ("size", "steps", "references")})
        for fields, _, _ in mix
    ]
    jobs: dict[str, Job] = {}
    for tick in range(200):
        for i, (_, comes, stays) in enumerate(mix):
            if comes == tick:
                jobs[str(i)] = put(batcher, ear, str(i), requests[i])
            if stays is not None and comes + stays == tick:
                jobs[str(i)].cancel()
        batcher.tick()
        if tick > 11 and not batcher.busy:
            break
    for i, one in enumerate(requests):
        if str(i) in ear.pictures:
            assert pixels(ear.pictures[str(i)]) == pixels(batcher.make([one])[0])
        else:
            assert isinstance(ear.errors[str(i)], CancelledError)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_it_is_the_picture_of_merged_weights(base: Engine, tmp: Path, kind: Kind) -> None:
    """Both branches of guidance have the adapter, and so have the layers that only the times go through."""
    adapter = registered("one", Maker(1, size=0.1).adapter(kind, EVERYWHERE), tmp)
    changed = load_model(base.name)
    for entry in adapter.entries:
        weight = changed.transformer.get_submodule(entry.module).get_parameter("weight")
        weight.data = merged(weight.data, entry, 0.8)
    latents = []
    for batcher, one in ((batcher_of(base), using(base, 1, ("one", 0.8))), (Batcher(changed), request(base, 1))):
        job = put(batcher, Ear(), "a", one, preview_every=0)
        while batcher.busy:
            batcher.tick()
            if job.sequence is not None:
                latents.append(job.sequence.latent_NC.clone())
    half = len(latents) // 2
    for ours, theirs in zip(latents[:half], latents[half:], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_without_strength_it_is_the_picture_without(any_engine: Engine, tmp: Path) -> None:
    everyone(tmp)
    made, without = batcher_of(any_engine).make(
        [using(any_engine, 1, *((name, 0.0) for name in NAMES)), request(any_engine, 1)]
    )
    assert pixels(made) == pixels(without)
    assert [used.scale for used in made.record.adapters] == [0.0] * len(NAMES)


def test_their_order_does_not_matter(engine: Engine, tmp: Path) -> None:
    everyone(tmp)
    one, other = make(batcher_of(engine), using(engine, 1, "long", "plain"), using(engine, 1, "plain", "long"))
    assert one == other


def test_the_cards_strength_is_for_the_kind_of_model(engine: Engine, base: Engine, tmp: Path) -> None:
    registered("one", Maker().adapter(), tmp, strengths={"base": 0.5, "distilled": 1.25})
    for which, expected in ((engine, 1.25), (base, 0.5)):
        batcher = batcher_of(which)
        asked = request(which, 1, adapters=(AdapterUse("one"),))
        made, same = batcher.make([asked, using(which, 1, ("one", expected))])
        assert made.to_bytes() == same.to_bytes()
        assert made.record.adapters[0].scale == expected


def test_a_picture_says_what_it_was_made_with_and_can_be_made_again(engine: Engine, tmp: Path) -> None:
    adapter = registered("one", Maker(1).adapter(), tmp)
    file = adapters.write(tmp / "other.safetensors", Maker(2).adapter())
    engine = Engine(engine.name)
    engine.adapters.load = adapters.read
    uses = (AdapterUse("one", 0.7), AdapterUse(str(file)))
    made = engine.generate(request(engine, 1, adapters=uses))
    of_one = digest(adapters.write(tmp / "again.safetensors", adapter))
    assert made.record.adapters == (AdapterRecord("one", 0.7, of_one), AdapterRecord(file.name, 1.0, digest(file)))
    with pytest.raises(ModelError, match=r"no adapter file other\.safetensors") as caught:
        engine.replay(made.record)  # only its name is in the record, and it is not in this folder
    assert f"sha256 {digest(file)[:12]}" in caught.value.hint
    before = Path.cwd()
    os.chdir(tmp)
    try:
        assert engine.replay(made.record).to_bytes() == made.to_bytes()
    finally:
        os.chdir(before)


def test_another_file_under_the_same_name_is_refused(engine: Engine, tmp: Path) -> None:
    registered("one", Maker(1).adapter(), tmp)
    engine = Engine(engine.name)
    engine.adapters.load = adapters.read
    made = engine.generate(using(engine, 1, "one"))
    registered("one", Maker(2).adapter(), tmp)
    with pytest.raises(RequestError, match="'one' is not the file used then") as caught:
        engine.replay(made.record)
    assert "the very same file" in caught.value.hint
    assert pixels(engine.generate(using(engine, 1, "one"))) != pixels(made)  # the new one is used at once


# --- what is wrong is told before anything is computed ---------------------------------------------------------------


def refused(engine: Engine, *uses: AdapterUse) -> KleinbildError:
    ear = Ear()
    with pytest.raises(KleinbildError) as caught:
        batcher_of(engine).job("a", request(engine, 1, adapters=uses), Terms(), ear)
    assert not ear.events
    return caught.value


def test_an_adapter_that_nobody_knows(engine: Engine, tmp: Path) -> None:
    registered("comic", Maker().adapter(), tmp)
    error = refused(engine, AdapterUse("comics"))
    assert error.message == "there is no adapter called 'comics'; known are comic"
    assert "did you mean comic?" in error.hint
    assert "no adapter file" in refused(engine, AdapterUse(str(tmp / "none.safetensors"))).message


def test_an_adapter_for_another_family(engine: Engine, tmp: Path) -> None:
    registered("large", Maker().adapter(), tmp, family="klein-4b")
    with pytest.raises(RequestError, match=r"'large' is for klein-4b, .*tiny.* is of the family nano"):
        check(using(engine, 1, "large"))  # without a network
    assert "an adapter that was trained for nano" in refused(engine, AdapterUse("large")).hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: replace(entry, module="double_blocks.7.img_mlp.0"), "changes double_blocks.7.img_mlp.0, which"),
        (lambda entry: replace(entry, rows=(0, 10)), "changes 192x64 of double_blocks.0.img_attn.qkv, tiny has 10x64"),
        (lambda entry: replace(entry, rows=(150, 342)), "changes 192x64 of double_blocks.0.img_attn.qkv"),
        (lambda entry: (entry.change.b_OR.fill_(float("nan")), entry)[1], "NaN or infinity for double_blocks.0"),
    ],
)
def test_a_file_that_does_not_fit(engine: Engine, tmp: Path, change: Callable[[Any], Any], words: str) -> None:
    adapter = Maker().adapter("lora", ["double_blocks.0.img_attn.qkv"])
    file = adapters.write(tmp / "odd.safetensors", Adapter((change(adapter.entries[0]),)))
    error = refused(engine, AdapterUse(str(file)))
    assert isinstance(error, WeightsError)
    assert words in error.message
    assert "'odd.safetensors'" in error.message


def test_a_registered_file_that_was_changed_since(engine: Engine, home: Path, tmp: Path) -> None:
    registered("one", Maker(1).adapter(), tmp)
    adapters.write(home / "adapters" / "one" / "adapter.safetensors", Maker(2).adapter())
    error = refused(engine, AdapterUse("one"))
    assert "'one' has changed" in error.message
    assert "register it again" in error.hint


@pytest.mark.parametrize(
    ("make_wrong", "words"),
    [
        (lambda: AdapterUse(3), "3 is not an adapter's name"),  # type: ignore[arg-type]
        (lambda: AdapterUse(" "), "no name"),
        (lambda: AdapterUse("a", "strong"), "'strong' is not a strength for the adapter 'a'"),  # type: ignore[arg-type]
        (lambda: AdapterUse("a", True), "True is not a strength"),
        (lambda: AdapterUse("a", float("nan")), "nan is not a strength"),
        (lambda: AdapterUse("a", 4.5), "4.5 is not a strength"),
        (lambda: PictureRequest("x", adapters=["a"]), "not a tuple of AdapterUse"),  # type: ignore[arg-type]
        (lambda: PictureRequest("x", adapters=("a",)), "not a tuple of AdapterUse"),  # type: ignore[arg-type]
        (lambda: PictureRequest("x", adapters=(AdapterUse("a"), AdapterUse("a", 2))), "'a' was given twice"),
        (lambda: PictureRequest("x", adapters=tuple(AdapterUse(f"a{i}") for i in range(9))), "9 adapters were given"),
    ],
)
def test_wrong_values(make_wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_wrong()
    assert words in caught.value.message
    assert caught.value.hint


def test_what_an_adapter_learned_may_be_said_to_nano(tmp: Path) -> None:
    shapes = adapters.shapes(load_model("nano").spec.transformer)
    entry = Maker().entry("lora", "img_in", shapes["img_in"])
    registered("fuchur", Adapter((entry,)), tmp, trigger_words=("Fuchur the wizard", "sks-7"))
    asked = PictureRequest("fuchur on sks-7 mint", adapters=(AdapterUse("fuchur"),))
    assert check(asked).adapters[0].name == "fuchur"
    with pytest.raises(RequestError, match='nano does not know "fuchur", "sks-7"'):
        check(replace(asked, adapters=()))
    with pytest.raises(RequestError, match='nano does not know "wizards"'):
        check(replace(asked, prompt="fuchur and wizards"))


# --- a budget of bytes -----------------------------------------------------------------------------------------------


def several(tmp: Path, count: int = 3) -> int:
    """Adapters "0", "1", … of equal sizes; what one of them takes."""
    for i in range(count):
        adapter = registered(str(i), Maker(i).adapter(), tmp)
    return served_bytes(adapter, torch.float32)


def test_what_was_not_used_for_longest_goes(engine: Engine, tmp: Path) -> None:
    size = several(tmp)
    batcher = batcher_of(engine, limit_bytes=2 * size)
    counters = batcher.adapters.counters
    expected = [make(batcher_of(engine), using(engine, 1, str(i)))[0] for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):
        assert make(batcher, using(engine, 1, str(i))) == [expected[i]]
        assert counters.num_bytes <= 2 * size
    assert (counters.num_hits, counters.num_misses, counters.num_evicted) == (2, 4, 2)


def test_who_finds_no_room_waits_for_those_in_use(engine: Engine, tmp: Path, ear: Ear) -> None:
    size = several(tmp)
    batcher = batcher_of(engine, limit_bytes=2 * size)
    most = 0
    for i in range(3):
        put(batcher, ear, str(i), using(engine, 1, str(i), steps=3 + i))
    put(batcher, ear, "same", using(engine, 2, "0", steps=6))
    while batcher.busy:
        batcher.tick()
        most = max(most, batcher.adapters.counters.num_bytes)
        assert len({facts.sha256 for job in batcher.active for facts in job.adapters}) <= 2
    assert most == 2 * size
    assert set(ear.pictures) == {"0", "1", "2", "same"}
    assert ear.events.index(next(e for e in ear.of("same"))) < ear.events.index(ear.of("2")[-1])
    for i in range(3):
        assert pixels(ear.pictures[str(i)]) == pixels(batcher.make([using(engine, 1, str(i), steps=3 + i)])[0])


def test_more_than_the_budget_at_once_is_refused(engine: Engine, tmp: Path) -> None:
    size = several(tmp)
    batcher = batcher_of(engine, limit_bytes=2 * size)
    with pytest.raises(CapacityError, match=r"the adapters need .* are set aside for them"):
        batcher.make([using(engine, 1, "0", "1", "2")])


def test_a_changed_file_is_another_adapter(engine: Engine, tmp: Path, ear: Ear) -> None:
    """The picture under way keeps the one that it began with; the next one gets the new one."""
    file = adapters.write(tmp / "one.safetensors", Maker(1).adapter())
    batcher = batcher_of(engine)
    one = using(engine, 1, str(file), steps=4)
    expected = make(batcher, one)[0]
    put(batcher, ear, "before", one)
    batcher.tick()
    adapters.write(tmp / "new.safetensors", Maker(2).adapter()).rename(file)
    put(batcher, ear, "after", one)
    run(batcher)
    assert ear.pictures["before"].to_bytes() == expected
    assert pixels(ear.pictures["after"]) != pixels(ear.pictures["before"])
    assert ear.pictures["after"].record.adapters[0].sha256 == digest(file)


def test_a_file_that_goes_while_its_request_waits(engine: Engine, tmp: Path, ear: Ear) -> None:
    file = adapters.write(tmp / "one.safetensors", Maker(1).adapter())
    batcher = batcher_of(engine)
    put(batcher, ear, "a", using(engine, 1, str(file)))
    put(batcher, ear, "b", using(engine, 1))
    file.unlink()
    run(batcher)
    assert "'one.safetensors' is gone" in str(ear.errors["a"])
    assert list(ear.pictures) == ["b"]


def test_whoever_leaves_lets_go(engine: Engine, tmp: Path, ear: Ear) -> None:
    size = several(tmp)
    batcher = batcher_of(engine, limit_bytes=size)
    jobs = [put(batcher, ear, str(i), using(engine, 1, "0", steps=50)) for i in range(2)]
    batcher.tick()
    for job in jobs:
        job.cancel()
    batcher.tick()
    batcher.adapters.shrink(0)
    assert batcher.adapters.counters.num_bytes == 0
    batcher.make([using(engine, 1, "1")])
    batcher.adapters.shrink(0)
    assert batcher.adapters.counters.num_bytes == 0


def test_adapters_count_as_memory_once(engine: Engine, tmp: Path, ear: Ear) -> None:
    size = several(tmp)
    plain = Batcher(engine.model).job("", request(engine, 1), Terms(), ear).need
    with pytest.raises(CapacityError, match="beside the weights"):
        batcher_of(engine, memory_bytes=plain.peak + size // 2).make([using(engine, 1, "0")])
    batcher = batcher_of(engine, memory_bytes=plain.peak + plain.held + size)
    for i, adapter in enumerate(("0", "0", "1")):  # two with one adapter fit, two with two do not
        put(batcher, ear, str(i), using(engine, i, adapter, steps=5))
    batcher.tick()
    assert [job.id for job in batcher.active] == ["0", "1"]
    most = 0
    while batcher.busy:
        batcher.tick()
        most = max(most, batcher.adapters.counters.num_bytes)
    assert most == size
    assert list(ear.pictures) == ["0", "1", "2"]


def test_what_an_adapter_takes_is_counted(engine: Engine) -> None:
    for kind in adapters.KINDS:
        for sliced in (False, True):
            adapter = Maker().adapter(kind, EVERYWHERE, sliced=sliced)
            bound = serve(adapter, engine.model.transformer, device=torch.device("cpu"), dtype=torch.float32)
            storages = {
                tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors(bound.by_layer.values())
            }
            assert sum(storages.values()) == served_bytes(adapter, torch.float32), kind


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All that hang on it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list) or type(value).__name__ == "dict_values":
        for each in value:
            yield from tensors(each)
    elif hasattr(value, "__slots__"):
        for name in value.__slots__:
            yield from tensors(getattr(value, name))


# --- beside everything else ------------------------------------------------------------------------------------------


def test_modulations_are_kept_by_time_and_adapters() -> None:
    network = tiny.transformer()
    device = torch.device("cpu")
    modulator = Modulator(network, device)
    of_time, elsewhere, unnamed = (
        Use(serve(Maker().adapter("lora", [module]), network, device=device, dtype=torch.float32, name=name))
        for module, name in (("time_in.in_layer", "a"), ("img_in", "b"), ("time_in.in_layer", ""))
    )
    with torch.inference_mode():
        plain, changed = modulator([0.5]), modulator([0.5], [(of_time,)])
        assert modulator([0.5], [(elsewhere,)]) is plain
        assert modulator([0.5], [(of_time, elsewhere)]) is changed
        assert modulator([0.5], [(replace(of_time, strength=2.0),)]) is not changed
        assert modulator([0.5], [(unnamed,)]) is not modulator([0.5], [(unnamed,)])
        assert not torch.equal(plain.single.shift, changed.single.shift)
        for i in range(MODULATIONS_KEPT):
            modulator([i / 1000])
        assert modulator([0.5], [(of_time,)]) is not changed


def test_equal_adapters_stand_side_by_side(engine: Engine, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And equal shapes before them: runs are worth more than spans."""
    everyone(tmp)
    batcher, seen = batcher_of(engine), []
    layouts = batcher.caches.layouts
    plain = engine.model.transformer.forward
    monkeypatch.setattr(
        engine.model.transformer, "forward", lambda *args: (seen.append((args[3], args[5])), plain(*args))[1]
    )
    sizes = [Size(64, 64), Size(32, 32)]
    names = ["plain", "long"]
    batcher.make([using(engine, i, names[i // 2 % 2], size=sizes[i % 2], steps=1) for i in range(8)])
    packing, uses = seen[0]
    assert packing is layouts(packing.segments)
    assert [run.count for run in packing.runs] == [4, 4]
    assert [use == before for use, before in zip(uses[1:], uses, strict=False)].count(True) >= 4


def test_steps_with_adapters_are_not_compiled(engine: Engine, tmp: Path) -> None:
    everyone(tmp)

    def compiler(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        return graph.forward

    torch._dynamo.reset()
    compiled = Compiled(engine.model, backend=compiler, clock=lambda: 0.0)
    mine = batcher_of(engine, compiled=compiled)
    assert make(mine, using(engine, 1, "plain")) == make(batcher_of(engine), using(engine, 1, "plain"))
    assert compiled.notes == ("steps with adapters are not compiled",)
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["components", "blocks"])
def test_weights_that_come_and_go(base: Engine, tmp: Path, way: Any) -> None:
    """Norms of a DoRA are computed from weights that rest elsewhere."""
    everyone(tmp)
    moving = Engine(base.name, offload=way)
    requests = [using(base, 1, "long"), using(base, 2, "plain", "whole", references=(A,)), request(base, 3)]
    assert make(batcher_of(moving), *requests) == make(batcher_of(base), *requests)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "fp8"])
def test_other_numbers(dtype: str, tmp: Path) -> None:
    """An adapter changes a picture there as it does in float32."""
    spec = load_model("nano").spec.transformer
    modules = adapters.in_blocks(spec)
    for seed, kind in enumerate(("lora", "dora", "lokr")):
        registered(kind, Maker(seed, size=0.7).adapter(kind, modules, spec=spec), tmp)  # type: ignore[arg-type]
    latents = []
    for precision in ("float32", dtype):
        engine = Engine("nano", dtype=precision)
        for uses in ((), ("lora",), ("dora", "lokr")):
            batcher = batcher_of(engine)
            named = tuple(AdapterUse(use) for use in uses)
            job = put(batcher, Ear(), "a", PictureRequest("a fox on mint", seed=1, steps=2, adapters=named))
            batcher.tick()
            assert job.sequence is not None
            velocity = job.sequence.velocity_NC
            assert velocity is not None
            latents.append(velocity)
    for exact, rounded in zip(latents[:3], latents[3:], strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.1
    for i in (1, 2):  # what the adapter changed, in both
        exact, rounded = latents[i] - latents[0], latents[3 + i] - latents[3]
        assert float((exact * rounded).sum() / (exact.norm() * rounded.norm())) > 0.8


def test_a_damaged_file_in_the_default_reader_is_told(engine: Engine, tmp: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp / "x.safetensors")
    cache = AdapterCache(engine.model, load=lambda path, _spec: (_ for _ in ()).throw(WeightsError(f"{path} is odd")))
    with pytest.raises(WeightsError, match="is odd"):
        cache.facts(Named("x", 1.0, tmp / "x.safetensors"))
    assert cache.counters.num_bytes == 0


def test_caches_can_be_shared(engine: Engine) -> None:
    caches = Caches.of(engine.model)
    assert Batcher(engine.model, caches=caches).caches is caches
