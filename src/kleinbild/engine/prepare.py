"""First step of the recipe: a request, checked against the model, with everything settled that it left open."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from kleinbild.core.errors import PromptError, RequestError
from kleinbild.core.requests import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, PictureRequest
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.inputs import Inputs, prepare_inputs
from kleinbild.engine.named import Named, named_adapters
from kleinbild.model.spec import ModelSpec
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.sources import locate_parts, model_spec

if TYPE_CHECKING:
    from kleinbild.model.packing import ReferenceMode
    from kleinbild.model.tokenizer import TokenizedPrompt
    from kleinbild.model.weights import Model

_DRAWN_SEEDS = 2**32  # any seed up to 2**63 - 1 may be given; drawn ones stay short enough to read aloud


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that nothing can be wrong with any more: every field is final. `prompt` is what the model reads."""

    request: PictureRequest
    prompt: str
    tokens: TokenizedPrompt
    seed: int
    steps: int
    guidance: float
    inputs: Inputs
    reference_mode: ReferenceMode
    adapters: tuple[Named, ...] = ()

    @property
    def size(self) -> Size:
        """What the model makes; the picture itself is `inputs.frame.size`."""
        return self.inputs.frame.made

    @property
    def references(self) -> tuple[Image.Image, ...]:
        """As the model takes them."""
        return self.inputs.references

    @property
    def num_branches(self) -> int:
        """How often it stands in a pass: guidance compares with a second segment under the empty prompt."""
        return 1 if self.guidance == 1 else 2


def prepare(request: PictureRequest, model: Model) -> Prepared:
    """Checks `request` and fills in the model's defaults. Raises RequestError or one of its kinds."""
    settled = settle(request, model.name, model.settings, model.spec)
    too_long = model.tokenizer.count(settled.prompt) > model.tokenizer.max_tokens
    prompt = request.prompt if too_long else settled.prompt
    return Prepared(
        request=request,
        prompt=prompt,
        tokens=model.tokenizer(prompt),
        seed=settled.seed,
        steps=settled.steps,
        guidance=settled.guidance,
        inputs=settled.inputs,
        reference_mode=settled.reference_mode,
        adapters=settled.adapters,
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """What a request comes to, as far as that can be told without its model's networks.

    `prompt` is what the model reads, `reference_mode` how the references take part in the first step.
    """

    prompt: str
    inputs: Inputs
    seed: int
    steps: int
    guidance: float
    reference_mode: ReferenceMode
    adapters: tuple[Named, ...] = ()


def check(request: PictureRequest) -> Settled:
    """Raises what `prepare` would, before the model is loaded and without torch: all but the limit of tokens.

    Raises what loading would where the model is unknown or parts of it are not here.
    """
    name, parts = locate_parts(request.model)
    return settle(request, name, parts.settings, model_spec(parts))


def settle(request: PictureRequest, name: str, settings: Settings, spec: ModelSpec) -> Settled:
    """`request` for the model `name` with these settings; its weights need not be here.

    Raises RequestError, and ModelError where an adapter is not here.
    """
    adapters = named_adapters(request, name, settings, spec.transformer)
    _check_prompt(request, settings.vocabulary, frozenset().union(*(adapter.words for adapter in adapters)))
    inputs = prepare_inputs(request, settings.default_size, size_range(settings, spec))
    seed = _seed(request.seed)
    return Settled(
        _prompt(request, settings, seed, inputs.frame.made),
        inputs,
        seed,
        _steps(request.steps, settings),
        _guidance(request.guidance, settings, name),
        _reference_mode(request, settings),
        adapters,
    )


def size_range(settings: Settings, spec: ModelSpec) -> SizeRange:
    """The sizes that a model makes."""
    return SizeRange(settings.min_side, settings.max_side, settings.max_pixels, spec.autoencoder.pixels_per_token)


def _check_prompt(request: PictureRequest, vocabulary: str | None, learned: frozenset[str]) -> None:
    """`learned`: words beyond the vocabulary that adapters bring."""
    if not isinstance(request.prompt, str):
        raise PromptError(f"the prompt is a {type(request.prompt).__name__}, not text", "give a string")
    if not request.prompt.strip():
        raise PromptError("the prompt is empty", "say what the picture shall show")
    try:
        request.prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            "the prompt is not valid text (UTF-8)", "type it again, or check the terminal's locale"
        ) from error
    if vocabulary == "nano":
        from kleinbild.nano.words import check

        check(request.prompt, len(request.references), learned)


def _prompt(request: PictureRequest, settings: Settings, seed: int, size: Size) -> str:
    """What the model reads: what nano's prompts for new pictures leave open, the seed settles."""
    if settings.vocabulary == "nano" and not request.references:
        from kleinbild.nano.settle import settle

        return settle(request.prompt, seed, narrow=min(size.width, size.height) < settings.default_size)
    return request.prompt


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(_DRAWN_SEEDS)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise RequestError(f"{seed!r} is not a seed", f"use a whole number from 0 to {MAX_SEED}")
    return seed


def _steps(steps: int | None, settings: Settings) -> int:
    if steps is None:
        return settings.default_steps
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise RequestError(f"{steps!r} is not a number of steps", f"use a whole number from 1 to {MAX_STEPS}")
    return steps


def _guidance(guidance: float | None, settings: Settings, name: str) -> float:
    if guidance is None:
        return float(settings.default_guidance)
    if type(guidance) not in (int, float) or not math.isfinite(guidance) or not 1 <= guidance <= MAX_GUIDANCE:
        raise RequestError(f"{guidance!r} is not a guidance", f"use a number from 1 (none) to {MAX_GUIDANCE:g}")
    if settings.distilled and guidance != 1:
        raise RequestError(
            f"{name} is distilled: it works without guidance, {guidance:g} would have no effect",
            "leave guidance out, or use a base model",
        )
    return float(guidance)


def _reference_mode(request: PictureRequest, settings: Settings) -> ReferenceMode:
    if not request.references:
        return "joint"
    if settings.reference_caching:
        return "store"
    return "keep" if request.cache_references else "joint"
