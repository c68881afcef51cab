"""Offloaded networks: the same numbers, no weight used where it rests, and never more on the device than foreseen."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kleinbild.core.errors import RequestError
from kleinbild.core.offload import OFFLOADS, Offload, read_offload
from kleinbild.core.precision import Precision
from kleinbild.model import offload as offloading
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.offload import Offloaded, Parcel, Traffic, offload, stream_blocks, tensors_of
from kleinbild.model.packing import Segment, pack
from kleinbild.model.placement import ALIGNMENT, Placement, WeightBytes, divide, packed_bytes
from kleinbild.model.precision import quantize
from kleinbild.model.strips import decode_in_strips
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.transformer import Flux2Transformer
from tests import tiny

CPU = torch.device("cpu")
SPEC = tiny.SPEC
ALL, TOGETHER, ALONE, BLOCKS = WeightBytes.of(SPEC, "float32").placements()
PLACEMENTS = pytest.mark.parametrize("placement", [TOGETHER, ALONE, BLOCKS], ids=["turns", "turns, alone", "blocks"])


class Networks:
    """A model's three, with weights of their own, and one pass through each of their parts."""

    def __init__(self) -> None:
        self.transformer: Flux2Transformer = copy.deepcopy(tiny.transformer())
        self.text_encoder: TextEncoder = copy.deepcopy(tiny.text_encoder())
        self.autoencoder: Autoencoder = copy.deepcopy(tiny.autoencoder())

    def offload(self, placement: Placement) -> Offloaded:
        return offload(self.transformer, self.text_encoder, self.autoencoder, placement, CPU)

    @torch.inference_mode()
    def run(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        tokens = SPEC.text_encoder.max_tokens
        ids = torch.randint(SPEC.text_encoder.vocab_size, (1, tokens), generator=generator)
        text = self.text_encoder(ids, (torch.arange(tokens) < 9).long()[None])
        latent = self.autoencoder.encode(torch.rand((1, 3, 64, 64), generator=generator))
        tokens_NC = latent[0].flatten(1).t()
        cache = [ReferenceCache()]
        mods = self.transformer.modulations(torch.tensor([0.7]))
        stored = pack([Segment(tokens, (4, 4), ((4, 4),), "store")], SPEC.transformer)
        read = pack([Segment(tokens, (4, 4), ((4, 4),), "stored")], SPEC.transformer)
        first = self.transformer(torch.cat((tokens_NC, tokens_NC)), text[0], mods, stored, cache)
        second = self.transformer(tokens_NC, text[0], torch.tensor([0.3]), read, cache)
        whole, strips = self.autoencoder.decode(latent), decode_in_strips(self.autoencoder, latent, 16)
        return [text, first, second, whole, strips]


@pytest.fixture(scope="module")
def resident() -> list[Tensor]:
    return Networks().run()


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@PLACEMENTS
def test_every_bit_is_that_of_the_resident_networks(placement: Placement, resident: list[Tensor]) -> None:
    networks = Networks()
    networks.offload(placement)
    assert equal(networks.run(), resident)
    assert equal(networks.run(), resident)  # once more, after everything has been in and out


@PLACEMENTS
def test_whoever_runs_them_may_be_in_any_mode(placement: Placement) -> None:
    networks = Networks()
    networks.offload(placement)
    made = []
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            ids = torch.arange(SPEC.text_encoder.max_tokens)[None]
            made += [networks.text_encoder(ids, torch.ones_like(ids)), step(networks.transformer)]
        assert not any(tensor.is_inference() for tensor in tensors_of(networks.transformer).values())
    assert equal(made[:2] * 3, made[:6])
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(made[:2], made[6:], strict=True))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized_blocks_travel_as_they_are(precision: Precision) -> None:
    plain, streamed = (copy.deepcopy(tiny.transformer()).bfloat16() for _ in range(2))
    for network in (plain, streamed):
        quantize(network.double_blocks, precision)
        quantize(network.single_blocks, precision)
    traffic = Traffic()
    stream_blocks([streamed], CPU, traffic)
    segment = Segment(7, (4, 6))
    img, txt = torch.randn(24, 128).bfloat16(), torch.randn(7, 72).bfloat16()
    inputs = (img, txt, torch.tensor([0.7]), pack([segment], SPEC.transformer))
    with torch.inference_mode():
        assert torch.equal(plain(*inputs), streamed(*inputs))
    foreseen = WeightBytes.of(SPEC, precision).transformer
    assert traffic.moved_bytes == foreseen.blocks
    assert traffic.peak_bytes == foreseen.rest + 2 * foreseen.block


