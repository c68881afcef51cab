"""What is compiled is used once it proved right and fast, and never where exactness was promised."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kleinbild.core.messages import Terms
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine import compiled as module
from kleinbild.engine import runtime
from kleinbild.engine.batcher import Batcher
from kleinbild.engine.compiled import MAX_COMPILED, RACES, Compiled, ready
from kleinbild.engine.picture import Picture
from kleinbild.engine.runtime import Engine
from kleinbild.model.autoencoder import AttnBlock
from tests import tiny
from tests.unit.engine.test_pipeline import A, request

STEPS = 2
PROOF = 1 + RACES  # runs of what was compiled, to prove it


class Fake:
    """A compiler that compiles nothing, with a clock that stands still but for what it costs."""

    def __init__(self, *, change: float = 0.0, seconds: float = 0.0, error: str = "", wait: float = 0.0) -> None:
        self.change, self.seconds, self.error, self.wait = change, seconds, error, wait
        self.now = 0.0
        self.num_compiled = self.num_runs = 0

    def clock(self) -> float:
        return self.now

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        if self.error:
            raise RuntimeError(self.error)
        time.sleep(self.wait)
        self.num_compiled += 1

        def run(*inputs: Any) -> Any:
            self.num_runs += 1
            self.now += self.seconds
            return tuple(out * (1 + self.change) for out in graph.forward(*inputs))

        return run


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """torch keeps what was compiled with the function, eight times at most."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batcher(engine: Engine, fake: Fake) -> Batcher:
    return Batcher(engine.model, compiled=Compiled(engine.model, backend=fake, clock=fake.clock))


def make(batcher: Batcher, asked: PictureRequest, **terms: Any) -> Picture:
    return batcher.make([asked], terms=Terms(**terms))[0]


def notes(batcher: Batcher) -> tuple[str, ...]:
    assert batcher.compiled is not None
    return batcher.compiled.notes


def test_it_is_used_after_it_proved_itself(engine: Engine) -> None:
    fake = Fake()
    mine, asked = batcher(engine, fake), request(engine, 1, steps=STEPS)
    expected = engine.generate(asked).pil.tobytes()
    assert make(mine, asked).pil.tobytes() == expected
    assert fake.num_compiled == 2  # a step and decoding
    assert fake.num_runs == 2 * PROOF + STEPS - 1  # the first step, and the first decoding, are the plain network's
    assert make(mine, asked).pil.tobytes() == expected
    assert (fake.num_compiled, fake.num_runs) == (2, 2 * PROOF + STEPS - 1 + STEPS + 1)
    assert notes(mine) == ()


def test_shapes_of_equal_numbers_of_tokens_share_a_compiled_step(engine: Engine) -> None:
    fake = Fake()
    mine = batcher(engine, fake)
    for size in (Size(64, 32), Size(32, 64)):
        asked = request(engine, 1, steps=STEPS, size=size)
        assert make(mine, asked).pil.tobytes() == engine.generate(asked).pil.tobytes()
    assert fake.num_compiled == 3  # one step, two sizes of the decoder


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (Fake(change=0.001), "the result is off by 1.0e-03 instead of 1e-04 at most"),
        (Fake(change=float("nan")), "the result is off by nan"),
        (Fake(seconds=0.25), "it takes 250.0 ms instead of 0.0 ms"),
        (Fake(error="no C++ compiler\nand more"), "no C++ compiler"),
    ],
)
def test_it_is_not_used_if_it_did_not(engine: Engine, fake: Fake, words: str) -> None:
    mine, asked = batcher(engine, fake), request(engine, 1, steps=STEPS)
    expected = engine.generate(asked).pil.tobytes()
    assert make(mine, asked).pil.tobytes() == expected
    step, decoding = notes(mine)
    assert step == f"a step of 1 x 56 tokens is not compiled: {step.split(': ')[1]}"
    assert decoding.startswith("decoding 4x4 tokens is not compiled: ")
    assert words in step
    assert words in decoding
    counts = fake.num_compiled, fake.num_runs
    assert make(mine, asked).pil.tobytes() == expected
    assert (fake.num_compiled, fake.num_runs) == counts  # nor is it tried again
    assert len(notes(mine)) == 2


