"""What learns: all weights of a transformer of its own, or a low-rank adapter on the teacher's; and its moving average.

Shape suffixes: R rank, I input features, O output features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kleinbild.model.adapters.adapter import Adapter, Entry, LowRank
from kleinbild.model.adapters.applied import Live, Use, bind
from kleinbild.model.adapters.magnitude import merged
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.train.distill.field import Field
from kleinbild.train.distill.recipe import Recipe
from kleinbild.train.networks import layer_shape, pieces, target_layers, uniform
from kleinbild.train.optimizers import average


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
        average(self.average, self.parameters, recipe.ema_decay, self.num_updates)
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
    adapter = low_rank(transformer, rank, seed)
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


def low_rank(transformer: Flux2Transformer, rank: int, seed: int) -> Adapter:
    """Entries for the blocks' linear layers; queries, keys and values have one each, as other programs want them."""
    generator, device = torch.Generator("cpu").manual_seed(seed), transformer.img_in.weight.device
    entries = []
    for module, layer in target_layers(transformer, ("blocks",)).items():
        num_out, num_in = layer_shape(layer)
        for _, rows in pieces(module, num_out):
            num_rows = num_out if rows is None else rows[1] - rows[0]
            width = min(rank, num_in, num_rows)
            a_RI = uniform(width, num_in, generator).to(device)
            change = LowRank(nn.Parameter(a_RI), nn.Parameter(torch.zeros(num_rows, width, device=device)))
            entries.append(Entry(module, change, rows=rows))
    return Adapter(tuple(entries))


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
