"""klein-4B on a GPU: every stage, bf16 and fp8, against diffusers and against the card's own matrix rate.

    python benchmarks/gpu.py [--budget-s 460] [--repeats 5] [--device cuda] [--variant klein-4b] [--json]

Needs torch and this checkout, nothing else; diffusers and transformers are measured where they are installed. Weights are
random, of the real shapes, drawn on the device; texts are random token ids; references are random pictures as large as
the one that is made. A row is one picture (or one batch) from token ids to 8-bit pixels on the host, 4 steps, the median
of several after a warm-up. diffusers' networks run in the same loop on the same weights, so that its pipeline's own work
counts for it; its text encoder computes all 36 layers, as its pipeline does.

What the columns mean: `rate` is the time that the denoising's products would take at the card's own measured matrix rate
(large bf16 products; for the linear layers of fp8 rows, large fp8 ones), over the time that it took. `differs` is how far
the final latents are from those of our bf16 row of the same case (relative, 2-norm).

Rows with `components` or `blocks` have weights of their own, which rest in the host's memory (`model/offload.py`); their
peak leaves out what the benchmark itself keeps on the card for the other rows.

Rows that fail say why and the rest goes on. When the budget is spent, the remaining rows are skipped and said.
`--device cpu --variant tiny` rehearses everything in seconds; there, `compiled` captures graphs and compiles nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # the machine may have nothing but the checkout

from kleinbild.core.offload import Offload
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.fp8 import quantize_rows, require_fp8, scaled_product
from kleinbild.model.offload import offload
from kleinbild.model.packing import ReferenceMode, Segment, pack
from kleinbild.model.placement import WeightBytes
from kleinbild.model.precision import quantize
from kleinbild.model.rope import image_ids, text_ids
from kleinbild.model.schedule import times
from kleinbild.model.spec import ModelSpec, TransformerSpec
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import configs
from kleinbild.model.weights.convert import convert_from_ours
from kleinbild.model.weights.layouts import diffusers_autoencoder, diffusers_transformer
from random_weights import VARIANTS, draw

STEPS = 4
SIDES = {"klein-4b": (1024, 512), "tiny": (64, 32)}  # of single pictures, of batches
MATRIX_SIZE = {"klein-4b": 8192, "tiny": 256}
BATCHES = {"klein-4b": (1, 2, 4, 8, 16), "tiny": (1, 2)}
REFERENCES = (1, 2, 4)
STAGES = ("text", "references", "pack", "denoise", "decode")
EXPECTED_S = {"eager": 15.0, "compiled": 100.0}  # what a row may well take, so that none starts that cannot end in time
LONGEST_S = 6.0  # of repeats of one row
PROMPT_TOKENS = 40  # of the text; padding follows

Forward = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Number of the step, image stream (B, N, C), text (B, T, X), times (B,) to velocities of the picture (B, n, C)."""


@dataclass(frozen=True)
class Case:
    """What is made: `batch` square pictures at once, each from as large references."""

    side: int
    batch: int = 1
    references: int = 0
    caching: bool = False

    @property
    def name(self) -> str:
        references = f"{self.references} reference{'s' if self.references > 1 else ''}"
        what = f"edit, {references}" if self.references else "text to image"
        return f"{self.side}² {what}{', cached' if self.caching else ''}{f' x{self.batch}' if self.batch > 1 else ''}"

    def segment(self, spec: ModelSpec) -> Segment:
        grid = (self.side // spec.autoencoder.pixels_per_token,) * 2
        return Segment(spec.text_encoder.max_tokens, grid, (grid,) * self.references)


@dataclass(frozen=True)
class Way:
    """How it is made."""

    engine: str
    precision: str = "bf16"
    compiled: bool = False
    offload: Offload = "none"

    @property
    def name(self) -> str:
        offload = "" if self.offload == "none" else f" {self.offload}"
        return f"{self.engine} {self.precision}{offload}{' compiled' if self.compiled else ''}"


@dataclass
class Row:
    """A measurement, in seconds, or the `problem` that kept it from being one."""

    way: Way
    case: Case
    seconds: dict[str, float] = field(default_factory=dict)
    tflop: float | None = None
    matrix_rate_share: float | None = None
    differs: float | None = None
    peak_gb: float | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"row": self.way.name, "name": self.case.name, **asdict(self)}


