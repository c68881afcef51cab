"""Where a model can be had: a deployment is a model at a provider, with its price and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kleinbild.core.formats import PictureFormat
from kleinbild.core.jobs import Task
from kleinbild.core.prices import Price
from kleinbild.core.sizes import SizeRange

UNKNOWN_PRICE = Price()

ProviderKind = Literal["local", "openai", "bfl", "replicate", "together", "stability", "fal"]
PROVIDER_KINDS: tuple[ProviderKind, ...] = ("local", "openai", "bfl", "replicate", "together", "stability", "fal")
Parameter = Literal[
    "size",
    "seed",
    "steps",
    "guidance",
    "quality",
    "background",
    "mask",
    "strength",
    "negative_prompt",
    "adapters",
    "output_compression",
    "partial_images",
    "user",
    "moderation",
    "input_fidelity",
]
"""Fields of a request that some places honour and others do not."""


@dataclass(frozen=True, slots=True)
class Can:
    """What a place does with a model: data, so that a request never goes where a required parameter would be lost.

    `sizes` is None where only shapes can be chosen (`ratios`, as "16:9"; the nearest is taken, and said), or nothing at
    all. `max_images` is of one call: more are asked for in several. `formats` are those that it delivers; others are made
    of them here. `cancel`: what was begun can be ended. `guidance`: the model takes it. `default_steps` is None where
    the service does not say. `always` are values that it works with and cannot be told.
    `one_seed`: a call has but one, so that of pictures whose seeds are asked for each is a call.
    """

    tasks: frozenset[Task]
    parameters: frozenset[Parameter]
    formats: frozenset[PictureFormat] = frozenset({"png"})
    sizes: SizeRange | None = None
    exact_sizes: tuple[str, ...] = ()
    ratios: tuple[str, ...] = ()
    max_images: int = 1
    max_references: int = 0
    max_prompt: int = 32_000
    default_steps: int | None = None
    always: tuple[tuple[Parameter, str], ...] = ()
    one_seed: bool = False
    cancel: bool = False
    previews: bool = False

    def does(self, parameter: Parameter, value: object) -> bool:
        """Whether a request with that value gets what it wants."""
        if parameter in self.parameters or (parameter, value) in self.always:
            return True
        return parameter == "steps" and value == self.default_steps


@dataclass(frozen=True, slots=True)
class Deployment:
    """`model` is what callers ask for, `provider_model` its name at `provider` (a provider's name, not its kind).

    `quality` is 0 to 1, None if nobody said. `on_machine`: pictures and prompts do not leave this machine. `can` is the
    provider's word, cut down to `tasks` where the configuration says so.
    """

    name: str
    model: str
    provider: str
    kind: ProviderKind
    provider_model: str
    can: Can
    price: Price = UNKNOWN_PRICE
    region: str | None = None
    quality: float | None = None
    weight: float = 1.0

    @property
    def on_machine(self) -> bool:
        return self.kind == "local"

    @property
    def account_model(self) -> str:
        return account_model(self.provider, self.provider_model)


def account_model(provider: str, provider_model: str) -> str:
    """What limits of an account's calls of one model are known by. No provider has such a name."""
    return f"{provider}/{provider_model}"
