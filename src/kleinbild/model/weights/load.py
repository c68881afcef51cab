"""Weights from files into networks: strictly, tensor by tensor, without a second copy in memory.

The networks are built on the meta device, which holds no numbers; each tensor is mapped from its file, converted to the
wanted type and put in its place. Tensors that are of that type already stay mapped, so that processes share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kleinbild.core.errors import WeightsError
from kleinbild.core.precision import Precision
from kleinbild.model.autoencoder import Autoencoder
from kleinbild.model.offload import Offloaded
from kleinbild.model.placement import LOOKED_UP
from kleinbild.model.precision import QUANTIZED, compute_dtype, prove, quantizable
from kleinbild.model.spec import ModelSpec
from kleinbild.model.text_encoder import TextEncoder
from kleinbild.model.tokenizer import PromptTokenizer
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights.components import Component
from kleinbild.model.weights.convert import to_ours
from kleinbild.model.weights.fit import Spec, expected_shapes, require_fit, sources_of
from kleinbild.model.weights.gguf import gguf_reader
from kleinbild.model.weights.scaled import read_scaled
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.sources import Parts, locate_parts, model_spec

LARGE = 1_000_000_000  # parameters of the transformer from which on bfloat16 is the default
SAMPLE_BLOCKS, SAMPLE_LENGTH = 64, 4096  # of a large tensor, what the fingerprint looks at

Network = TypeVar("Network", bound=nn.Module)


@dataclass(slots=True)
class Model:
    """A model ready to run: networks in eval mode, without gradients, on one device, and what is needed around them.

    `device` is where it computes. Its weights are there, too, unless they are `offloaded` (`engine.residence.place`).
    `fingerprint` is the same wherever and in whatever layout the same weights lie, whatever type they are loaded in.
    `notes` say what came out otherwise than asked for.
    """

    name: str
    spec: ModelSpec
    settings: Settings
    transformer: Flux2Transformer
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    tokenizer: PromptTokenizer
    device: torch.device
    precision: Precision
    fingerprint: str
    notes: tuple[str, ...] = ()
    offloaded: Offloaded | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type that latents, contexts and pictures are handed to the networks in."""
        return compute_dtype(self.precision)


def load_model(
    name_or_path: str | Path, *, device: torch.device | str = "cpu", precision: Precision | None = None
) -> Model:
    """A known model, or the one in a weight file or folder: `open_model`, then `load` to `device`."""
    return open_model(name_or_path, device=device, precision=precision).load()