MOVING = (torch.ops.aten.copy_.default, torch.ops.aten._has_compatible_shallow_copy_type.default)


class Guard(TorchDispatchMode):
    """Fails where a weight is computed with, in the place where it rests; it may only be copied from there."""

    def __init__(self, resting: set[int]) -> None:
        super().__init__()
        self.resting, self.num_copied = resting, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        touched = {
            tensor.untyped_storage().data_ptr()
            for tensor in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        if touched & self.resting:
            assert func in MOVING, func
            self.num_copied += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))


@PLACEMENTS
def test_no_weight_is_computed_with_where_it_rests(placement: Placement) -> None:
    networks = Networks()
    travelling = {**tensors_of(networks.text_encoder), **tensors_of(networks.transformer)}
    if placement is BLOCKS:
        blocks, _ = divide(travelling)
        travelling = {name: travelling[name] for names in blocks.values() for name in names}
    resting = {tensor.untyped_storage().data_ptr() for tensor in travelling.values()}
    networks.offload(placement)
    with Guard(resting) as guard:
        networks.run()
    assert guard.num_copied >= len(travelling)  # which shows that the guard sees them


@PLACEMENTS
def test_what_is_on_the_device_is_what_was_foreseen(placement: Placement) -> None:
    networks = Networks()
    offloaded = networks.offload(placement)
    seen: dict[str, set[int]] = {}

    def look(name: str) -> Callable[..., None]:
        return lambda _module, _inputs: seen.setdefault(name, set()).add(offloaded.traffic.resident_bytes)

    for name in ("text_encoder", "transformer", "autoencoder"):
        for module in getattr(networks, name).modules():
            module.register_forward_pre_hook(look(name))
    networks.run()
    counter = packed_bytes([8])  # BatchNorm's, which no file holds
    for name, numbers in seen.items():
        assert max(numbers) - counter <= getattr(placement, name), name
    assert max(seen["transformer"]) - counter == placement.transformer
    assert offloaded.traffic.peak_bytes - counter == placement.most
    assert placement.most < ALL.most


def test_foreseen_bytes_are_those_of_the_networks() -> None:
    networks = Networks()
    counter = packed_bytes([8])
    tensors = [tensors_of(each) for each in (networks.transformer, networks.text_encoder, networks.autoencoder)]
    whole = sum(packed_bytes(tensor.nbytes for tensor in each.values()) for each in tensors)
    assert ALL.most == whole - counter


def test_blocks_hold_two_at_a_time_and_each_comes_once_a_pass() -> None:
    network = copy.deepcopy(tiny.transformer())
    blocks = [*network.double_blocks, *network.single_blocks]
    resting = [first(block).data_ptr() for block in blocks]
    traffic, most = Traffic(), 0

    def count(_block: nn.Module, _inputs: object) -> None:
        nonlocal most
        most = max(most, sum(first(block).data_ptr() != at for block, at in zip(blocks, resting, strict=True)))

    stream_blocks([network], CPU, traffic)
    for block in blocks:
        block.register_forward_pre_hook(count)
    for passes in (1, 2):
        step(network)
        assert traffic.num_moves == passes * len(blocks)
    assert most == 1  # the next is sent for after this
    assert [first(block).data_ptr() for block in blocks] == resting


def first(block: nn.Module) -> Tensor:
    return next(block.parameters())


def step(network: Flux2Transformer) -> Tensor:
    packing = pack([Segment(5, (2, 3))], network.spec)
    generator = torch.Generator().manual_seed(0)
    img, txt = torch.randn((6, 128), generator=generator), torch.randn((5, 72), generator=generator)
    out: Tensor = network(img, txt, torch.tensor([0.5]), packing)
    return out