def plan(variant: str) -> list[tuple[Way, Case]]:
    """All rows, the cheap ones first: compiling takes a minute a row, and must not cost the others their time."""
    single, batched = SIDES[variant]
    text_to_image = Case(single)
    edits = [Case(single, references=n, caching=caching) for n in REFERENCES for caching in (False, True)]
    cases = [text_to_image, *edits, *(Case(batched, batch=n) for n in BATCHES[variant])]
    eager = [Way("ours"), Way("ours", "fp8"), Way("diffusers")]
    offloaded = [Way("ours", offload="components"), Way("ours", offload="blocks")]
    compiled = [Way("ours", compiled=True), Way("diffusers", compiled=True), Way("ours", "fp8", compiled=True)]
    most = Case(single, references=max(REFERENCES), caching=True)
    return [
        *((way, case) for way in eager for case in cases),
        *((way, text_to_image) for way in offloaded),
        *((way, text_to_image) for way in compiled),
        (Way("ours", compiled=True), most),
    ]


@dataclass(frozen=True)
class Inputs:
    """What every contestant gets for a case. Noise is (B, n, C), pictures (1, 3, H, W) each in [-1, 1]."""

    ids: Tensor
    mask: Tensor
    noise: Tensor
    pictures: list[Tensor]


@dataclass(frozen=True, eq=False)
class Bench:
    """Our networks, which the others share the weights of, and where they are."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    transformer: Flux2Transformer
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    backend: str

    @property
    def networks(self) -> tuple[Flux2Transformer, TextEncoder, Autoencoder]:
        return self.transformer, self.text_encoder, self.autoencoder

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for network in self.networks for tensor in network.state_dict().values())

    def inputs(self, case: Case) -> Inputs:
        generator = torch.Generator("cpu").manual_seed(0)
        segment, text = case.segment(self.spec), self.spec.text_encoder

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        ids = torch.randint(text.vocab_size, (case.batch, text.max_tokens), generator=generator)
        mask = (torch.arange(text.max_tokens) < PROMPT_TOKENS).long().expand(case.batch, -1)
        pictures = [normal(1, 3, case.side, case.side).clamp(-1, 1) for _ in range(case.references)]
        noise = normal(case.batch, segment.num_image, self.spec.transformer.in_channels)
        return Inputs(ids.to(self.device), mask.to(self.device), noise, [p.to(self.dtype) for p in pictures])


class Contestant(Protocol):
    """One way to compute the stages."""

    def text(self, inputs: Inputs) -> Tensor:
        """Contexts (B, T, X)."""

    def references(self, inputs: Inputs) -> list[Tensor]:
        """A latent (1, C, r, c) each."""

    def pack(self, case: Case) -> Forward:
        """What depends on shapes alone, done."""

    def decode(self, latents_BCrc: Tensor) -> Tensor:
        """Pixels (B, 3, H, W)."""


class Ours:
    """As the engine does it: prompts and pictures one by one, the steps in one packed pass."""

    def __init__(self, bench: Bench, way: Way) -> None:
        self.bench = bench
        networks = bench.networks if way.offload == "none" else offloaded_networks(bench, way.offload)
        self.transformer: nn.Module
        self.transformer, self.text_encoder, self.autoencoder = networks
        if way.precision == "fp8":
            self.transformer = in_fp8(bench.transformer)
        if way.compiled:
            self.transformer = torch.compile(self.transformer, dynamic=False, backend=bench.backend)

    def text(self, inputs: Inputs) -> Tensor:
        encode = self.text_encoder
        return torch.cat([encode(inputs.ids[i : i + 1], inputs.mask[i : i + 1]) for i in range(len(inputs.ids))])

    def references(self, inputs: Inputs) -> list[Tensor]:
        return [self.autoencoder.encode(picture) for picture in inputs.pictures]

    def pack(self, case: Case) -> Forward:
        """The one place here that knows how references are packed and cached: in the first step, then from it."""
        segment = case.segment(self.bench.spec)
        modes: tuple[ReferenceMode, ...] = ("store", "stored") if case.caching else ("joint",)
        packings = [
            pack([replace(segment, mode=mode)] * case.batch, self.bench.spec.transformer, device=self.bench.device)
            for mode in modes
        ]
        caches = [ReferenceCache() if case.caching else None for _ in range(case.batch)]

        def forward(step: int, img_BNC: Tensor, txt_BTX: Tensor, times_B: Tensor) -> Tensor:
            packing = packings[min(step, len(packings) - 1)]
            out_NC = self.transformer(img_BNC.flatten(0, 1), txt_BTX.flatten(0, 1), times_B, packing, caches)
            return out_NC.unflatten(0, (case.batch, -1))[:, : segment.num_image]

        return forward

    def decode(self, latents_BCrc: Tensor) -> Tensor:
        return torch.cat([self.autoencoder.decode(latent) for latent in latents_BCrc.split(1)])


def offloaded_networks(bench: Bench, way: Offload) -> tuple[Flux2Transformer, TextEncoder, Autoencoder]:
    """Our networks once more, at rest in the host's memory."""
    twins = []
    for network in bench.networks:
        with torch.device("meta"):
            twin = type(network)(network.spec)
        twin.load_state_dict({name: tensor.cpu() for name, tensor in network.state_dict().items()}, assign=True)
        twins.append(twin.requires_grad_(False).eval())
    # Of `components` the first: the transformer stays while the autoencoder works, as on cards of 12 and 16 GB.
    placement = next(each for each in WeightBytes.of(bench.spec, "bfloat16").placements() if each.offload == way)
    offload(*twins, placement, bench.device, pinned=bench.device.type == "cuda")
    return tuple(twins)


