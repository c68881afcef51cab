"""What adapters cost on this machine: of each kind, several at once, different ones in a batch; none and merged weights beside.

    python benchmarks/adapters.py [--model nano] [--repeats 15] [--threads 2] [--rank 16] [--dtype float32] [--json]

Adapters have random numbers, small ones, in all linear layers of all blocks; LoRA as diffusers writes it, with queries,
keys and values apart, and `fused` as ComfyUI does. All rows of a table take turns in one run; medians of whole pictures
are printed, prompts cached. `merged` has the adapter's change in its weights, once and for all: what an engine that
serves one adapter alone can do. `open` is the first use of a file, up to the adapter on the device.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.requests import PictureRequest
from kleinbild.engine.adapters import AdapterCache
from kleinbild.engine.batcher import Batcher
from kleinbild.engine.named import Named
from kleinbild.engine.runtime import Engine
from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.magnitude import merged
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights import Model
from kleinbild.model.weights.shapes import transformer_shapes

PROMPTS = [f"{thing} on mint" for thing in ("a cat", "a dog", "a fox", "a pig", "a frog", "a car", "a rose", "an owl")]
KINDS = ("lora", "fused", "dora", "lokr", "loha", "full")
SIZE = 0.01  # of a change beside the weights: a picture shall stay a picture
NUM_ADAPTERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default=None, help="as `kleinbild generate` takes it")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = Engine(arguments.model, dtype=arguments.dtype)
    print(f"{platform.platform()}, {arguments.threads} threads, torch {torch.__version__}, {engine.dtype}")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(engine, Path(name), arguments.rank, arguments.repeats)
        figures = {"open": bench.opened(), "one": bench.one(), "eight": bench.eight()}
    if arguments.json:
        print(json.dumps(figures))


class Bench:
    """An engine's model, and files that stand for adapters: "KIND SEED", whose numbers are drawn when they are opened."""

    def __init__(self, engine: Engine, folder: Path, rank: int, repeats: int) -> None:
        self.folder, self.rank, self.repeats = folder, rank, repeats
        self.model = engine.model
        self.name = engine.name
        for kind in KINDS:
            for seed in range(NUM_ADAPTERS):
                self.file(kind, seed).write_text(f"{kind} {seed}")

    def file(self, kind: str, seed: int) -> Path:
        return self.folder / f"{kind}-{seed}.safetensors"

    def load(self, path: Path, spec: TransformerSpec) -> Adapter:
        kind, seed = path.read_text().split()
        return drawn(kind, int(seed), spec, self.rank)

    def batcher(self, model: Model | None = None) -> Batcher:
        model = model or self.model
        return Batcher(model, adapters=AdapterCache(model, load=self.load))

    def request(self, number: int, *files: Path) -> PictureRequest:
        uses = tuple(AdapterUse(str(file)) for file in files)
        return PictureRequest(PROMPTS[number % len(PROMPTS)], self.name, seed=number, adapters=uses)

    def opened(self) -> dict[str, dict[str, float]]:
        """Milliseconds from drawn numbers on, and megabytes, of each kind."""
        rows = {}
        for kind in KINDS:
            cache, adapter = AdapterCache(self.model), drawn(kind, 0, self.model.spec.transformer, self.rank)
            cache.load = lambda _path, _spec, adapter=adapter: adapter
            begun = time.perf_counter()
            cache.hold(Named(kind, 1.0, self.file(kind, 0)))
            rows[kind] = {"ms": 1000 * (time.perf_counter() - begun), "mb": cache.counters.num_bytes / 2**20}
            print(f"open {kind:<12} {rows[kind]['ms']:7.1f} ms  {rows[kind]['mb']:7.2f} MB", flush=True)
        return rows

    def one(self) -> dict[str, float]:
        """Seconds of one picture."""
        batcher, files = self.batcher(), [self.file("lora", i) for i in range(4)]
        asked = {"none": (batcher, [self.request(0)]), "merged": (self.batcher(self.merged()), [self.request(0)])}
        asked |= {f"lora x {n}": (batcher, [self.request(0, *files[:n])]) for n in (1, 2, 4)}
        asked |= {f"{kind} x 1": (batcher, [self.request(0, self.file(kind, 0))]) for kind in KINDS[1:]}
        return self.table("one picture", asked)

    def eight(self) -> dict[str, float]:
        """Seconds of eight pictures in one batch: without, with one for all, with two, four or eight different ones."""
        batcher = self.batcher()
        asked = {
            "none": (batcher, [self.request(i) for i in range(8)]),
            "merged": (self.batcher(self.merged()), [self.request(i) for i in range(8)]),
        }
        for count in (1, 2, 4, 8):
            requests = [self.request(i, self.file("lora", i % count)) for i in range(8)]
            asked[f"{count} different"] = (batcher, requests)
        asked["half with"] = (batcher, [self.request(i, *[self.file("lora", 0)] * (i % 2)) for i in range(8)])
        return self.table("eight pictures", asked)

    def table(self, title: str, asked: dict[str, tuple[Batcher, list[PictureRequest]]]) -> dict[str, float]:
        times: dict[str, list[float]] = {label: [] for label in asked}
        for _ in range(self.repeats + 1):
            for label, (batcher, requests) in asked.items():
                begun = time.perf_counter()
                batcher.make(requests)
                times[label].append(time.perf_counter() - begun)
        rows = {label: statistics.median(seconds[1:]) for label, seconds in times.items()}  # the first warms up
        for label, seconds in rows.items():
            print(f"{title:<16} {label:<14} {1000 * seconds:8.1f} ms  {seconds / rows['none']:.3f} of none", flush=True)
        return {label: round(seconds, 5) for label, seconds in rows.items()}

    def merged(self) -> Model:
        """The model with the first LoRA in its weights."""
        changed = copy.deepcopy(self.model.transformer)
        for entry in drawn("lora", 0, self.model.spec.transformer, self.rank).entries:
            weight = changed.get_submodule(entry.module).get_parameter("weight")
            weight.data = merged(weight.data, entry).to(weight.dtype)
        return replace(self.model, transformer=changed)


def drawn(kind: str, seed: int, spec: TransformerSpec, rank: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for name, shape in transformer_shapes(spec).items():
        if "_blocks." not in name or len(shape) != 2:
            continue
        num_out, num_in = shape
        is_split = name.endswith("_attn.qkv.weight") and kind != "fused"
        thirds: list[tuple[int, int] | None] = [(i * num_out // 3, (i + 1) * num_out // 3) for i in range(3)]
        for rows in thirds if is_split else [None]:
            own_out = num_out // 3 if rows else num_out
            change = _change(kind, own_out, num_in, rank, generator)
            scale = SIZE * num_in**-0.5 / float(change.delta().std())
            magnitude = 1 + SIZE * _normal(generator, own_out) if kind == "dora" else None
            entries.append(Entry(name.removesuffix(".weight"), change, scale, rows, magnitude))
    return Adapter(tuple(entries))


def _change(kind: str, num_out: int, num_in: int, rank: int, generator: torch.Generator) -> Change:
    def low_rank() -> LowRank:
        return LowRank(_normal(generator, rank, num_in), _normal(generator, num_out, rank))

    if kind == "lokr":
        return Kronecker(_normal(generator, 16, 16), _normal(generator, num_out // 16, num_in // 16))
    if kind == "loha":
        return Hadamard(low_rank(), low_rank())
    return Full(_normal(generator, num_out, num_in)) if kind == "full" else low_rank()


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


if __name__ == "__main__":
    main()