class Recorder:
    """A lane on which nothing happens, but for what is asked of it being written down."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def mark(self) -> None:
        self.asked.append("mark")

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.asked.append("copy")
        yield

    def wait(self) -> None:
        self.asked.append("wait")


def test_copies_run_beside_the_computing_and_never_into_what_it_reads() -> None:
    """The order in which a device with a stream of its own for copies is told what to do, over two passes."""
    network, lane = copy.deepcopy(tiny.transformer()), Recorder()
    stream_blocks([network], CPU, Traffic(), lane=lane)
    places: list[int] = []

    def compute(block: nn.Module, _inputs: object) -> None:
        lane.asked.append("compute")
        places.append(first(block).untyped_storage().data_ptr())

    num_blocks = 0
    for block in (*network.double_blocks, *network.single_blocks):
        block.register_forward_pre_hook(compute)
        num_blocks += 1
    step(network), step(network)

    computes = [i for i, asked in enumerate(lane.asked) if asked == "compute"]
    copies = [i for i, asked in enumerate(lane.asked) if asked == "copy"]
    marks = [max(i for i in range(at) if lane.asked[i] == "mark") for at in copies]
    assert len(copies) == len(computes) == 2 * num_blocks
    assert len(set(places)) == 2
    for k, (copied, computed) in enumerate(zip(copies, computes, strict=True)):
        assert "wait" in lane.asked[copied:computed]  # nobody computes with what is not there yet
        before = [computes[j] for j in range(k) if places[j] == places[k]]
        assert all(earlier < marks[k] for earlier in before)  # nor is anything overwritten that is still read
    for k, (one, other) in enumerate(pairwise(computes)):
        if (k + 1) % num_blocks:  # within a pass
            assert marks[k + 1] < one < copies[k + 1] < other  # the next comes while this one computes


@PLACEMENTS
def test_a_pass_that_fails_leaves_nothing_behind(placement: Placement, resident: list[Tensor]) -> None:
    networks = Networks()
    offloaded = networks.offload(placement)

    def fail(_module: nn.Module, _inputs: object) -> None:
        raise MemoryError

    for module in (networks.transformer.single_blocks[1].linear2, networks.text_encoder.model.layers[2].mlp):
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            networks.run()
        handle.remove()
        assert equal(networks.run(), resident)
    assert offloaded.traffic.peak_bytes <= placement.most + packed_bytes([8])


def test_networks_that_are_let_go_leave_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[weakref.ref[Tensor]] = []

    def remembered(num_bytes: int, device: torch.device) -> Tensor:
        made = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        buffers.append(weakref.ref(made))
        return made

    monkeypatch.setattr(offloading, "buffer", remembered)
    for placement in (TOGETHER, BLOCKS):
        networks = Networks()
        networks.offload(placement)
        networks.run()
        gc.disable()  # no cycle may hold gigabytes until somebody comes by
        del networks
        try:
            assert [buffer() for buffer in buffers] == [None] * len(buffers)
        finally:
            gc.enable()
    assert len(buffers) >= 4


def test_a_parcel_comes_back_as_it_went() -> None:
    tensors = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.tensor(4), torch.randn(9, 2).to(torch.float8_e4m3fn)]
    before = [(tensor.data_ptr(), tensor.float().clone()) for tensor in tensors]
    parcel = Parcel(tensors)
    assert parcel.num_bytes == 4 * ALIGNMENT
    place = torch.empty(parcel.num_bytes + 100, dtype=torch.uint8)
    parcel.enter(place)
    assert [(tensor.data_ptr() - place.data_ptr()) for tensor in tensors] == [0, 512, 1024, 1536]
    assert all(torch.equal(tensor.float(), was) for tensor, (_, was) in zip(tensors, before, strict=True))
    parcel.leave()
    assert [tensor.data_ptr() for tensor in tensors] == [at for at, _ in before]


@pytest.mark.parametrize("way", OFFLOADS)
def test_ways_are_words(way: Offload) -> None:
    assert read_offload(way) == way
    with pytest.raises(RequestError, match="not a way to offload") as caught:
        read_offload(way.upper())
    assert "components" in caught.value.hint