class Diffusers:
    """As its pipelines do it: prompts and pictures of a batch together."""

    def __init__(self, bench: Bench, way: Way) -> None:
        self.bench = bench
        self.transformer, self.autoencoder = diffusers_networks(bench)
        self.caching = False
        self.forward: Any = self.transformer
        if way.compiled:
            self.forward = torch.compile(self.transformer, dynamic=False, backend=bench.backend)
        self.text_encoder = qwen3(bench) if importlib.util.find_spec("transformers") else None

    def text(self, inputs: Inputs) -> Tensor:
        if self.text_encoder is None:  # said in the table's head
            return self.bench.text_encoder(inputs.ids, inputs.mask)
        out = self.text_encoder(
            input_ids=inputs.ids, attention_mask=inputs.mask, output_hidden_states=True, use_cache=False
        )
        return torch.cat([out.hidden_states[layer] for layer in self.bench.spec.text_encoder.layers], dim=-1)

    def references(self, inputs: Inputs) -> list[Tensor]:
        latents = [self.autoencoder.encode(picture).latent_dist.mode() for picture in inputs.pictures]
        return [(F.pixel_unshuffle(latent, 2) - self._mean) / self._std for latent in latents]

    def pack(self, case: Case) -> Forward:
        segment, device = case.segment(self.bench.spec), self.bench.device
        text, image = text_ids(segment.num_text).to(device), image_ids(*segment.image).to(device)
        parts = [image_ids(*grid, reference=k).to(device) for k, grid in enumerate(segment.references)]
        # Its caching variant puts the references before the picture.
        before = torch.cat([*parts, image] if case.caching else [image, *parts])
        self._set_processors(caching=case.caching)
        kept: list[Any] = []

        def forward(step: int, img_BNC: Tensor, txt_BTX: Tensor, times_B: Tensor) -> Tensor:
            arguments: dict[str, Any] = {"img_ids": before}
            if case.caching and step == 0:
                img_BNC = img_BNC.roll(segment.num_references, dims=1)
                arguments |= {"kv_cache_mode": "extract", "num_ref_tokens": segment.num_references}
            elif case.caching:
                arguments = {"img_ids": image, "kv_cache_mode": "cached", "kv_cache": kept[0]}
            out = self.forward(
                hidden_states=img_BNC,
                encoder_hidden_states=txt_BTX,
                timestep=times_B,
                txt_ids=text,
                return_dict=False,
                **arguments,
            )
            if case.caching and step == 0:
                kept[:] = [out[1]]
            return out[0][:, : segment.num_image]  # its caching pass gives the picture alone

        return forward

    def decode(self, latents_BCrc: Tensor) -> Tensor:
        return self.autoencoder.decode(F.pixel_shuffle(latents_BCrc * self._std + self._mean, 2)).sample

    def _set_processors(self, *, caching: bool) -> None:
        """Only where it changes something: what is compiled would be compiled again for new ones."""
        if caching == self.caching:
            return
        self.caching = caching
        from diffusers.models.transformers import transformer_flux2 as theirs

        double = theirs.Flux2KVAttnProcessor if caching else theirs.Flux2AttnProcessor
        single = theirs.Flux2KVParallelSelfAttnProcessor if caching else theirs.Flux2ParallelSelfAttnProcessor
        for blocks, processor in (
            (self.transformer.transformer_blocks, double),
            (self.transformer.single_transformer_blocks, single),
        ):
            for block in blocks:
                block.attn.set_processor(processor())

    @property
    def _mean(self) -> Tensor:
        return self.autoencoder.bn.running_mean.view(1, -1, 1, 1)

    @property
    def _std(self) -> Tensor:
        return (self.autoencoder.bn.running_var.view(1, -1, 1, 1) + self.bench.spec.autoencoder.batch_norm_eps).sqrt()


