"""What a weight file or folder holds and whether it is whole, from headers alone: `kleinbild models check`.

Takes milliseconds for files of any size, and no torch. The numbers themselves are not read; loading does that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from kleinbild.core.errors import MissingWeightsError, WeightsError
from kleinbild.model.weights.components import Component, Kind, Layout, recognize
from kleinbild.model.weights.fit import Misshapen, Spec, fit
from kleinbild.model.weights.headers import read_stored
from kleinbild.model.weights.settings import Settings, Variant
from kleinbild.model.weights.sources import find_parts, model_spec
from kleinbild.model.weights.specs import (
    Family,
    autoencoder_spec,
    family,
    num_text_layers,
    text_encoder_spec,
    transformer_spec,
)
from kleinbild.model.weights.variants import known_variant


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """One network. `dtype` lists the number types by their share; names of tensors are the file's."""

    kind: Kind
    layout: Layout
    place: str
    dtype: str
    parameters: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[Misshapen, ...]
    unreadable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.extra or self.misshapen or self.unreadable)


@dataclass(frozen=True, slots=True)
class Report:
    """A file's or folder's networks. `absent`: parts that a folder lacks; `problem`: why its networks are no model.

    `family` and `variant` are None where nothing tells: distilled and base weights look alike.
    """

    path: str
    family: Family | None
    variant: Variant | None
    components: tuple[ComponentReport, ...]
    absent: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def complete(self) -> bool:
        return not self.absent and self.problem is None and all(component.complete for component in self.components)

    @property
    def parameters(self) -> int:
        return sum(component.parameters for component in self.components)

    def to_json(self) -> dict[str, Any]:
        components = [{**asdict(component), "complete": component.complete} for component in self.components]
        return {**asdict(self), "components": components, "parameters": self.parameters, "complete": self.complete}


def check(path: Path) -> Report:
    """The report on a file (one network by itself) or a folder (a whole model).

    Raises MissingWeightsError where there is nothing, WeightsError where a header is damaged or the content is unknown.
    """
    if not path.exists():
        raise MissingWeightsError(f"there is no {path}", "name a weight file or a model folder")
    return _check_folder(path) if path.is_dir() else _check_file(path)


def _check_folder(folder: Path) -> Report:
    parts = find_parts(folder)
    components, settings = parts.components, parts.settings
    problem = None
    if len(components) == 3:
        try:
            model_spec(parts)
        except WeightsError as error:
            problem = error.message
    transformer = components.get("transformer")
    return Report(
        path=str(folder),
        family=family(transformer_spec(transformer)) if transformer else None,
        variant=known_variant(folder),
        components=tuple(_report(component, _spec(component, settings)) for component in components.values()),
        absent=parts.missing,
        problem=problem,
    )


def _check_file(path: Path) -> Report:
    component = recognize(read_stored(path))
    if component is None:
        raise WeightsError(f"{path} holds no network of this family", "name a transformer, text encoder or autoencoder")
    settings = Settings()
    if component.kind == "text_encoder" and (layers := num_text_layers(component)):
        # Nothing says how much of it is needed: a small one, all; an official one, what the official models need.
        settings = replace(settings, text_layers=(min(layers, max(settings.text_layers)),))
    spec = _spec(component, settings)
    is_transformer = component.kind == "transformer"
    return Report(
        path=str(path),
        family=family(transformer_spec(component)) if is_transformer else None,
        variant=known_variant(path) if is_transformer else None,
        components=(_report(component, spec),),
    )


def _spec(component: Component, settings: Settings) -> Spec:
    if component.kind == "transformer":
        return transformer_spec(component)
    read = text_encoder_spec if component.kind == "text_encoder" else autoencoder_spec
    return read(component, settings)


def _report(component: Component, spec: Spec) -> ComponentReport:
    found = fit(component, spec)
    numbers: Counter[str] = Counter()
    for info in component.stored.tensors.values():
        numbers[info.dtype] += prod(info.shape)
    return ComponentReport(
        kind=component.kind,
        layout=component.layout,
        place=component.place,
        dtype=" + ".join(dtype for dtype, _ in numbers.most_common()),
        parameters=numbers.total(),
        missing=found.missing,
        extra=found.extra,
        misshapen=found.misshapen,
        unreadable=found.unreadable,
    )
