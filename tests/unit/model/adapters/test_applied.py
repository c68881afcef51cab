"""Adapters as a pass applies them: the same as merged weights, row by row, and trainable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter
from kleinbild.model.adapters.applied import Bound, Use, bind, changes_of, project
from kleinbild.model.adapters.magnitude import merged
from kleinbild.model.adapters.served import serve
from kleinbild.model.attention import ReferenceCache
from kleinbild.model.packing import Segment, pack
from kleinbild.model.precision import quantize
from kleinbild.model.transformer import Flux2Transformer
from tests import adapters, tiny
from tests.adapters import KINDS, Kind, Maker

SPEC = tiny.SPEC.transformer
TOLERANCE = 1e-5  # relative, of sums in float32 in another order


def served(adapter: Adapter, transformer: nn.Module, name: str = "") -> Bound:
    return serve(adapter, transformer, device=torch.device("cpu"), dtype=torch.float32, name=name)


@pytest.fixture(params=[bind, served])
def tie(request: pytest.FixtureRequest) -> Callable[[Adapter, nn.Module], Bound]:
    chosen: Callable[[Adapter, nn.Module], Bound] = request.param
    return chosen


def with_merged(transformer: Flux2Transformer, adapter: Adapter, strength: float = 1.0) -> Flux2Transformer:
    changed = copy.deepcopy(transformer)
    for entry in adapter.entries:
        weight = changed.get_submodule(entry.module).get_parameter("weight")
        weight.data = merged(weight.data, entry, strength)
    return changed


MIXED = (
    Segment(5, (4, 4)),
    Segment(7, (3, 5), ((2, 2),)),
    Segment(5, (4, 4)),
    Segment(6, (2, 6), ((3, 2), (2, 2)), "keep"),
)


def velocity(
    transformer: Flux2Transformer,
    segments: Sequence[Segment] = MIXED,
    uses: Sequence[tuple[Use, ...]] = (),
    times: Tensor | None = None,
    caches: Sequence[ReferenceCache | None] = (),
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(segment.num_stream for segment in segments), sum(segment.num_text for segment in segments)
    img = torch.randn(rows[0], SPEC.in_channels, generator=generator)
    txt = torch.randn(rows[1], SPEC.context_size, generator=generator)
    times = torch.linspace(0.9, 0.3, len(segments)) if times is None else times
    caches = caches or [ReferenceCache() if segment.mode != "joint" else None for segment in segments]
    out: Tensor = transformer(img, txt, times, pack(segments, SPEC), caches, uses)
    return out


def off(made: Tensor, expected: Tensor) -> float:
    return float(((made - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1.0, -0.6])
@torch.no_grad()
def test_a_pass_with_an_adapter_is_one_with_merged_weights(
    tie: Callable[[Adapter, nn.Module], Bound], kind: Kind, sliced: bool, strength: float
) -> None:
    transformer, adapter = tiny.transformer(), Maker(1).adapter(kind, adapters.in_blocks(), sliced=sliced)
    uses = [(Use(tie(adapter, transformer), strength),)] * len(MIXED)
    made, expected = velocity(transformer, uses=uses), velocity(with_merged(transformer, adapter, strength))
    assert off(made, expected) < TOLERANCE
    assert off(velocity(transformer), expected) > 0.05


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_layer_can_be_changed(tie: Callable[[Adapter, nn.Module], Bound], kind: Kind) -> None:
    """Layers at both ends, and those that only the times go through, included."""
    transformer = tiny.transformer()
    plain = velocity(transformer)
    for module in adapters.shapes():
        adapter = Maker(2).adapter(kind, [module])
        made = velocity(transformer, uses=[(Use(tie(adapter, transformer)),)] * len(MIXED))
        assert off(made, velocity(with_merged(transformer, adapter))) < TOLERANCE, module
        assert off(made, plain) > 1e-4, module


@torch.no_grad()
def test_several_adapters_add_up(tie: Callable[[Adapter, nn.Module], Bound]) -> None:
    transformer, made = tiny.transformer(), Maker(3)
    several = [made.adapter("lora"), made.adapter("dora", sliced=True), made.adapter("dora of columns")]
    strengths = (0.5, 1.0, -0.4)
    changed = copy.deepcopy(transformer)
    for name, weight in changed.named_parameters():
        own = transformer.get_parameter(name)
        for adapter, strength in zip(several, strengths, strict=True):
            if name in {f"{entry.module}.weight" for entry in adapter.entries}:
                weight.data += with_merged(transformer, adapter, strength).get_parameter(name) - own
    uses = tuple(Use(tie(adapter, transformer), s) for adapter, s in zip(several, strengths, strict=True))
    assert off(velocity(transformer, uses=[uses] * len(MIXED)), velocity(changed)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_strength_is_no_adapter(tie: Callable[[Adapter, nn.Module], Bound], kind: Kind) -> None:
    transformer = tiny.transformer()
    use = Use(tie(Maker(4).adapter(kind), transformer), 0.0)
    assert off(velocity(transformer, uses=[(use,)] * len(MIXED)), velocity(transformer)) < TOLERANCE


@torch.no_grad()
def test_each_request_has_its_own_to_the_bit(tie: Callable[[Adapter, nn.Module], Bound]) -> None:
    """Whoever stands beside it, and in whatever kind of pass."""
    transformer = tiny.transformer()
    every = tuple(adapters.shapes())
    a, b, c = (Use(tie(Maker(i).adapter(k, every), transformer)) for i, k in enumerate(("lora", "dora", "loha")))
    segments = (*MIXED, Segment(5, (4, 4), ((2, 2),), "store"), Segment(5, (4, 4), ((2, 2),), "store"))
    uses = ((a,), (), (b, c), (b,), (a, b), (c,))
    together = velocity(transformer, segments, uses)
    generator = torch.Generator().manual_seed(0)
    rows = sum(segment.num_stream for segment in segments)
    img = torch.randn(rows, SPEC.in_channels, generator=generator)
    txt = torch.randn(sum(segment.num_text for segment in segments), SPEC.context_size, generator=generator)
    times, at_img, at_txt = torch.linspace(0.9, 0.3, len(segments)), 0, 0
    for i, (segment, own) in enumerate(zip(segments, uses, strict=True)):
        of_img, of_txt = slice(at_img, at_img + segment.num_stream), slice(at_txt, at_txt + segment.num_text)
        at_img, at_txt = of_img.stop, of_txt.stop
        cache = [None if segment.mode == "joint" else ReferenceCache()]
        alone = transformer(img[of_img], txt[of_txt], times[i : i + 1], pack([segment], SPEC), cache, [own])
        assert torch.equal(together[of_img], alone), segment


@torch.no_grad()
def test_stored_references_are_modulated_by_their_own_requests_adapters() -> None:
    """References that are stored stand at t = 0: an adapter of the time layers must reach them, each request's own."""
    transformer = tiny.transformer()
    time_layers = [name for name, module in transformer.named_modules() if module in transformer.time_layers]
    adapter = Maker(5).adapter("lora", [name for name in adapters.shapes() if name in time_layers])
    assert len(adapter.entries) == 6
    segments, caches = [Segment(5, (4, 4), ((2, 2),), "store")] * 2, [ReferenceCache(), ReferenceCache()]
    velocity(transformer, segments, [(Use(served(adapter, transformer)),), ()], caches=caches)
    expected = [ReferenceCache(), ReferenceCache()]
    velocity(with_merged(transformer, adapter), segments, caches=expected)
    assert off(caches[0].blocks["single_blocks.1"].key, expected[0].blocks["single_blocks.1"].key) < TOLERANCE
    assert off(caches[1].blocks["single_blocks.1"].key, expected[1].blocks["single_blocks.1"].key) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_tensor(kind: Kind) -> None:
    """And are those of merged weights."""
    transformer = tiny.transformer()
    adapter = Maker(6).adapter(kind, adapters.in_blocks(), sliced=True)
    tensors = [tensor for entry in adapter.entries for tensor in entry.change.tensors]
    for tensor in tensors:
        tensor.requires_grad_()
    uses = [(Use(bind(adapter, transformer), 0.7),)] * len(MIXED)
    velocity(transformer, uses=uses).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in tensors)
    if kind.startswith("dora"):  # its norms count as constants
        return
    grads = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    weights = {
        f"{name}.weight": transformer.get_submodule(name).get_parameter("weight") for name in adapters.in_blocks()
    }
    for entry in adapter.entries:
        name = f"{entry.module}.weight"
        assert entry.rows is not None
        parts = [weights[name][: entry.rows[0]], 0.7 * entry.delta(), weights[name][entry.rows[1] :]]
        parts[1] = parts[1] + weights[name][entry.rows[0] : entry.rows[1]]
        weights[name] = torch.cat(parts)
    segments = MIXED
    generator = torch.Generator().manual_seed(0)
    img = torch.randn(sum(s.num_stream for s in segments), SPEC.in_channels, generator=generator)
    txt = torch.randn(sum(s.num_text for s in segments), SPEC.context_size, generator=generator)
    caches = [ReferenceCache() if segment.mode != "joint" else None for segment in segments]
    inputs = (img, txt, torch.linspace(0.9, 0.3, len(segments)), pack(segments, SPEC), caches)
    torch.func.functional_call(transformer, weights, inputs).square().sum().backward()
    for tensor, grad in zip(tensors, grads, strict=True):
        assert tensor.grad is not None
        assert grad is not None
        assert off(grad, tensor.grad) < 1e-3