def diffusers_networks(bench: Bench) -> tuple[Any, Any]:
    """Its transformer and autoencoder on our weights, without a second copy of them."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    spec = bench.spec
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**configs.transformer_config(spec.transformer))
        autoencoder = AutoencoderKLFlux2(**configs.autoencoder_config(spec.autoencoder))
    of_transformer = convert_from_ours(diffusers_transformer(spec.transformer), bench.transformer.state_dict())
    transformer.load_state_dict(of_transformer, assign=True)
    of_autoencoder = convert_from_ours(diffusers_autoencoder(spec.autoencoder), bench.autoencoder.state_dict())
    of_autoencoder["bn.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    autoencoder.load_state_dict(of_autoencoder, assign=True)
    return transformer.eval(), autoencoder.eval()


def qwen3(bench: Bench) -> Any:
    """transformers' text encoder: our weights where we have them; the layers above ours, which it computes, as drawn."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    spec = bench.spec.text_encoder
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with torch.device(bench.device):
            network = Qwen3ForCausalLM(Qwen3Config(**configs.qwen3_config(spec, spec.num_layers)))
    finally:
        torch.set_default_dtype(before)
    network.load_state_dict(bench.text_encoder.state_dict(), strict=False, assign=True)
    return network.eval()


def make(contestant: Contestant, bench: Bench, case: Case, inputs: Inputs, watch: Stopwatch) -> Tensor:
    """A picture, stage by stage; gives its final latents."""
    with watch("text"):
        context_BTX = contestant.text(inputs)
    with watch("references"):
        latents = contestant.references(inputs)
    with watch("pack"):
        forward = contestant.pack(case)
    with watch("denoise"):
        references_BKC = tokens(latents, inputs.noise)
        latent_BNC = denoise(forward, case, inputs.noise, references_BKC, context_BTX, bench.dtype)
    with watch("decode"):
        grid = case.segment(bench.spec).image
        pixels = contestant.decode(latent_BNC.transpose(1, 2).unflatten(2, grid).to(bench.dtype)).float()
        ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return latent_BNC


def tokens(latents: list[Tensor], noise_BNC: Tensor) -> Tensor:
    """References as tokens (B, K, C), the same for every picture of the batch."""
    batch, _, channels = noise_BNC.shape
    if not latents:
        return noise_BNC.new_zeros(batch, 0, channels)
    return torch.cat([latent.flatten(2).transpose(1, 2) for latent in latents], dim=1).float().expand(batch, -1, -1)


def denoise(
    forward: Forward, case: Case, latent_BNC: Tensor, references_BKC: Tensor, txt_BTX: Tensor, dtype: torch.dtype
) -> Tensor:
    """The steps, for ours and theirs alike."""
    batch, num_image, _ = latent_BNC.shape
    for step, (now, then) in enumerate(pairwise(times(num_image, STEPS))):
        has_references = step == 0 or not case.caching
        img_BNC = torch.cat((latent_BNC, references_BKC), dim=1) if has_references else latent_BNC
        now_B = torch.full((batch,), now, device=latent_BNC.device)
        velocity_BNC = forward(step, img_BNC.to(dtype), txt_BTX, now_B)
        latent_BNC = latent_BNC + (then - now) * velocity_BNC.float()
    return latent_BNC


