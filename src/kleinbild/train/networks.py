"""What is trained: an adapter's parameters around a frozen base, or the base itself.

An adapter under training is the same value that is served (`model.adapters`): entries whose tensors are parameters, in
float32. q, k and v of a fused projection are entries of their own, of full rank each, which is how files spell them.

Shape suffixes: I input features, O output features (of the entry's rows), R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random

import torch
from torch import Tensor, nn

from kleinbild.core.errors import RequestError
from kleinbild.model.adapters.adapter import Adapter, Entry, Kronecker, LowRank
from kleinbild.model.adapters.applied import Use, bind
from kleinbild.model.packing import Packing
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.train.recipe import Method, Recipe

DOUBLE = tuple(f"{s}_{part}" for s in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2"))
SINGLE = ("linear1", "linear2")
EDGES = ("img_in", "txt_in", "final_layer.linear")
PRESETS: Mapping[str, tuple[str, ...]] = {
    # Single blocks by name: a pattern for "proj" or "to_out" alone would leave half of their work untrained.
    "blocks": (*(f"double_blocks.*.{name}" for name in DOUBLE), *(f"single_blocks.*.{name}" for name in SINGLE)),
    # In single blocks attention and MLP are one projection, which files cannot divide.
    "attention": (
        *(f"double_blocks.*.{name}" for name in DOUBLE if "attn" in name),
        *(f"single_blocks.*.{name}" for name in SINGLE),
    ),
    "all": (*(f"double_blocks.*.{name}" for name in DOUBLE), *(f"single_blocks.*.{name}" for name in SINGLE), *EDGES),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the adapter that is trained, without its numbers. `name` begins the names of its parameters."""

    name: str
    module: str
    rows: tuple[int, int] | None
    method: Method
    scale: float


@dataclass(slots=True, eq=False)
class Trained:
    """Everything that a step changes but the optimizers' moments. `average` is the weights' moving one, if kept.

    `step` counts the steps done, `num_tokens` the tokens that they saw (`objective.num_tokens_of`), of all processes.
    """

    transformer: Flux2Transformer
    parts: tuple[Part, ...]  # none: the base itself is trained
    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    num_tokens: int = 0

    @property
    def is_full(self) -> bool:
        return not self.parts

    def weights(self) -> dict[str, Tensor]:
        """What is kept and served: the average if there is one, else the weights as they are."""
        return self.average or {name: parameter.detach() for name, parameter in self.parameters.items()}

    def adapter(self) -> Adapter:
        """The adapter as it would be served now. Raises ValueError where the base itself is trained."""
        if self.is_full:
            raise ValueError("there is no adapter: the base itself is trained")
        return adapter_of(self.parts, self.weights())

    @contextmanager
    def served(self) -> Iterator[tuple[Use, ...]]:
        """The adapters to hand to the transformer while `weights` are in it, for previews and validation."""
        if not self.is_full:
            yield (Use(bind(self.adapter(), self.transformer)),)
            return
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()} if self.average else {}
        _copy(self.average, self.parameters)
        try:
            yield ()
        finally:
            _copy(kept, self.parameters)


class Network(nn.Module):
    """The transformer as it is trained: packed rows to velocities, with the adapter's parameters in every request."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.transformer = trained.transformer
        bound = None if trained.is_full else bind(adapter_of(trained.parts, trained.parameters), trained.transformer)
        self.uses = () if bound is None else (Use(bound),)

    def forward(self, noisy_NC: Tensor, context_MX: Tensor, times_R: Tensor, packing: Packing) -> Tensor:
        dtype = self.transformer.img_in.weight.dtype
        adapters = [self.uses] * len(packing.segments)
        mixed = (
            dtype != torch.float32
        )  # the adapter's numbers are float32: products are rounded, sums of weights are not
        with torch.autocast(noisy_NC.device.type, dtype, enabled=mixed):
            velocity: Tensor = self.transformer(
                noisy_NC.to(dtype), context_MX.to(dtype), times_R, packing, adapters=adapters
            )
        return velocity


def trained_from(transformer: Flux2Transformer, recipe: Recipe) -> Trained:
    """What `recipe` trains of `transformer`, at its first step. The base is frozen but for method full."""
    transformer.requires_grad_(requires_grad=False)
    if recipe.method == "full":
        parameters = _base_parameters(transformer, recipe.targets)
        trained = Trained(transformer, (), parameters)
    else:
        layers = target_layers(transformer, recipe.targets or ("blocks",))
        parts = tuple(part for name, layer in layers.items() for part in _parts(name, layer_shape(layer), recipe))
        parameters = {}
        for part in parts:
            parameters |= _initial(part, layers[part.module], recipe)
        trained = Trained(transformer, parts, parameters)
    if recipe.ema:
        trained.average = {name: parameter.detach().clone() for name, parameter in trained.parameters.items()}
    return trained


def target_layers(transformer: Flux2Transformer, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers that presets and patterns name. Raises RequestError for one that names none."""
    known = {
        name: module
        for name, module in transformer.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in PRESETS["all"])
    }
    chosen: dict[str, nn.Module] = {}
    for target in targets:
        patterns = PRESETS.get(target, (target,))
        found = {name: layer for name, layer in known.items() if any(fnmatchcase(name, p) for p in patterns)}
        if not found:
            raise RequestError(
                f"targets: {target!r} names no layer that can be trained",
                f"use {', '.join(PRESETS)}, or patterns of names such as {next(iter(known))}",
            )
        chosen |= found
    return {name: layer for name, layer in known.items() if name in chosen}


