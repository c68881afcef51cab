"""What learns: all weights of a transformer of its own, or a low-rank adapter on the teacher's; and its moving average.

Shape suffixes: R rank, I input features, O output features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kleinbild.model.adapters.adapter import Adapter, Entry, LowRank
from kleinbild.model.adapters.applied import Live, Use, bind
from kleinbild.model.adapters.magnitude import merged
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.train.distill.field import Field
from kleinbild.train.distill.recipe import Recipe


@dataclass(slots=True, eq=False)
class Trained:
    """A field whose `parameters` learn, and their average over the last updates. `adapter` None: they are its weights."""

    field: Field
    parameters: tuple[nn.Parameter, ...]
    optimizer: torch.optim.AdamW
    average: list[Tensor]
    adapter: Adapter | None = None
    num_updates: int = 0

    def update(self, loss: Tensor, rate: float, recipe: Recipe) -> float:
        """One step down `loss` at a learning rate; gives the norm of the gradient before it was clipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        self.optimizer.step()
        self.num_updates += 1
        decay = min(recipe.ema_decay, self.num_updates / (self.num_updates + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.parameters), 1 - decay)
        return float(norm)

    @contextmanager
    def averaged(self) -> Iterator[Field]:
        """The field with its averaged parameters, while the block runs."""
        learning = [parameter.data for parameter in self.parameters]
        try:
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.data = mean
            yield self.field
        finally:
            for parameter, own in zip(self.parameters, learning, strict=True):
                parameter.data = own

    def state(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach().clone() for parameter in self.parameters],
            "average": [mean.clone() for mean in self.average],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "num_updates": self.num_updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(kept)
            for mean, kept in zip(self.average, state["average"], strict=True):
                mean.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]


def whole(teacher: Field, betas: tuple[float, float] = (0.9, 0.999)) -> Trained:
    """All weights, in float32, of a copy of the teacher with its adapters folded in."""
    transformer = copy.deepcopy(teacher.transformer).float()
    fold(transformer, teacher.uses)
    transformer.requires_grad_(True)
    return _trained(Field(transformer, (), teacher.mixed), tuple(transformer.parameters()), betas, None)


def lightning(teacher: Field, rank: int, seed: int, betas: tuple[float, float] = (0.9, 0.999)) -> Trained:
    """A low-rank adapter in all linear layers of the teacher's blocks, beside the teacher's own adapters; at first it changes nothing."""
    transformer = teacher.transformer
    adapter = low_rank(transformer.spec, rank, seed, transformer.img_in.weight.device)
    use = Use(bind(adapter, transformer))
    parameters = [tensor for entry in adapter.entries for tensor in entry.change.tensors]
    assert all(isinstance(tensor, nn.Parameter) for tensor in parameters)
    field = Field(transformer, (*teacher.uses, use), teacher.mixed)
    return _trained(field, tuple(parameters), betas, adapter)  # type: ignore[arg-type]  # as asserted


def _trained(
    field: Field, parameters: tuple[nn.Parameter, ...], betas: tuple[float, float], adapter: Adapter | None
) -> Trained:
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=betas, weight_decay=0.0)
    return Trained(field, parameters, optimizer, [parameter.detach().clone() for parameter in parameters], adapter)


def low_rank(spec: TransformerSpec, rank: int, seed: int, device: torch.device) -> Adapter:
    """Entries for the blocks' linear layers; queries, keys and values have one each, as other programs want them."""
    generator = torch.Generator("cpu").manual_seed(seed)
    entries = []
    for module, num_in, num_out, rows in _layers(spec):
        width = min(rank, num_in, num_out)
        a_RI = (torch.rand((width, num_in), generator=generator) * 2 - 1) / math.sqrt(num_in)
        change = LowRank(nn.Parameter(a_RI.to(device)), nn.Parameter(torch.zeros(num_out, width, device=device)))
        entries.append(Entry(module, change, rows=rows))
    return Adapter(tuple(entries))


def _layers(spec: TransformerSpec) -> Iterator[tuple[str, int, int, tuple[int, int] | None]]:
    """Module, inputs, outputs and, of a part of the outputs, its rows."""
    width, mlp = spec.hidden_size, spec.mlp_size
    for i in range(spec.num_double_blocks):
        for stream in ("img", "txt"):
            at = f"double_blocks.{i}.{stream}"
            yield from ((f"{at}_attn.qkv", width, width, (k * width, (k + 1) * width)) for k in range(3))
            yield f"{at}_attn.proj", width, width, None
            yield f"{at}_mlp.0", width, 2 * mlp, None
            yield f"{at}_mlp.2", mlp, width, None
    for i in range(spec.num_single_blocks):
        yield f"single_blocks.{i}.linear1", width, 3 * width + 2 * mlp, None
        yield f"single_blocks.{i}.linear2", width + mlp, width, None


@torch.no_grad()
def fold(transformer: Flux2Transformer, uses: Sequence[Use]) -> None:
    """Writes adapters into the weights of `transformer`, a copy of the one that they are bound to."""
    for use in uses:
        for change in (change for changes in use.bound.by_layer.values() for change in changes):
            assert isinstance(change, Live)  # what `bind` makes
            weight_OI = transformer.get_submodule(change.entry.module).get_parameter("weight")
            weight_OI.copy_(merged(weight_OI, change.entry, use.strength))


def frozen(adapter: Adapter) -> Adapter:
    """The same adapter, its tensors free of gradients and no longer those that learn."""
    return Adapter(
        tuple(
            Entry(
                entry.module,
                LowRank(*(tensor.detach().clone() for tensor in entry.change.tensors)),
                entry.scale,
                entry.rows,
            )
            for entry in adapter.entries
        )
    )
