"""One process or several that train together, through Accelerate: who takes which samples, and sums over all.

Every process draws the same step and takes its share of the batch; gradients are averaged once a step. So the weights
are those that one process would have made, up to the order in which numbers are added. Started alone, nothing of
Accelerate is imported.

    accelerate launch --multi_gpu --num_processes 2 -m kleinbild.train.worker FOLDER

FOLDER holds a recipe (`kleinbild train` itself starts one process). A run may go on with another number of processes.

- Supported: several processes on one machine, a GPU each, or on CPUs (gloo); tests run two of these.
- Not tested: several machines. They must share FOLDER; each encodes what it does not find in its own cache.
- Not supported, and refused: sharding by FSDP, DeepSpeed or Megatron. Each process holds the whole model, so more of them
  make a run faster, not smaller: for less memory there are gradient_checkpointing and precision=int8 or nf4.
- Accelerate's own mixed precision and accumulation are not used: the recipe has `precision` and `accumulation`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kleinbild.core.errors import EngineError, RequestError
from kleinbild.train.attention import leave_out_cudnn

LAUNCH = "`accelerate launch --multi_gpu --num_processes N -m kleinbild.train.worker FOLDER`"
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""What the launcher says in the environment of those it starts."""
NUMBERS_AT_ONCE = 16 * 2**20  # gradients travel in pieces of 64 MiB


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all: `index` of `count`. `accelerator` is None where it is alone."""

    device: torch.device
    index: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def is_first(self) -> bool:
        """The one that writes and speaks."""
        return self.index == 0

    def share(self, samples: Sequence[int]) -> Sequence[int]:
        """The samples of a batch that are this process's."""
        length = len(samples) // self.count
        return samples[self.index * length : (self.index + 1) * length]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the tensors by their means over all processes."""
        if self.count == 1:
            return
        piece: list[Tensor] = []
        for tensor in tensors:
            if piece and sum(map(Tensor.numel, piece)) + tensor.numel() > NUMBERS_AT_ONCE:
                self._average_piece(piece)
                piece = []
            piece.append(tensor)
        if piece:
            self._average_piece(piece)

    def mean(self, *values: float) -> list[float]:
        """The means over all processes."""
        if self.count == 1:
            return list(values)
        reduced: Tensor = self.accelerator.reduce(torch.tensor(values, device=self.device), "mean")
        return reduced.tolist()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes first; then the others."""
        with self.accelerator.main_process_first() if self.accelerator is not None else nullcontext():
            yield

    def _average_piece(self, piece: Sequence[Tensor]) -> None:
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in piece]), "mean")
        for tensor, mean in zip(piece, flat.split([tensor.numel() for tensor in piece]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def join_processes(device: str | None = None) -> Processes:
    """This process's place among those that `accelerate launch` started, or alone. Raises RequestError where they were
    told to shard, EngineError where they do not see each other."""
    leave_out_cudnn()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    if sharding := [name for name in SHARDING if os.environ.get(name, "false").lower() in ("true", "1")]:
        raise RequestError(
            f"{', '.join(name.removeprefix('ACCELERATE_USE_') for name in sharding)}: a run is not sharded, each process holds the whole model",
            f"start them with {LAUNCH}; gradient_checkpointing=true and precision=int8 or nf4 take less memory",
        )
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes != int(os.environ["WORLD_SIZE"]):  # all would think themselves alone, and write
        raise EngineError(
            f"{os.environ['WORLD_SIZE']} processes were started, but Accelerate sees {accelerator.num_processes}",
            f"start them with {LAUNCH}",
        )
    return Processes(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)


def check_share(processes: Processes, batch_size: int) -> None:
    """Raises RequestError where the batch cannot be divided among the processes."""
    if batch_size % processes.count:
        raise RequestError(
            f"a batch of {batch_size} cannot be divided among {processes.count} processes",
            f"batch_size counts all of them: use a multiple of {processes.count}",
        )
