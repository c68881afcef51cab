"""Each kind of change does to rows what its matrix says, and can be cut and put together by rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.core.errors import WeightsError
from kleinbild.model.adapters.adapter import Adapter, Change, Entry, Full, Hadamard, Kronecker, LowRank
from kleinbild.model.adapters.names import Place, bfl_names, diffusers_names, find, modules, parts
from kleinbild.model.adapters.regroup import compressed, folded, gathered, sliced, swapped, unjoined
from kleinbild.model.official import SPECS
from tests.unit.model.adapters.files import SPEC, swap


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def product(rows: int, columns: int, rank: int = 3) -> LowRank:
    return LowRank(normal(rank, columns), normal(rows, rank))


def changes(rows: int = 24, columns: int = 20) -> dict[str, Change]:
    return {
        "LoRA": product(rows, columns),
        "LoKr": Kronecker(normal(4, 5), normal(rows // 4, columns // 5)),
        "LoKr, first factored": Kronecker(product(4, 5, 2), normal(rows // 4, columns // 5)),
        "LoKr, second factored": Kronecker(normal(4, 5), product(rows // 4, columns // 5, 2)),
        "LoKr, odd": Kronecker(normal(3, 5), normal(rows // 3, columns // 5)),
        "LoHa": Hadamard(product(rows, columns), product(rows, columns)),
        "whole": Full(normal(rows, columns)),
    }


@pytest.mark.parametrize("kind", changes())
def test_a_change_applied_to_rows_is_its_matrix_times_them(kind: str) -> None:
    change, x = changes()[kind], normal(7, 20)
    assert change.shape == change.delta().shape == (24, 20)
    assert torch.allclose(change(x), x @ change.delta().mT)


@given(p=st.integers(1, 6), q=st.integers(1, 6), s=st.integers(1, 6), t=st.integers(1, 6), rows=st.integers(1, 5))
def test_kronecker_products_of_any_shape(p: int, q: int, s: int, t: int, rows: int) -> None:
    change, x = Kronecker(normal(p, q), normal(s, t)), normal(rows, q * t)
    assert torch.allclose(change(x), x @ change.delta().mT)


@pytest.mark.parametrize("kind", changes())
@pytest.mark.parametrize("rows", [(0, 8), (8, 16), (16, 24), (6, 18), (5, 23)])
def test_rows_of_a_change(kind: str, rows: tuple[int, int]) -> None:
    change = changes()[kind]
    assert torch.allclose(sliced(change, *rows).delta(), change.delta()[slice(*rows)])


@pytest.mark.parametrize("kind", changes())
def test_halves_change_places(kind: str) -> None:
    change = changes()[kind]
    assert torch.allclose(swapped(change).delta(), swap(change.delta()))
    assert torch.allclose(swapped(swapped(change)).delta(), change.delta())


@pytest.mark.parametrize("kind", changes())
def test_the_scale_folded_in(kind: str) -> None:
    entry = Entry("layer", changes()[kind], 0.3)
    assert folded(entry).scale == 1
    assert torch.allclose(folded(entry).delta(), entry.delta())


@pytest.mark.parametrize("kind", ["LoKr", "LoKr, odd", "LoKr, second factored"])
def test_thirds_of_a_kronecker_product_stay_one_where_its_blocks_allow(kind: str) -> None:
    cut = sliced(changes()[kind], 0, 8)
    assert isinstance(cut, Kronecker if kind == "LoKr, odd" else Full)


@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_split_joined_and_split_again(kind: str) -> None:
    place = Place("double_blocks.0.img_attn.qkv", (0, 72), 20)
    apart = [
        Entry(place.module, changes()[kind], scale, (row, row + 24)) for row, scale in ((0, 1.0), (24, 0.5), (48, 3.0))
    ]
    joined = gathered(apart, place)
    assert joined is not None
    assert type(joined.change) is type(apart[0].change)
    assert torch.allclose(joined.delta(), torch.cat([entry.delta() for entry in apart]))
    if kind == "LoRA":
        whole = Entry(joined.module, joined.change, joined.scale)
        again = unjoined(whole, [(0, 24), (24, 48), (48, 72)])
        assert [entry.rows for entry in again] == [entry.rows for entry in apart]
        assert all(torch.allclose(new.delta(), old.delta()) for new, old in zip(again, apart, strict=True))


def test_parts_that_are_missing_are_rows_of_nothing() -> None:
    place = Place("double_blocks.0.img_attn.qkv", (0, 72), 20)
    joined = gathered([Entry(place.module, product(24, 20), 1.0, (24, 48))], place)
    assert joined is not None
    delta = joined.delta()
    assert not delta[:24].any()
    assert not delta[48:].any()
    assert delta[24:48].any()
    assert gathered([], place) is None


def test_changes_of_the_same_rows_add_up() -> None:
    place = Place("layer", (0, 24), 20)
    entries = [Entry("layer", change) for change in changes().values()]
    total = sum(entry.delta() for entry in entries)
    for chosen in (entries, [entries[0], entries[0]]):
        joined = gathered(chosen, place)
        assert joined is not None
        expected = total if chosen is entries else 2 * entries[0].delta()
        assert torch.allclose(joined.delta().float(), expected.float(), atol=1e-5)


def test_magnitudes_are_cut_and_joined_by_rows_and_not_by_columns() -> None:
    place = Place("layer", (0, 24), 20)
    apart = [Entry("layer", product(12, 20), 1.0, (row, row + 12), torch.full((12,), 1.0 + row)) for row in (0, 12)]
    joined = gathered(apart, place)
    assert joined is not None
    assert joined.magnitude is not None
    assert torch.equal(joined.magnitude, torch.cat([entry.magnitude for entry in apart]))
    assert [
        entry.rows
        for entry in unjoined(Entry("layer", joined.change, 1.0, None, joined.magnitude), [(0, 12), (12, 24)])
    ]
    half = gathered([joined], Place("layer", (0, 12), 20, whole=False))
    assert half is not None
    assert torch.equal(half.magnitude, apart[0].magnitude)
    with pytest.raises(WeightsError, match="in some of its rows"):
        gathered([apart[0], Entry("layer", product(12, 20), 1.0, (12, 24))], place)
    with pytest.raises(WeightsError, match="by columns"):
        gathered([Entry("layer", product(24, 20), 1.0, None, torch.ones(1, 20))], Place("layer", (0, 12), 20))


@pytest.mark.parametrize("kind", changes())
def test_the_nearest_lora_is_that_of_the_svd(kind: str) -> None:
    entry = Entry("layer", changes()[kind], 0.5)
    delta = entry.change.delta()
    small, kept = compressed(entry, 2)
    sizes = torch.linalg.svdvals(delta)
    assert kept == pytest.approx(float(sizes[:2].square().sum() / sizes.square().sum()))
    assert float((small.change.delta() - delta).norm()) == pytest.approx(float(sizes[2:].norm()), rel=1e-4, abs=1e-4)
    assert isinstance(small.change, LowRank)
    assert (small.change.rank, small.scale) == (2, 0.5)
    if kind == "LoRA":
        assert compressed(entry, 3) == (entry, 1.0)


@pytest.mark.parametrize("family", ["tiny", "klein-4b", "klein-9b"])
def test_every_layer_has_a_name_in_both_namings_that_is_found_again(family: str) -> None:
    spec = SPEC if family == "tiny" else SPECS[family].transformer
    for names in (bfl_names(spec), diffusers_names(spec)):
        assert {place.module for place in names.values()} == set(modules(spec))
        flat = {name.replace(".", "_") for name in names}
        assert len(flat) == len(names)
        for name, place in names.items():
            for stem in (f"transformer.{name}", "lora_unet_" + name.replace(".", "_")):
                found = find(spec, stem)
                assert found is not None
                assert (found.body, found.place) == (name, place)
    assert find(spec, "transformer.transformer_blocks.99.attn.to_q") is None
    assert parts(spec, "single_blocks.0.linear1")[-1][1] == modules(spec)["single_blocks.0.linear1"][0]


def test_bytes_of_an_adapter() -> None:
    change = LowRank(torch.zeros(2, 8), torch.zeros(4, 2))
    assert Adapter((Entry("a", change, magnitude=torch.zeros(4)),)).num_bytes == 4 * (16 + 8 + 4)