def test_few_layouts_are_compiled_and_the_rest_runs_plainly(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_COMPILED <= 8  # torch's own bound
    monkeypatch.setattr(module, "MAX_COMPILED", 2)
    fake = Fake()
    mine = batcher(engine, fake)
    for side in (32, 48, 64, 80):
        asked = request(engine, 1, steps=1, size=Size(side, side))
        assert make(mine, asked).pil.tobytes() == engine.generate(asked).pil.tobytes()
    assert fake.num_compiled == 2 * 2
    assert notes(mine) == (
        "no more than 2 layouts of steps are compiled, others run plainly",
        "no more than 2 sizes of pictures are compiled, others run plainly",
    )


def test_who_must_be_exact_gets_the_plain_networks(engine: Engine) -> None:
    fake = Fake()
    make(batcher(engine, fake), request(engine, 1, steps=STEPS), exact=True)
    assert fake.num_compiled == 0


def test_references_that_are_cached_stay_plain(kv: Engine) -> None:
    fake = Fake()
    mine, asked = batcher(kv, fake), request(kv, 1, references=(A,))
    assert make(mine, asked).pil.tobytes() == kv.generate(asked).pil.tobytes()
    assert fake.num_compiled == 1  # the decoder


def test_an_engine_compiles_only_if_asked_and_makes_pictures_again_plainly(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.compiled is None
    fake = Fake()
    monkeypatch.setattr(runtime, "Compiled", partial(Compiled, backend=fake, clock=fake.clock))
    mine = Engine(engine.name, device="cpu", compile=True)
    picture = mine.generate(request(engine, 1, steps=STEPS))
    runs = fake.num_runs
    assert runs > 2 * PROOF
    with ThreadPoolExecutor(1) as pool:
        pool.submit(mine.generate, request(engine, 2, steps=STEPS)).result()
    assert fake.num_runs == runs + STEPS + 1  # what one thread compiled is for all of them
    runs = fake.num_runs
    assert mine.replay(picture.record).pil.tobytes() == picture.pil.tobytes()
    assert fake.num_runs == runs
    fake.error = "broken"
    mine.generate(request(engine, 1, size=Size(32, 32)))
    assert [note.split(": ")[1] for note in mine.notes] == ["broken", "broken"]


def test_offloaded_models_are_not_compiled(engine: Engine) -> None:
    fake, offloaded = Fake(), Engine(engine.name, device="cpu", offload="blocks")
    mine = batcher(offloaded, fake)
    make(mine, request(engine, 1, steps=1))
    assert fake.num_compiled == 0
    assert notes(mine) == ("nothing is compiled: offloaded weights come and go while the model computes",)


def test_nor_are_large_ones_on_a_cpu(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_precision", lambda _spec: "bfloat16")
    (note,) = Compiled(engine.model).notes
    assert "on a CPU that makes models of this size slower" in note


def test_what_is_ready_never_compiles() -> None:
    fake, plain = Fake(), lambda x: x + 1
    torch.compile(plain, backend=fake, dynamic=False)(torch.zeros(3))
    assert ready(plain)(torch.zeros(3)).tolist() == [1, 1, 1]
    assert ready(plain)(torch.zeros(2)).tolist() == [1, 1]
    assert (fake.num_compiled, fake.num_runs) == (1, 2)


def test_forecasts_leave_out_the_time_of_compiling(engine: Engine) -> None:
    fake = Fake(wait=2.0)
    mine = Batcher(engine.model, compiled=Compiled(engine.model, backend=fake))
    job = mine.job("a", request(engine, 1, steps=STEPS), Terms(deadline_s=3600), Quiet())
    mine.submit(job)
    mine.tick()
    assert mine.compiled is not None
    assert mine.compiled.seconds > 2.0
    assert mine._flops(job) * mine._seconds_a_flop < 1.0
    assert job.watch.seconds["denoise"] > 2.0  # which it did take


class Quiet:
    """Listens to nothing."""

    def event(self, *_: object) -> None: ...
    def picture(self, *_: object) -> None: ...
    def error(self, _job: object, error: Exception) -> None:
        raise error


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_the_real_compiler(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of a tiny model, with few layers since each is compiled for a second: it proves itself, or says why not."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    few = replace(engine.model.spec.autoencoder, channel_multipliers=(1, 2), num_res_blocks=0)
    model = replace(engine.model, autoencoder=tiny.autoencoder(spec=few))
    mine = Compiled(model)
    with torch.inference_mode():
        latent = torch.randn(1, few.packed_channels, 2, 2)
        plain = model.autoencoder.decode(latent)
        for _ in range(2):
            torch.testing.assert_close(mine.decode(latent), plain, rtol=1e-3, atol=1e-3)
    assert mine.notes == () or "ms instead of" in mine.notes[0]  # a machine that others use may find it slower


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_the_real_compiler_makes_right_attention_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code for projections that are transposed afterwards gave NaN on processors with these instructions."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    block = AttnBlock(128, 4).to(torch.bfloat16)
    with torch.inference_mode(), module._freezing(torch.device("cpu")):
        x_BCHW = torch.randn(1, 128, 16, 16).to(torch.bfloat16)
        made = torch.compile(block, dynamic=False, fullgraph=True)(x_BCHW)
        torch.testing.assert_close(made, block(x_BCHW), rtol=2e-2, atol=2e-2)
