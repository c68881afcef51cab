"""Networks larger than their device: weights rest in the host's memory and come to the device when they are needed.

Two ways. `Turns`: one network at a time is on the device, whole, from when any part of it is first run until another is.
`BlockStream`: two blocks are on the device; while one computes, the next one is copied into the place of the one before.
Networks know nothing of either: hooks on their modules bring the weights, and every number comes out as if all of them
had been there. The autoencoder is small and stays.

Nothing here depends on the kind of device: with the CPU for one, the very same is done, which tests look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from kleinbild.model.placement import LOOKED_UP, Placement, divide, packed_bytes


@dataclass(slots=True)
class Traffic:
    """What was brought to the device so far; the bytes of weights that are there now, and the most that ever were."""

    num_moves: int = 0
    moved_bytes: int = 0
    resident_bytes: int = 0
    peak_bytes: int = 0

    def move(self, num_bytes: int) -> None:
        self.num_moves += 1
        self.moved_bytes += num_bytes

    def hold(self, num_bytes: int) -> None:
        """So many more bytes, or fewer if negative."""
        self.resident_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.resident_bytes)


@dataclass(frozen=True, slots=True)
class Offloaded:
    """How a model's weights are placed, and what that has come to."""

    placement: Placement
    traffic: Traffic


def offload(
    transformer: nn.Module,
    text_encoder: nn.Module,
    autoencoder: nn.Module,
    placement: Placement,
    device: torch.device,
    *,
    pinned: bool = False,
) -> Offloaded:
    """Makes the networks, which are on the CPU, compute on `device` as `placement` says.

    `pinned`: weights rest in memory that the system cannot page out; only from there do copies run beside the computing.
    """
    traffic = Traffic()
    settle(tensors_of(autoencoder).values(), device, traffic)
    if placement.offload == "components":
        turns = Turns(device, traffic, pinned=pinned)
        turns.add(text_encoder)
        turns.add(transformer)
        if placement.autoencoder < placement.transformer:
            turns.clear_for(autoencoder)
    if placement.offload == "blocks":
        look_up_on_host(text_encoder.get_submodule(LOOKED_UP), device)
        stream_blocks((text_encoder, transformer), device, traffic, pinned=pinned)
    return Offloaded(placement, traffic)


class Turns:
    """One network at a time on the device; it stays until another one is run."""

    def __init__(self, device: torch.device, traffic: Traffic, *, pinned: bool = False) -> None:
        self._device, self._traffic, self._pinned = device, traffic, pinned
        self._inside: Parcel | None = None

    def add(self, network: nn.Module) -> None:
        """Lets it take its turn whenever a part of it, whichever, is about to run."""
        parcel = Parcel(tensors_of(network).values(), pinned=self._pinned)
        for module in network.modules():
            module.register_forward_pre_hook(lambda _module, _inputs: self._bring(parcel))

    def clear_for(self, network: nn.Module) -> None:
        """Nobody shall be inside while a part of `network` runs."""
        for module in network.modules():
            module.register_forward_pre_hook(lambda _module, _inputs: self._clear())

    def _bring(self, parcel: Parcel) -> None:
        if self._inside is parcel:
            return
        self._clear()
        parcel.enter(buffer(parcel.num_bytes, self._device))
        self._inside = parcel
        self._traffic.move(parcel.num_bytes)
        self._traffic.hold(parcel.num_bytes)

    def _clear(self) -> None:
        if self._inside is None:
            return
        self._inside.leave()
        self._traffic.hold(-self._inside.num_bytes)
        self._inside = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # else what is left over of its place would be filled with this and that


class BlockStream:
    """Two places on the device that the blocks of all networks go through, one after the other.

    After a block has been set to work the next one is sent for, into the place of the one before, which is free by then.
    """

    def __init__(self, place_bytes: int, device: torch.device, traffic: Traffic, lane: Lane) -> None:
        self._places = [Place(buffer(place_bytes, device)) for _ in range(2)]
        self._traffic, self._lane = traffic, lane
        traffic.hold(2 * place_bytes)

    def add(self, blocks: Sequence[nn.Module], parcels: Sequence[Parcel]) -> None:
        """Blocks that run in this order, with their weights."""
        for i, (block, parcel) in enumerate(zip(blocks, parcels, strict=True)):
            place, other = self._places[i % 2], self._places[1 - i % 2]
            following = parcels[i + 1] if i + 1 < len(parcels) else None
            self._hook(block, Stop(parcel, place, following, other))

    def _hook(self, block: nn.Module, stop: Stop) -> None:
        block.register_forward_pre_hook(lambda _block, _inputs: self._before(stop))
        block.register_forward_hook(lambda _block, _inputs, _outputs: self._after(stop))

    def _before(self, stop: Stop) -> None:
        if stop.place.holds is not stop.parcel:  # the first of its network
            self._lane.mark()
            self._fetch(stop.parcel, stop.place)
        self._lane.wait()
        self._lane.mark()

    def _after(self, stop: Stop) -> None:
        stop.place.clear()
        if stop.following is not None:
            self._fetch(stop.following, stop.other)

    def _fetch(self, parcel: Parcel, place: Place) -> None:
        place.clear()  # a pass that failed may have left something
        with self._lane.copying():
            parcel.enter(place.buffer)
        place.holds = parcel
        self._traffic.move(parcel.num_bytes)