def work(spec: TransformerSpec, segment: Segment, batch: int, *, caching: bool, first: bool) -> tuple[float, float]:
    """Floating-point operations of one step, 2·m·n·k for each product: (the blocks' linear layers, all other)."""
    hidden, num_blocks = spec.hidden_size, spec.num_double_blocks + spec.num_single_blocks
    own, references = segment.num_text + segment.num_image, segment.num_references
    rows = own + (references if first or not caching else 0)
    stream = rows - segment.num_text
    if not caching:
        pairs = rows * rows
    else:  # references see themselves alone, and only in the first step
        pairs = own * (own + references) + (references * references if first else 0)
    linear = num_blocks * rows * 2 * (4 * hidden + 3 * spec.mlp_size) * hidden
    linear -= 2 * segment.num_text * (hidden + spec.mlp_size) * hidden  # rows of the last product that nothing reads
    attention = num_blocks * 4 * pairs * hidden
    edges = 2 * hidden * (2 * stream * spec.in_channels + segment.num_text * spec.context_size)
    vectors = batch * (2 if caching and first else 1)  # another one for the references' time
    times_and_modulation = 2 * hidden * (spec.time_channels + 18 * hidden) * vectors
    return batch * linear, batch * (attention + edges) + times_and_modulation


def work_of_all_steps(bench: Bench, case: Case) -> tuple[float, float]:
    segment = case.segment(bench.spec)
    steps = [
        work(bench.spec.transformer, segment, case.batch, caching=case.caching, first=step == 0)
        for step in range(STEPS)
    ]
    return sum(linear for linear, _ in steps), sum(other for _, other in steps)


class Stopwatch:
    """Seconds by stage, waiting for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        synchronize(self.device)
        begun = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - begun


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@lru_cache(maxsize=1)  # rows of one way follow each other
def contestant_for(bench: Bench, way: Way) -> Contestant:
    return Diffusers(bench, way) if way.engine == "diffusers" else Ours(bench, way)


def measure(
    way: Way, case: Case, bench: Bench, rates: dict[str, float], latents: dict[Case, Tensor], repeats: int
) -> Row:
    """One row. `latents` are those of our bf16 rows by case; others are compared with them."""
    row = Row(way, case)
    contestant, inputs = contestant_for(bench, way), bench.inputs(case)
    for _ in range(2 if way.compiled else 1):  # the first pass compiles, the one after it is warm
        latent = make(contestant, bench, case, inputs, Stopwatch(bench.device))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    passes, begun = [], time.perf_counter()
    while len(passes) < repeats and (len(passes) < 2 or time.perf_counter() < begun + LONGEST_S):
        watch = Stopwatch(bench.device)
        make(contestant, bench, case, inputs, watch)
        passes.append({**watch.seconds, "total": sum(watch.seconds.values())})
    row.seconds = {stage: statistics.median(seconds[stage] for seconds in passes) for stage in (*STAGES, "total")}
    linear, other = work_of_all_steps(bench, case)
    row.tflop = (linear + other) / 1e12
    if rates.keys() >= {"bf16", way.precision}:
        ideal = linear / rates[way.precision] + other / rates["bf16"]
        row.matrix_rate_share = ideal / 1e12 / row.seconds["denoise"]
    if way == Way("ours"):
        latents[case] = latent.cpu()
    if case in latents:
        reference = latents[case].double()
        row.differs = float((latent.cpu().double() - reference).norm() / reference.norm())
    if bench.device.type == "cuda":
        kept = bench.weight_bytes if way.offload != "none" else 0
        row.peak_gb = (torch.cuda.max_memory_allocated(bench.device) - kept) / 1e9
    return row


def in_fp8(network: Flux2Transformer) -> Flux2Transformer:
    """The same network with its blocks in fp8; it shares all else with `network`, which stays as it is."""
    with torch.device("meta"):
        quantized = Flux2Transformer(network.spec)
    quantized.load_state_dict(network.state_dict(), assign=True)
    for blocks in (quantized.double_blocks, quantized.single_blocks):
        quantize(blocks, "fp8")
    return quantized.requires_grad_(False).eval()


def matrix_rate(precision: str, size: int, device: torch.device) -> float:
    """TFLOP/s of large square products of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    if precision == "fp8":
        require_fp8(device)
        factors = (*quantize_rows(a), *quantize_rows(b))

    def multiply() -> None:
        if precision == "fp8":
            scaled_product(*factors)
        else:
            torch.mm(a, b.t())

    seconds = []
    for _ in range(6):
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(10):
            multiply()
        synchronize(device)
        seconds.append((time.perf_counter() - begun) / 10)
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e12