def test_a_wider_adapter_on_a_narrower_model() -> None:
    """float32 under training on a bfloat16 base: the output stays bfloat16, the gradient is float32."""
    transformer = copy.deepcopy(tiny.transformer()).bfloat16()
    layer = transformer.get_submodule("double_blocks.0.img_attn.qkv")
    adapter = Maker(7).adapter("dora", ["double_blocks.0.img_attn.qkv"])
    adapter.entries[0].change.tensors[0].requires_grad_()
    x = torch.randn(9, SPEC.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = project(layer, x, changes_of((Use(bind(adapter, transformer)),)))
    assert out.dtype == torch.bfloat16
    expected = x.float() @ merged(layer.get_parameter("weight").data, adapter.entries[0]).t()
    assert off(out.float(), expected) < 0.01
    out.float().sum().backward()
    assert adapter.entries[0].change.tensors[0].grad is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_adapters_on_weights_in_eight_bits(precision: str, kind: Kind) -> None:
    """What they add is not rounded, and norms are those of the weights that compute."""
    transformer = copy.deepcopy(tiny.transformer()).bfloat16()
    name = "single_blocks.0.linear1"
    adapter = Maker(8).adapter(kind, [name], sliced=True)
    quantize(transformer.single_blocks, precision)  # type: ignore[arg-type]
    layer = transformer.get_submodule(name)
    x = torch.randn(40, SPEC.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    bound = serve(adapter, transformer, device=torch.device("cpu"), dtype=torch.bfloat16)
    made = project(layer, x, changes_of((Use(bound),))).float()
    expected_weight = layer.plain_weight()
    for entry in adapter.entries:
        expected_weight = merged(expected_weight, entry)
    expected = x.float() @ expected_weight.t()
    assert off(made, expected) < (0.02 if precision == "int8" else 0.08)
    assert off(layer(x).float(), expected) > 0.1


def test_a_layer_that_is_not_there(tie: Callable[[Adapter, nn.Module], Bound]) -> None:
    entry = Maker().entry("lora", "double_blocks.9.img_attn.qkv", (96, 32))
    with pytest.raises(WeightsError, match=r"double_blocks\.9\.img_attn\.qkv, which this model does not have"):
        tie(Adapter((entry,)), tiny.transformer())
