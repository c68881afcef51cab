"""Names, types and shapes of the tensors in a weight file, from its header alone.

safetensors and GGUF only: a pickle can run any code when it is read, so it is refused by its first bytes. A header is
checked against the size of the file, so that a truncated download is told as such before anything is loaded.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kleinbild.core.errors import WeightsError
from kleinbild.model.weights.layouts import Shape

Container = Literal["safetensors", "gguf"]

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
SAFETENSORS_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4,
}  # fmt: skip
# GGML's tensor types by number: (name, values in a block, bytes of a block).
GGML_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`scale` is the tensor that these numbers are to be multiplied by, its file and name: a number, or one a row."""

    dtype: str
    shape: Shape
    path: Path
    scale: tuple[Path, str] | None = None


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of one component as they are stored, over one or more files (`paths`) of one kind."""

    container: Container
    paths: tuple[Path, ...]
    tensors: dict[str, TensorInfo]


def read_stored(path: Path) -> StoredTensors:
    """What the weight file, or the index of several, holds."""
    return read_index(path) if path.name.endswith(INDEX_SUFFIX) else read_header(path)


def read_header(path: Path) -> StoredTensors:
    """The header of one file. Raises WeightsError where it is damaged, truncated or of another kind."""
    try:
        kind = _kind(path)
        if kind is None:
            raise _other_kind(path)
        tensors = _read_safetensors(path) if kind == "safetensors" else _read_gguf(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return StoredTensors(kind, (path,), tensors)


def read_index(path: Path) -> StoredTensors:
    """The headers of all files that the index `…safetensors.index.json` names."""
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not an index of weight files", "fetch it again") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise WeightsError(f"{path} names {outside[0]}, which lies in another folder", "fetch it again")
    if absent := [name for name in names if not (path.parent / name).is_file()]:
        raise WeightsError(f"{path.parent} lacks {', '.join(absent)}, which its index names", "fetch the rest")
    return merge([read_header(path.parent / name) for name in names])


def merge(parts: list[StoredTensors]) -> StoredTensors:
    """Several files as one component. Raises WeightsError where two hold the same tensor."""
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            name = min(twice)
            raise WeightsError(f"{name} is in both {tensors[name].path.name} and {part.paths[0].name}")
        tensors.update(part.tensors)
    return StoredTensors(parts[0].container, tuple(path for part in parts for path in part.paths), tensors)


def _kind(path: Path) -> Container | None:
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"GGUF":
        return "gguf"
    # A file cut before its header ends still starts with the length, which is far below 2^32.
    return "safetensors" if start[8:9] == b"{" or (path.suffix == ".safetensors" and len(start) < 9) else None


def _other_kind(path: Path) -> WeightsError:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" or start[:1] == b"\x80" or path.suffix in PICKLE_SUFFIXES:
        return WeightsError(
            f"{path} is a pickle, which can run code when it is read; it was not opened",
            "use the safetensors or GGUF file of the same weights",
        )
    return WeightsError(f"{path} is neither a safetensors nor a GGUF file", "fetch it again, or name another file")


def _truncated(path: Path, has: int, needs: int) -> WeightsError:
    return WeightsError(f"{path} is cut short: {has} bytes, its header promises {needs}", "fetch it again")


def _damaged(path: Path, why: str) -> WeightsError:
    return WeightsError(f"{path} has a damaged header: {why}", "fetch it again")


def _read_safetensors(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise _damaged(path, f"it claims to be {length} bytes long")
        if size < 8 + length or size < 8:
            raise _truncated(path, size, 8 + length)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        spans = {name: _span(info) for name, info in header.items()}
        tensors = {name: TensorInfo(info["dtype"], tuple(info["shape"]), path) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            raise _damaged(path, f"{name} begins at byte {start}, not at {end}")
        end = stop
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise _damaged(path, f"{size - 8 - length - end} bytes follow the last tensor")
    return tensors


def _span(info: dict[str, Any]) -> tuple[int, int]:
    """First and last byte of a tensor; ValueError where type, shape and span disagree."""
    start, stop = info["data_offsets"]
    shape = info["shape"]
    if not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
        raise ValueError(f"shape {shape}")
    if (stop - start) * 8 != prod(shape) * SAFETENSORS_BITS[info["dtype"]]:
        raise ValueError(f"{stop - start} bytes for {info['dtype']} {shape}")
    return start, stop


def _read_gguf(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _gguf_tensors(path, file, size)
        except struct.error as error:  # the file ended in the middle of a number
            raise _truncated(path, size, size + 1) from error
        except (UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise _damaged(path, f"{type(error).__name__} {error}") from error


def _gguf_tensors(path: Path, file: BinaryIO, size: int) -> dict[str, TensorInfo]:
    _, version, num_tensors, num_values = _unpack(file, "<4sIQQ")
    if version not in (2, 3):
        raise _damaged(path, f"version {version}; 2 and 3 can be read")
    alignment = 32
    for _ in range(num_values):
        key = _gguf_string(file)
        (kind,) = _unpack(file, "<I")
        value = _gguf_value(file, kind)
        alignment = int(value) if key == "general.alignment" else alignment
    tensors, end = {}, 0
    for _ in range(num_tensors):
        name = _gguf_string(file)
        (num_axes,) = _unpack(file, "<I")
        shape = tuple(reversed(_unpack(file, f"<{num_axes}Q")))  # GGML counts axes from the last
        number, offset = _unpack(file, "<IQ")
        dtype, block, block_bytes = GGML_TYPES.get(number, (f"type {number}", 1, 0))
        tensors[name] = TensorInfo(dtype, shape, path)
        end = max(end, offset + prod(shape) // block * block_bytes)
    needs = -(-file.tell() // alignment) * alignment + end
    if needs > size:
        raise _truncated(path, size, needs)
    return tensors


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    """Reads one metadata value; arrays are passed over."""
    if kind == GGUF_STRING:
        return _gguf_string(file)
    if kind != GGUF_ARRAY:
        return _unpack(file, "<" + GGUF_SCALARS[kind])[0]
    item, length = _unpack(file, "<IQ")
    if item in GGUF_SCALARS:
        file.seek(length * struct.calcsize("<" + GGUF_SCALARS[item]), os.SEEK_CUR)
        return None
    for _ in range(length):
        _gguf_value(file, item)
    return None


def _gguf_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    if length > MAX_HEADER_BYTES:
        raise OverflowError(f"a name of {length} bytes")
    raw = file.read(length)
    if len(raw) < length:
        raise struct.error
    return raw.decode("utf-8")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