def build(variant: str, device: torch.device, backend: str | None) -> Bench:
    """Our networks with random weights, drawn where they are used."""
    spec, dtype = VARIANTS[variant].spec, torch.bfloat16

    def network(built: Any, of: Any) -> Any:
        with torch.device("meta"):
            empty = built(of)
        state = {
            name: draw(name, tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype, device)
            for name, tensor in empty.state_dict().items()
        }
        empty.load_state_dict(state, assign=True)
        return empty.requires_grad_(False).eval()

    return Bench(
        spec=spec,
        device=device,
        dtype=dtype,
        transformer=network(Flux2Transformer, spec.transformer),
        text_encoder=network(TextEncoder, spec.text_encoder),
        autoencoder=network(Autoencoder, spec.autoencoder),
        backend=backend or ("inductor" if device.type == "cuda" else "eager"),
    )


def in_words(error: Exception) -> str:
    """A failure in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def run(bench: Bench, variant: str, budget_s: float, repeats: int, begun: float) -> dict[str, Any]:
    """All rates and rows; each is printed when it is measured, so that an interrupted run leaves what it had."""
    rates: dict[str, float] = {}
    problems: dict[str, str] = {}
    for precision in ("bf16", "fp8"):
        try:
            rates[precision] = matrix_rate(precision, MATRIX_SIZE[variant], bench.device)
            print(f"matrix rate, {precision}: {rates[precision]:.1f} TFLOP/s", flush=True)
        except Exception as error:
            problems[precision] = in_words(error)
            print(f"matrix rate, {precision}: {problems[precision]}", flush=True)
    print_head()
    rows: list[Row] = []
    latents: dict[Case, Tensor] = {}
    for way, case in plan(variant):
        left = budget_s - (time.perf_counter() - begun)
        expected = EXPECTED_S["compiled" if way.compiled else "eager"] if bench.device.type == "cuda" else 0.0
        if left <= expected:
            row = Row(way, case, problem=f"skipped: {max(left, 0):.0f} s of {budget_s:.0f} s were left")
        else:
            try:
                if way.compiled:
                    torch._dynamo.reset()  # noqa: SLF001 - the documented way to begin anew
                row = measure(way, case, bench, rates, latents, repeats)
            except Exception as error:
                row = Row(way, case, problem=in_words(error))
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        rows.append(row)
        print_row(row)
    return {"matrix_rate_tflops": rates, "matrix_rate_problems": problems, "rows": rows}


def ratios(rows: list[Row]) -> list[dict[str, Any]]:
    """diffusers' time over ours, in bf16, eager against eager and compiled against compiled."""
    measured = {(row.way, row.case): row.seconds for row in rows if row.problem is None}
    found = []
    for (way, case), theirs in measured.items():
        ours = measured.get((Way("ours", compiled=way.compiled), case))
        if way.engine == "diffusers" and ours:
            stages = {stage: theirs[stage] / ours[stage] for stage in ("text", "denoise", "decode", "total")}
            found.append({"name": case.name, "compiled": way.compiled, "diffusers_over_ours": stages})
    return found


