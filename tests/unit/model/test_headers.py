"""Headers: what a file holds without reading it, and what is wrong with damaged ones, in words."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kleinbild.core.errors import WeightsError
from kleinbild.model.weights.headers import read_header, read_index
from tests import tiny

TENSORS = {"a": torch.ones(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16), "n": torch.tensor(7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "file.safetensors", metadata={"format": "pt"})
    return tmp_path / "file.safetensors"


def test_safetensors(path: Path) -> None:
    stored = read_header(path)
    assert stored.container == "safetensors"
    assert {name: (info.dtype, info.shape) for name, info in stored.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b.c": ("BF16", (4,)),
        "n": ("I64", ()),
    }


def test_gguf(tmp_path: Path) -> None:
    state = {"x": torch.ones(3, 64), "y": torch.ones(5, 2), "z": torch.ones(7)}
    kinds = {"x": gguf.GGMLQuantizationType.Q8_0, "y": gguf.GGMLQuantizationType.F16}
    stored = read_header(tiny.write_gguf(tmp_path / "file.gguf", state, kinds))
    assert stored.container == "gguf"
    assert {name: (info.dtype, info.shape) for name, info in stored.tensors.items()} == {
        "x": ("Q8_0", (3, 64)),
        "y": ("F16", (5, 2)),
        "z": ("F32", (7,)),
    }


def test_content_decides_not_the_name(path: Path, tmp_path: Path) -> None:
    renamed = path.rename(tmp_path / "weights.gguf")
    assert read_header(renamed).container == "safetensors"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.99])
def test_a_truncated_safetensors_file(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="is cut short"):
        read_header(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(share=st.floats(0.001, 0.999))
def test_a_gguf_file_cut_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    whole = tiny.write_gguf(tmp_path / "whole.gguf", {"x": torch.ones(3, 64), "y": torch.ones(64)}, {}).read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: max(4, int(share * len(whole)))])
    with pytest.raises(WeightsError, match="is cut short"):
        read_header(cut)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(4, 200), st.integers(0, 255))
def test_a_damaged_gguf_header_is_never_a_crash(tmp_path: Path, place: int, value: int) -> None:
    damaged = tmp_path / "damaged.gguf"
    if not (whole := tmp_path / "whole.gguf").exists():
        tiny.write_gguf(whole, {"x": torch.ones(3, 64), "y": torch.ones(64)}, {})
    content = bytearray(whole.read_bytes())
    content[place] = value
    damaged.write_bytes(content)
    with contextlib.suppress(WeightsError):
        read_header(damaged)


def header(values: object, body: bytes = b"") -> bytes:
    raw = json.dumps(values).encode()
    return struct.pack("<Q", len(raw)) + raw + body


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack("<Q", 10**12) + b"{}" + bytes(99), "claims to be 1000000000000 bytes"),
        (struct.pack("<Q", 9) + b"{not json", "damaged header"),
        (header([]), "neither a safetensors"),
        (header({"a": {"dtype": "F32", "shape": [2]}}), "damaged header"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "4 bytes for F32"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), "damaged header"),
        (header({"a": {"dtype": "odd", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "damaged header"),
        (header({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, bytes(4)), "begins at byte 2"),
        (header({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, bytes(4)), "2 bytes follow"),
    ],
)
def test_a_damaged_header(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        read_header(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        torch.save({"a": torch.ones(2)}, tmp_path / name)
        with pytest.raises(WeightsError, match="is a pickle, which can run code"):
            read_header(tmp_path / name)
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="is a pickle"):
        read_header(tmp_path / "old.ckpt")


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(WeightsError, match="neither a safetensors nor a GGUF file"):
        read_header(tmp_path / "cat.png")


def shards(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "m-1.safetensors")
    save_file({"b": torch.ones(3)}, folder / "m-2.safetensors")
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    return index


def test_an_index_joins_its_shards(tmp_path: Path) -> None:
    stored = read_index(shards(tmp_path))
    assert {name: info.path.name for name, info in stored.tensors.items()} == {
        "a": "m-1.safetensors",
        "b": "m-2.safetensors",
    }


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks m-2\.safetensors, which its index names"):
        read_index(index)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path)
    save_file({"a": torch.ones(3)}, tmp_path / "m-2.safetensors")
    with pytest.raises(WeightsError, match="a is in both"):
        read_index(index)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../m-1.safetensors"}}']
)
def test_a_damaged_index(tmp_path: Path, content: str) -> None:
    index = shards(tmp_path)
    index.write_text(content)
    with pytest.raises(WeightsError, match=r"is not an index|lies in another folder"):
        read_index(index)