def open_model(
    name_or_path: str | Path, *, device: torch.device | str = "cpu", precision: Precision | None = None
) -> OpenedModel:
    """All that is known of a model before its weights are read. Without `precision`: float32 if small, else bfloat16.

    A precision of eight bits that this device gets wrong is not used: the model is in bfloat16 then, and says so in
    its `notes`.

    Raises UnknownModelError, MissingWeightsError where parts are not on this machine, and WeightsError where a file is
    damaged or does not fit.
    """
    name, parts = locate_parts(name_or_path)
    spec, device = model_spec(parts), torch.device(device)
    return OpenedModel(name, parts, spec, device, *usable_precision(spec, precision, device))


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model whose files are found, with what it will be when they are loaded."""

    name: str
    parts: Parts
    spec: ModelSpec
    device: torch.device
    precision: Precision
    notes: tuple[str, ...]

    def load(self, weights_on: torch.device | str | None = None) -> Model:
        """`weights_on` is where the weights go, if not to `device`: it cannot compute then until they are offloaded.

        Raises WeightsError where a file is damaged, does not fit, or holds NaN or infinity.
        """
        digest, where = hashlib.sha256(), self.device if weights_on is None else weights_on
        spec, components, precision = self.spec, self.parts.components, self.precision
        assert self.parts.tokenizer is not None  # `locate_parts` has seen to it
        return Model(
            name=self.name,
            spec=spec,
            settings=self.parts.settings,
            transformer=load_network(
                Flux2Transformer, spec.transformer, components["transformer"], where, precision, digest
            ),
            text_encoder=load_network(
                TextEncoder, spec.text_encoder, components["text_encoder"], where, precision, digest
            ),
            autoencoder=load_network(
                Autoencoder, spec.autoencoder, components["autoencoder"], where, precision, digest
            ),
            tokenizer=_load_tokenizer(self.parts.tokenizer, spec.text_encoder.max_tokens),
            device=self.device,
            precision=precision,
            fingerprint=digest.hexdigest()[:16],
            notes=self.notes,
        )


def load_network(
    network: Callable[[Any], Network],
    spec: Spec,
    component: Component,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    digest: hashlib._Hash | None = None,
) -> Network:
    """One network from its files. `digest`, if given, takes in the weights for the fingerprint."""
    require_fit(component, spec)
    shapes, sources, state = expected_shapes(spec), sources_of(component, spec), {}
    with torch.device("meta"):
        built = network(spec)
    quantized = {}
    if make := QUANTIZED.get(precision):
        quantized = {f"{name}.weight": partial(setattr, parent, child) for parent, child, name in quantizable(built)}
    with ExitStack() as stack, torch.no_grad():
        read, glance = (_reader(component, stack, keep=keep) for keep in (make is None, False))
        for ours in shapes:  # in this order in every layout, for the fingerprint
            is_looked_up = ours.startswith(LOOKED_UP)
            tensor = to_ours(sources[ours], glance if is_looked_up else read)
            _require_finite(component, ours, tensor)
            if digest is not None:
                digest.update(f"{ours} {shapes[ours]}".encode())
                digest.update(_sample(tensor))
            if is_looked_up:  # prompts need some hundred of its rows: the others' pages shall not stay
                tensor = to_ours(sources[ours], read)
            if make is not None and ours in quantized:
                quantized[ours](make(tensor.to(device)))
            else:
                state[ours] = tensor.to(device=device, dtype=compute_dtype(precision))
            del tensor  # its file's pages, before the next
    for name, tensor in built.state_dict().items():  # what was quantized is in its place
        if name not in state:
            state[name] = tensor if not tensor.is_meta else torch.zeros((), dtype=torch.long)  # BatchNorm's counter
    built.load_state_dict(state, assign=True)
    return built.to(device).requires_grad_(False).eval()


def _reader(component: Component, stack: ExitStack, *, keep: bool) -> Callable[[str], Tensor]:
    """A function from a tensor's name to the tensor. With `keep` files stay open, mapped, until the stack is left.

    Without, each tensor has a mapping of its own: what was read of a file does not stay in memory until its end.
    """
    if component.stored.container == "gguf" or not keep:
        return tensor_reader(component)
    paths, tensors = component.stored.paths, component.stored.tensors
    try:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{component.place} cannot be read: {error}", "fetch it again") from error
    return lambda name: read_scaled(lambda path, each: files[path].get_tensor(each), tensors[name], name)


def tensor_reader(component: Component) -> Callable[[str], Tensor]:
    """A function from a tensor's name in the component's files to the tensor, each read by itself."""
    if component.stored.container == "gguf":
        return gguf_reader(component.stored.paths)
    return lambda name: read_scaled(partial(_read_alone, component), component.stored.tensors[name], name)


def _read_alone(component: Component, path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{component.place} cannot be read: {error}", "fetch it again") from error


def _require_finite(component: Component, name: str, tensor: Tensor) -> None:
    low, high = torch.aminmax(tensor)  # one pass, a tenth of the time of isfinite; NaN wins in both
    if not (torch.isfinite(low) and torch.isfinite(high)):
        what = "NaN" if torch.isnan(low) else "infinity"
        raise WeightsError(f"{component.place} holds {what} in {name}: the weights are damaged", "fetch the file again")


def _sample(tensor: Tensor) -> bytes:
    """The tensor's numbers as float32, of a large one some blocks, evenly spaced."""
    flat = tensor.reshape(-1)
    if flat.numel() > 4 * SAMPLE_BLOCKS * SAMPLE_LENGTH:
        starts = torch.linspace(0, flat.numel() - SAMPLE_LENGTH, SAMPLE_BLOCKS, dtype=torch.float64).long().tolist()
        flat = torch.cat([flat[start : start + SAMPLE_LENGTH] for start in starts])
    return flat.float().contiguous().numpy().tobytes()


def usable_precision(
    spec: ModelSpec, precision: Precision | None, device: torch.device
) -> tuple[Precision, tuple[str, ...]]:
    """The precision asked for, or the model's own; where `device` gets it wrong, bfloat16 and a note that says so."""
    precision = precision or default_precision(spec)
    if problem := prove(precision, device):
        return "bfloat16", (f"bfloat16 instead of {precision}, which does not work here: {problem}",)
    return precision, ()


def default_precision(spec: ModelSpec) -> Precision:
    """float32 for small models, bfloat16 for those with billions of parameters."""
    parameters = sum(torch.Size(shape).numel() for shape in expected_shapes(spec.transformer).values())
    return "bfloat16" if parameters >= LARGE else "float32"


def _load_tokenizer(folder: Path, max_tokens: int) -> PromptTokenizer:
    try:
        return PromptTokenizer(folder, max_tokens)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise WeightsError(f"the tokenizer in {folder} cannot be read: {error}", "fetch it again") from error
