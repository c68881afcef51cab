"""A model in memory, ready to make pictures: load once, use from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kleinbild.core.errors import RequestError
from kleinbild.core.messages import Terms
from kleinbild.core.metadata import Record
from kleinbild.core.offload import Offload, read_offload
from kleinbild.core.precision import Precision, choose_precision
from kleinbild.core.requests import PictureRequest, replay_request
from kleinbild.engine import machine
from kleinbild.engine.adapters import ADAPTER_BYTES, AdapterCache
from kleinbild.engine.batcher import Batcher, OnStep
from kleinbild.engine.compiled import Compiled
from kleinbild.engine.picture import Picture
from kleinbild.engine.prepare import size_range
from kleinbild.engine.residence import choose, place
from kleinbild.model.weights import Model
from kleinbild.model.weights.load import open_model

FREE_SHARE = 0.9


class Engine:
    """One loaded model. `device`, `dtype` and `offload` say what was chosen, `load_seconds` what loading took.

    Without `device`: CUDA if there is one, else Apple's GPU (mps), else the CPU. Without `dtype`: float32 for small
    models, bfloat16 for those with billions of parameters. "int8" and "fp8" have the linear layers of all blocks in
    eight bits, and bfloat16 elsewhere; where they do not work, `notes` say so, and it is bfloat16. Without `offload`:
    the fastest way in which weights and a picture of the model's own size fit into the device's free memory
    (`engine.residence`); CapacityError where none does. Pictures do not depend on it. On a CPU it is "none": others save
    nothing there. Thread-safe: one pass at a time, others wait.

    With `compile` a pass of the transformer and the decoder are compiled where that proves to be right and faster
    (`engine.compiled`); the first picture of each size, and of each mix of sizes, waits for it, half a minute on two CPU
    cores. Pictures may then differ in their last bits from plain ones and with their company. `notes` say what runs
    plainly and why: offloaded models and, on a CPU, those with billions of parameters always do.

    Adapters that requests name are opened when they are first used; up to `adapter_bytes` of them stay (`adapters`).
    """

    def __init__(
        self,
        model: str | Path = "nano",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        offload: Offload | None = None,
        compile: bool = False,  # noqa: A002 - as torch calls it
        adapter_bytes: int = ADAPTER_BYTES,
    ) -> None:
        begun = time.perf_counter()
        self.name = str(model)
        wanted = None if offload is None else read_offload(offload)
        opened = open_model(model, device=choose_device(device), precision=choose_precision(dtype))
        self.placement = choose(opened.name, opened.spec, opened.precision, own_memory(opened.device), wanted)
        self.model: Model = opened.load(weights_on=None if self.offload == "none" else "cpu")
        if self.offload != "none":
            place(self.model, self.placement)
        self.sizes = size_range(self.model.settings, self.model.spec)
        self.load_seconds = time.perf_counter() - begun
        self.compiled = Compiled(self.model) if compile else None
        self.adapters = AdapterCache(self.model, adapter_bytes)
        self._batcher = Batcher(self.model, adapters=self.adapters, compiled=self.compiled)
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> Precision:
        """What it computes in: one of `core.precision.PRECISIONS`."""
        return self.model.precision

    @property
    def notes(self) -> tuple[str, ...]:
        """What came out otherwise than asked for. They may grow with each picture, where the engine compiles."""
        return self.model.notes if self.compiled is None else (*self.model.notes, *self.compiled.notes)

    @property
    def offload(self) -> Offload:
        return self.placement.offload

    def room(self) -> int | None:
        """Bytes that pictures may take beside the weights, those included that are still to come to the device."""
        free, offloaded = free_memory(self.device), self.model.offloaded
        if free is None or offloaded is None:
            return free
        return max(0, free - (self.placement.most - offloaded.traffic.resident_bytes))

    def generate(self, request: PictureRequest, *, on_step: OnStep | None = None) -> Picture:
        """The picture that `request` asks for. `on_step(done, total)` is called after each step."""
        return self.generate_all([request], on_step=on_step)[0]

    def generate_all(self, requests: Iterable[PictureRequest], *, on_step: OnStep | None = None) -> list[Picture]:
        """One picture a request, all in one packed pass; sizes, steps, guidance and references may differ."""
        return self._make(list(requests), on_step, Terms())

    def _make(self, requests: Sequence[PictureRequest], on_step: OnStep | None, terms: Terms) -> list[Picture]:
        for request in requests:
            if request.model not in (self.name, self.model.name):
                raise RequestError(
                    f"the request is for the model {request.model!r}, this engine runs {self.name!r}",
                    "make an Engine for it, or ask for this one",
                )
        with self._lock:
            return self._batcher.make(requests, on_step, terms)

    def replay(
        self,
        record: Record,
        references: Sequence[bytes] = (),
        mask: bytes | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Picture:
        """The picture that `record` was taken from, to the pixel. `references` and `mask` are the files used then.

        Always by the plain networks: of a picture that compiled ones made, some pixels may differ.

        Raises RequestError where this engine's weights, type or device are not those of the record: the picture would be
        another one.
        """
        ours = {
            "weights": self.model.fingerprint,
            "dtype": self.dtype,
            "device": self.device.type,
        }
        then = {"weights": record.fingerprint, "dtype": record.dtype, "device": record.device}
        if differing := [name for name in ours if ours[name] != then[name]]:
            what = ", ".join(f"{name} {then[name]} then, {ours[name]} now" for name in differing)
            raise RequestError(
                f"the picture was made by {record.model} in other circumstances ({what}): it would not be the same",
                "use the same model, dtype and device; or make a new picture from its prompt and seed",
            )
        request = replace(replay_request(record, references, mask), model=self.name)
        return self._make([request], on_step, Terms(exact=True))[0]


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the best one here. Raises RequestError for one that is not here."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"{device!r} is not a device", "use cpu, cuda, cuda:1 or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise RequestError(
            f"there is no device {str(chosen)!r} on this machine", "use cpu, or leave the choice to Kleinbild"
        )
    return chosen


def own_memory(device: torch.device) -> int | None:
    """Bytes that may be used of memory that the device has to itself. None where it shares the host's."""
    return free_memory(device) if device.type == "cuda" else None


def free_memory(device: torch.device) -> int | None:
    """Bytes that may be used from now on; others need some, too. None where the system does not tell."""
    available = available_memory(device)
    return None if available is None else int(FREE_SHARE * available)


def available_memory(device: torch.device) -> int | None:
    """Bytes that nobody uses. None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = machine.memory()
    return None if found is None else found[1]


def kernels(device: torch.device) -> str:
    """What computes: last bits of a picture may depend on it."""
    if device.type == "cuda":
        return f"torch {torch.__version__} cuda {torch.version.cuda} {torch.cuda.get_device_name(device)}"
    return f"torch {torch.__version__} {device.type} {torch.backends.cpu.get_cpu_capability()}"
