"""Pictures with the adapter that is being trained, made as they will be served: the engine's own batcher, the adapter in a file.

The base model is the one that is trained on. Of the distilled model only the transformer is loaded, for text encoder and
autoencoder are the family's; on a GPU it rests on the host from one preview to the next. Prompts are encoded once, so
that a trainer may let go of its text encoder after `prime`. Nothing here draws from torch's own random stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from kleinbild.core.adapters import AdapterUse, Kind
from kleinbild.core.requests import MAX_STEPS, PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.batcher import Batcher
from kleinbild.engine.caches import Caches, Layouts, Modulator
from kleinbild.engine.encode import encode_prompt
from kleinbild.engine.prepare import prepare
from kleinbild.engine.runtime import own_memory
from kleinbild.model import catalog
from kleinbild.model.transformer import Flux2Transformer
from kleinbild.model.weights import Model
from kleinbild.model.weights.load import load_network, open_model
from kleinbild.model.weights.specs import family
from kleinbild.train.likeness import Look, look_at


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to make, always from the same seed; `references` are picture files. `most_steps` bounds the model's own."""

    prompt: str
    seed: int
    references: tuple[Path, ...] = ()
    size: Size | None = None
    most_steps: int = MAX_STEPS

    def request(self, model: Model, uses: tuple[AdapterUse, ...]) -> PictureRequest:
        files = tuple(path.read_bytes() for path in self.references)
        steps = min(self.most_steps, model.settings.default_steps)
        return PictureRequest(
            self.prompt, model=model.name, size=self.size, seed=self.seed, steps=steps, references=files, adapters=uses
        )


class Studio:
    """The two models of a family, or the base alone where the distilled one is not on this machine."""

    def __init__(self, base: Model, distilled: Model | None) -> None:
        self.models: Mapping[Kind, Model] = {"base": base}
        if distilled is not None:
            self.models = {"base": base, "distilled": distilled}
        self._caches = Caches.of(base)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(self.models)

    @property
    def served(self) -> Kind:
        """What most people will use the adapter with: the distilled model, where it is here."""
        return self.kinds[-1]

    def prime(self, asks: Sequence[Ask], adapter: Path | None = None) -> None:
        """Encodes all prompts now. Raises PromptError for one that the models do not understand."""
        for kind, model in self.models.items():
            with torch.inference_mode():
                for request in self._requests(kind, asks, adapter, 1.0):
                    encode_prompt(model, self._caches, prepare(request, model))

    def pictures(
        self, kind: Kind, asks: Sequence[Ask], adapter: Path | None = None, strength: float = 1.0
    ) -> list[Image.Image]:
        """One picture an ask, at the model's own steps and guidance, with the adapter in the file or without any.

        At strength 0 the model is as it was, and yet knows the words that the adapter's card tells.
        """
        requests = self._requests(kind, asks, adapter, strength)
        with _on_device(self.models[kind]):
            return [picture.pil for picture in self._batcher(kind).make(requests)]

    def looks(self, kind: Kind, asks: Sequence[Ask], adapter: Path | None = None, strength: float = 1.0) -> list[Look]:
        """What those pictures look like."""
        return [look_at(self.models["base"], image) for image in self.pictures(kind, asks, adapter, strength)]

    def _batcher(self, kind: Kind) -> Batcher:
        """A new one each time: where the base itself is trained, what follows from its weights cannot be kept."""
        model = self.models[kind]
        caches = replace(
            self._caches,
            modulator=Modulator(model.transformer, model.device),
            layouts=Layouts(model.transformer.spec, model.device),
        )
        return Batcher(model, memory_bytes=own_memory(model.device), caches=caches)

    def _requests(self, kind: Kind, asks: Sequence[Ask], adapter: Path | None, strength: float) -> list[PictureRequest]:
        uses = () if adapter is None else (AdapterUse(str(adapter), strength),)
        return [ask.request(self.models[kind], uses) for ask in asks]


def open_studio(base: Model) -> Studio:
    """A studio for a base model in memory, with its family's distilled model if that is on this machine."""
    entry = distilled_of(base)
    if entry is None or catalog.locate(entry) is None:
        return Studio(base, None)
    opened = open_model(entry.name, device=base.device, precision=None if base.device.type == "cpu" else "bfloat16")
    digest = hashlib.sha256()
    transformer = load_network(
        Flux2Transformer,
        opened.spec.transformer,
        opened.parts.components["transformer"],
        "cpu",
        opened.precision,
        digest,
    )
    distilled = replace(
        base, name=opened.name, spec=opened.spec, settings=opened.parts.settings, transformer=transformer,
        precision=opened.precision, fingerprint=digest.hexdigest()[:16], notes=opened.notes, offloaded=None,
    )  # fmt: skip
    return Studio(base, distilled)


def distilled_of(base: Model) -> catalog.Entry | None:
    """What an adapter trained on `base` is served on. None for a family of somebody's own."""
    return catalog.find_variant(family(base.spec.transformer), "distilled")


@contextmanager
def _on_device(model: Model) -> Iterator[None]:
    """The transformer where the model computes; afterwards where it was."""
    rests_on = model.transformer.img_in.weight.device
    model.transformer.to(model.device)
    try:
        yield
    finally:
        if rests_on != model.device:
            model.transformer.to(rests_on)