def adapter_of(parts: Sequence[Part], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter of which `tensors` are the numbers."""
    return Adapter(tuple(_entry(part, tensors) for part in parts))


def _entry(part: Part, tensors: Mapping[str, Tensor]) -> Entry:
    change: LowRank | Kronecker
    if part.method == "lokr":
        small = tensors.get(f"{part.name}.w2")
        w2 = LowRank(tensors[f"{part.name}.w2_b"], tensors[f"{part.name}.w2_a"]) if small is None else small
        change = Kronecker(tensors[f"{part.name}.w1"], w2)
    else:
        change = LowRank(tensors[f"{part.name}.a"], tensors[f"{part.name}.b"])
    return Entry(part.module, change, part.scale, part.rows, tensors.get(f"{part.name}.magnitude"))


def _parts(module: str, shape: tuple[int, int], recipe: Recipe) -> list[Part]:
    """A layer's entries."""
    num_out, num_in = shape
    parts = []
    for name, rows in pieces(module, num_out):
        num_rows = num_out if rows is None else rows[1] - rows[0]
        whole = recipe.method == "lokr" and not _is_divided(num_rows, num_in, recipe.rank)
        parts.append(Part(name, module, rows, recipe.method, 1.0 if whole else recipe.alpha / recipe.rank))
    return parts


def pieces(module: str, num_out: int) -> list[tuple[str, tuple[int, int] | None]]:
    """Names and rows of a layer's entries: q, k and v apart where they are one projection, else all rows (None)."""
    if not module.endswith(".qkv"):
        return [(module, None)]
    third = num_out // 3
    return [(f"{module}.{each}", (i * third, (i + 1) * third)) for i, each in enumerate("qkv")]


def _initial(part: Part, layer: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """A part's parameters before the first step, at which it changes nothing."""
    (num_out, num_in), device = layer_shape(layer), _device(layer)
    num_rows = num_out if part.rows is None else part.rows[1] - part.rows[0]
    generator = torch.Generator().manual_seed(Random(f"{recipe.seed}-{part.name}").getrandbits(60))
    tensors: dict[str, Tensor]
    if part.method == "lokr":
        (p, s), (q, t) = factors(num_rows), factors(num_in)
        tensors = {"w1": torch.zeros(p, q)}
        if _is_divided(num_rows, num_in, recipe.rank):
            tensors |= {"w2_a": uniform(s, recipe.rank, generator), "w2_b": uniform(recipe.rank, t, generator)}
        else:
            tensors["w2"] = uniform(s, t, generator)
    else:
        tensors = {"a": uniform(recipe.rank, num_in, generator), "b": torch.zeros(num_rows, recipe.rank)}
    if part.method == "dora":
        weight_OI = layer.get_parameter("weight").detach()[slice(*(part.rows or (0, num_out)))]
        tensors["magnitude"] = weight_OI.float().norm(dim=1)
    return {f"{part.name}.{name}": nn.Parameter(tensor.to(device)) for name, tensor in tensors.items()}


def factors(number: int) -> tuple[int, int]:
    """`number` as a product (small, large) of two factors that are as near to each other as can be (LoKr)."""
    small = next(each for each in range(math.isqrt(number), 0, -1) if number % each == 0)
    return small, number // small


def _is_divided(num_rows: int, num_in: int, rank: int) -> bool:
    """Whether LoKr's large factor is a product of two of `rank`: only where that is smaller."""
    return rank < max(factors(num_rows)[1], factors(num_in)[1]) / 2


def uniform(num_out: int, num_in: int, generator: torch.Generator) -> Tensor:
    """Kaiming's, with the gain that PEFT has: evenly within ±1/√inputs."""
    spread: Tensor = torch.rand(num_out, num_in, generator=generator) * 2 - 1
    return spread.div_(math.sqrt(num_in))


def _base_parameters(transformer: Flux2Transformer, targets: Sequence[str]) -> dict[str, nn.Parameter]:
    layers = target_layers(transformer, targets) if targets else {}
    chosen = {f"{name}.weight" for name in layers}
    parameters = {n: p for n, p in transformer.named_parameters() if not targets or n in chosen}
    for parameter in parameters.values():
        parameter.requires_grad_()
    return parameters


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs), of quantised layers too."""
    return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]  # linear layers have them


def _device(layer: nn.Module) -> torch.device:
    return next(t for t in (*layer.parameters(), *layer.buffers())).device


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, nn.Parameter]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