@dataclass(slots=True)
class Place:
    """Memory on the device for one block, and whose weights are in it."""

    buffer: Tensor
    holds: Parcel | None = None

    def clear(self) -> None:
        if self.holds is not None:
            self.holds.leave()
            self.holds = None


@dataclass(frozen=True, slots=True)
class Stop:
    """One block's part in the stream: where it goes, who comes next, and where that goes."""

    parcel: Parcel
    place: Place
    following: Parcel | None
    other: Place


class Lane(Protocol):
    """How copies get past what is being computed."""

    def mark(self) -> None:
        """Copies begun from now on wait for what was asked to be computed until now."""

    def copying(self) -> AbstractContextManager[None]:
        """What is copied in here is on this lane."""

    def wait(self) -> None:
        """What is asked to be computed from now on waits for all copies begun until now."""


class InOrder:
    """A device that does everything in the order in which it is asked."""

    def mark(self) -> None:
        pass

    def copying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def wait(self) -> None:
        pass


class SideStream:
    """Of a CUDA device: copies run beside the computing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._marked = torch.cuda.Event()

    def mark(self) -> None:
        self._marked.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def copying(self) -> Iterator[None]:
        self._copies.wait_event(self._marked)
        with torch.cuda.stream(self._copies):
            yield

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._copies)


class Parcel:
    """Tensors that travel together: at rest on the host, or one after the other in a buffer on the device."""

    def __init__(self, tensors: Iterable[Tensor], *, pinned: bool = False) -> None:
        self._tensors = tuple(tensors)
        self.num_bytes = packed_bytes(tensor.nbytes for tensor in self._tensors)
        if pinned:
            resting = torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=True)
            for tensor, place in zip(self._tensors, self._places(resting), strict=True):
                tensor.data = place.copy_(tensor.data)
        self._resting = [tensor.data for tensor in self._tensors]

    @torch.inference_mode(False)  # else they would be of that mode, and of use in no other
    def enter(self, on_device: Tensor) -> None:
        """`on_device` is a buffer of at least `num_bytes` bytes. The copies may still be under way afterwards."""
        for tensor, resting, place in zip(self._tensors, self._resting, self._places(on_device), strict=True):
            tensor.data = place.copy_(resting, non_blocking=True)

    def leave(self) -> None:
        for tensor, resting in zip(self._tensors, self._resting, strict=True):
            tensor.data = resting

    def _places(self, in_bytes: Tensor) -> Iterator[Tensor]:
        at = 0
        for tensor in self._tensors:
            yield in_bytes[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            at += packed_bytes([tensor.nbytes])


def stream_blocks(
    networks: Sequence[nn.Module],
    device: torch.device,
    traffic: Traffic,
    *,
    pinned: bool = False,
    lane: Lane | None = None,
) -> None:
    """Streams the blocks of `networks` through two places that they share; what is in no block goes to the device."""
    chains = []
    for network in networks:
        tensors = tensors_of(network)
        blocks, rest = divide(tensors)
        settle((tensors[name] for name in rest), device, traffic)
        parcels = [Parcel((tensors[name] for name in names), pinned=pinned) for names in blocks.values()]
        chains.append(([network.get_submodule(name) for name in blocks], parcels))
    largest = max(parcel.num_bytes for _, parcels in chains for parcel in parcels)
    stream = BlockStream(largest, device, traffic, lane or lane_of(device))
    for modules, parcels in chains:
        stream.add(modules, parcels)


def look_up_on_host(embedding: nn.Module, device: torch.device) -> None:
    """`embedding` stays on the host; what it finds there goes to the device."""
    embedding.register_forward_pre_hook(lambda _module, inputs: (inputs[0].cpu(),))
    embedding.register_forward_hook(lambda _module, _inputs, found: found.to(device))


def settle(tensors: Iterable[Tensor], device: torch.device, traffic: Traffic) -> None:
    """To the device, for good."""
    for tensor in tensors:
        tensor.data = tensor.data.to(device)
        traffic.hold(packed_bytes([tensor.nbytes]))


def lane_of(device: torch.device) -> Lane:
    return SideStream(device) if device.type == "cuda" else InOrder()


@torch.inference_mode(False)
def buffer(num_bytes: int, device: torch.device) -> Tensor:
    """Memory on the device, which may be written in whatever mode is on."""
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(chain(network.named_parameters(), network.named_buffers()))