def aims(rows: list[Row], variant: str) -> list[dict[str, Any]]:
    """What an H200-class card shall reach, for every way that was measured."""
    side = SIDES[variant][0]
    ours = [row for row in rows if row.way.engine == "ours" and row.way.offload == "none"]
    measured = {(row.way, row.case): row for row in ours if row.problem is None}
    most = Case(side, references=max(REFERENCES), caching=True)
    found = []
    for (way, case), row in measured.items():
        if case == Case(side):
            limit = {"bf16": 0.300, "fp8": 0.200}[way.precision]
            found.append(aim(way, f"{case.name}, seconds end to end", row.seconds["total"], at_most=limit))
            if row.matrix_rate_share is not None:
                found.append(aim(way, "denoising, share of the matrix rate", row.matrix_rate_share, at_least=0.85))
        if case == most and (way, Case(side)) in measured:
            ratio = row.seconds["total"] / measured[way, Case(side)].seconds["total"]
            found.append(aim(way, f"{case.name}, over text to image", ratio, at_most=1.6))
    return found


def aim(
    way: Way, what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    met = measured <= at_most if at_most is not None else measured >= (at_least or 0.0)
    return {"row": way.name, "aim": what, "measured": measured, "at_most": at_most, "at_least": at_least, "met": met}


def about(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    facts: dict[str, Any] = {"platform": platform.platform(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("diffusers", "transformers"):
        facts[package] = version(package) if importlib.util.find_spec(package) else None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": [properties.major, properties.minor],
        }
    return facts


def print_head() -> None:
    columns = "".join(f"{stage:>11}" for stage in (*STAGES, "total"))
    print(f"\n{'milliseconds':50}{columns}{'TFLOP':>9}{'rate':>7}{'differs':>9}{'peak GB':>9}")


def print_row(row: Row) -> None:
    label = f"{row.way.name:24}{row.case.name}"
    if row.problem is not None:
        print(f"{label:50} {row.problem}", flush=True)
        return
    columns = "".join(f"{1000 * row.seconds[stage]:11.2f}" for stage in (*STAGES, "total"))
    rate = f"{row.matrix_rate_share:7.1%}" if row.matrix_rate_share is not None else f"{'–':>7}"
    differs = f"{row.differs:9.4f}" if row.differs is not None else f"{'–':>9}"
    peak = f"{row.peak_gb:9.1f}" if row.peak_gb is not None else f"{'–':>9}"
    print(f"{label:50}{columns}{row.tflop:9.3f}{rate}{differs}{peak}", flush=True)


def print_summary(result: dict[str, Any]) -> None:
    print("\ndiffusers' time over ours")
    for ratio in result["ratios"]:
        stages = "".join(f"  {stage} {value:.2f}" for stage, value in ratio["diffusers_over_ours"].items())
        print(f"{ratio['name'] + (' (compiled)' if ratio['compiled'] else ''):50}{stages}")
    print("\naims for an H200-class card" + ("" if result["aims"] else ": not for this device"))
    for goal in result["aims"]:
        limit = f"at most {goal['at_most']:g}" if goal["at_most"] else f"at least {goal['at_least']:g}"
        verdict = "met" if goal["met"] else "missed"
        print(f"{goal['row']:24}{goal['aim']:54}{goal['measured']:9.3f}  {limit:14} {verdict}")
    print(f"\n{result['seconds']:.0f} s of {result['budget_s']:.0f} s")


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget-s", type=float, default=460.0, help="after which no further row is begun")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--variant", choices=VARIANTS, help="klein-4b on a GPU, else tiny")
    parser.add_argument("--backend", help="of torch.compile: inductor on a GPU, else eager, which compiles nothing")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    variant = arguments.variant or ("klein-4b" if device.type == "cuda" else "tiny")
    facts = about(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    absent = [package for package in ("diffusers", "transformers") if facts[package] is None]
    if absent:
        print(f"not installed: {', '.join(absent)} (without transformers diffusers' rows use our text encoder)")
    with torch.no_grad():
        bench = build(variant, device, arguments.backend)
        print(f"{variant} on {device}, {STEPS} steps, built in {time.perf_counter() - begun:.1f} s")
        result = run(bench, variant, arguments.budget_s, arguments.repeats, begun)
    rows: list[Row] = result["rows"]
    result |= {
        **facts,
        "device": str(device),
        "variant": variant,
        "backend": bench.backend,
        "budget_s": arguments.budget_s,
        "seconds": time.perf_counter() - begun,
        "ratios": ratios(rows),
        "aims": aims(rows, variant) if device.type == "cuda" else [],
        "rows": [row.to_json() for row in rows],
    }
    print_summary(result)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
