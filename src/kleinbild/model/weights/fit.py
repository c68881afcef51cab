"""Whether a component's tensors are exactly those that its spec asks for: nothing missing, extra or of another shape.

Loading and checking share this comparison; neither reads more than headers for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kleinbild.core.errors import WeightsError
from kleinbild.model.spec import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from kleinbild.model.weights.components import Component
from kleinbild.model.weights.headers import GGML_TYPES
from kleinbild.model.weights.layouts import (
    Shape,
    Source,
    Sources,
    diffusers_autoencoder,
    diffusers_transformer,
    same_names,
)
from kleinbild.model.weights.scaled import FLOAT8
from kleinbild.model.weights.shapes import autoencoder_shapes, text_encoder_shapes, transformer_shapes

Spec = TransformerSpec | TextEncoderSpec | AutoencoderSpec

LISTED = 8  # how many tensors an error names; the rest is counted
FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8)


@dataclass(frozen=True, slots=True)
class Misshapen:
    name: str
    expected: Shape
    actual: Shape


@dataclass(frozen=True, slots=True)
class Fit:
    """What keeps a component from being whole; all empty when it is. Names are the file's, without prefix."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[Misshapen, ...]
    unreadable: tuple[str, ...]  # of a number type that cannot be read, such as four bits

    @property
    def complete(self) -> bool:
        return not (self.missing or self.extra or self.misshapen or self.unreadable)


def expected_shapes(spec: Spec) -> dict[str, Shape]:
    """Shapes of all our tensors that are loaded for `spec`."""
    if isinstance(spec, TransformerSpec):
        return transformer_shapes(spec)
    if isinstance(spec, AutoencoderSpec):
        return autoencoder_shapes(spec)
    return text_encoder_shapes(spec, spec.num_layers_needed)


def sources_of(component: Component, spec: Spec) -> Sources:
    """Where each of our tensors lies in the component's files, prefix included."""
    if component.naming == "diffusers" and isinstance(spec, TransformerSpec):
        sources = diffusers_transformer(spec)
    elif component.naming == "diffusers" and isinstance(spec, AutoencoderSpec):
        sources = diffusers_autoencoder(spec)
    else:
        sources = same_names(expected_shapes(spec))
    prefix = component.prefix
    return {ours: Source(tuple(prefix + name for name in s.names), s.form) for ours, s in sources.items()}


def fit(component: Component, spec: Spec) -> Fit:
    """Compares what is stored with what `spec` asks for."""
    shapes, sources = expected_shapes(spec), sources_of(component, spec)
    expected = {name: s.stored_shape(shapes[ours]) for ours, s in sources.items() for name in s.names}
    stored = component.stored.tensors
    bare = component.prefix
    return Fit(
        missing=tuple(name.removeprefix(bare) for name in expected if name not in stored),
        extra=tuple(name for name in stored if name not in expected and not _is_known(name, spec)),
        misshapen=tuple(
            Misshapen(name.removeprefix(bare), shape, stored[name].shape)
            for name, shape in expected.items()
            if name in stored and stored[name].shape != shape
        ),
        unreadable=tuple(
            f"{name.removeprefix(bare)} ({stored[name].dtype})"
            for name in expected
            if name in stored and not _is_readable(component, stored[name].dtype)
        ),
    )


def require_fit(component: Component, spec: Spec) -> None:
    """Raises WeightsError that lists what does not fit."""
    found = fit(component, spec)
    if found.complete:
        return
    lines = [f"{component.place} is not a whole {component.kind.replace('_', ' ')}:"]
    shapes = [f"{m.name} is {_by(m.actual)}, should be {_by(m.expected)}" for m in found.misshapen]
    for what, names in (
        ("missing", found.missing),
        ("extra", found.extra),
        ("misshapen", shapes),
        ("of a type that cannot be read", found.unreadable),
    ):
        if names:
            lines.append(f"  {len(names)} {what}: {listed(names)}")
    raise WeightsError("\n".join(lines), "`kleinbild models check` lists all; fetch the file again or use another one")


def listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _is_known(name: str, spec: Spec) -> bool:
    """Tensors that official files hold and that are not needed: passed over, not extra."""
    if isinstance(spec, AutoencoderSpec):
        return name == "bn.num_batches_tracked"
    if isinstance(spec, TextEncoderSpec):
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        return name in ("model.norm.weight", "lm_head.weight") or (
            layer is not None and int(layer[1]) >= spec.num_layers_needed
        )
    return False


def _is_readable(component: Component, dtype: str) -> bool:
    if component.stored.container == "gguf":
        return any(dtype == name for name, _, _ in GGML_TYPES.values())
    return dtype in FLOATS


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a single number"
