"""Which family of models an adapter file is for, by the shapes of its tensors. No torch here: headers only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from kleinbild.core.errors import WeightsError
from kleinbild.model import catalog, official
from kleinbild.model.adapters.plan import Plan, plan
from kleinbild.model.spec import TransformerSpec
from kleinbild.model.weights.components import recognize
from kleinbild.model.weights.headers import StoredTensors, read_header
from kleinbild.model.weights.layouts import Shape
from kleinbild.model.weights.specs import Family, transformer_spec

MAX_TENSORS = 20_000  # all layers of klein-9b, each in every way at once, are a tenth
MAX_HEADER_BYTES = 16_000_000


@cache
def specs() -> Mapping[Family, TransformerSpec]:
    """The transformer of each known family."""
    known: dict[Family, TransformerSpec] = {}
    if packaged := catalog.locate(catalog.find("nano")):
        component = recognize(read_header(packaged))
        assert component is not None  # it comes with the package
        known["nano"] = transformer_spec(component)
    known["klein-4b"], known["klein-9b"] = (official.SPECS[name].transformer for name in ("klein-4b", "klein-9b"))
    return known


def read_adapter_header(path: Path) -> StoredTensors:
    """Names and shapes of an adapter file. Raises WeightsError for a file that is none, is damaged, or far too large."""
    if not path.is_file():
        raise WeightsError(f"there is no adapter file {path}", "give the path of a .safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    stored = read_header(path)
    if stored.container != "safetensors":
        raise WeightsError(
            f"{path} is a GGUF file; adapters are safetensors files", "use the adapter's safetensors file"
        )
    if length > MAX_HEADER_BYTES or len(stored.tensors) > MAX_TENSORS:
        raise WeightsError(
            f"{path} has {len(stored.tensors)} tensors: too many for an adapter", "name an adapter's file"
        )
    if not stored.tensors:
        raise WeightsError(f"{path} holds no tensors", "save the adapter again")
    return stored


def shapes_of(stored: StoredTensors) -> dict[str, Shape]:
    return {name: info.shape for name, info in stored.tensors.items()}


def family_of(stored: StoredTensors) -> Family | None:
    """The family that most of a file's changes fit, and none of them not; None where there is no such."""
    shapes = shapes_of(stored)
    planned: dict[Family, Plan] = {name: plan(shapes, spec) for name, spec in specs().items()}
    fitting = {name: each for name, each in planned.items() if each.groups and not each.misfits}
    return max(fitting, key=lambda name: len(fitting[name].groups), default=None)
