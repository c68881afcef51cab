"""What stands in kleinbild.toml as a list: providers, deployments, aliases, keys, budgets and rules; and how it is routed.

    [[deployments]]
    name = "alpha-sketch"

Each entry is checked here by itself; that they fit together is `gateway.coherent`'s to say. Secrets never stand in the
file: an entry names the variable of the environment that holds one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from kleinbild.core.callers import Limits, Role
from kleinbild.core.deployments import ProviderKind
from kleinbild.core.errors import RequestError
from kleinbild.core.jobs import Task
from kleinbild.core.money import dollars
from kleinbild.gateway.routing.policy import PARTS, POLICIES, policy_text


def _policy(value: object) -> str:
    if not isinstance(value, str | Mapping):
        raise ValueError(f"it is {', '.join(sorted(POLICIES))}, or weights of {', '.join(PARTS)}")
    try:
        return policy_text(value)
    except RequestError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


Policy = Annotated[
    str,
    BeforeValidator(_policy),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": sorted(POLICIES)},
                {
                    "type": "object",
                    "properties": {part: {"type": "number", "minimum": 0} for part in PARTS},
                    "additionalProperties": False,
                    "minProperties": 1,
                },
            ]
        }
    ),
]
"""What `routing.policy.read_policy` reads: a name, or weights, which are kept as JSON."""
USUAL_KEY_VARIABLES: dict[ProviderKind, str] = {
    "openai": "OPENAI_API_KEY",
    "bfl": "BFL_API_KEY",
    "replicate": "REPLICATE_API_TOKEN",
    "together": "TOGETHER_API_KEY",
    "stability": "STABILITY_API_KEY",
    "fal": "FAL_KEY",
}
"""Where the services' own clients look for the key."""
CALLING_BACK: dict[ProviderKind, bool] = {"bfl": True, "replicate": True, "fal": False}
"""Kinds of services with webhooks, and whether it takes a secret to know them."""
MAX_WINDOW_DAYS = 366
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])|month")


def _amount(value: object) -> Decimal:
    if isinstance(value, float):
        raise ValueError('a number with a point is not exact in TOML; write the amount as text, such as "0.014"')
    try:
        amount = dollars(value)  # type: ignore[arg-type]
    except RequestError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    if amount < 0:
        raise ValueError(f"{value!r} is less than nothing; amounts start at 0")
    return amount


def _variable(value: str) -> str:
    """Says nothing of the value: it may be the key itself."""
    if not _VARIABLE.fullmatch(value):
        raise ValueError(
            "it is the name of a variable of the environment, in capitals, such as ALPHA_KEY; the key itself does not "
            "belong in the file"
        )
    return value


def _base_url(value: str) -> str:
    """Says nothing of the value: there may be a password in it."""
    try:
        parts = urlsplit(value)
        with_user = parts.username is not None or parts.password is not None
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = with_user = False
    if with_user:
        raise ValueError("there is a user or a password in it; the key goes into the variable that api_key_env names")
    if not good or parts.query or parts.fragment:
        raise ValueError("it is not an address such as https://api.example.com/v1 (no ?, no #)")
    return value.rstrip("/")


def _day(value: object) -> str:
    text = value.isoformat() if isinstance(value, date) else str(value)
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ValueError("it is not a day such as 2026-11-22") from error


def _window(value: str) -> str:
    found = _WINDOW.fullmatch(value)
    days = int(found[1]) / (24 if found[2] == "h" else 1) if found and found[1] else 0
    if found is None or days > MAX_WINDOW_DAYS:
        raise ValueError("it is not a span of time such as 12h or 30d, of a year at most, nor month")
    return value


Dollars = Annotated[Decimal, BeforeValidator(_amount)]
Count = Annotated[Decimal, Field(ge=0)]
Day = Annotated[str, BeforeValidator(_day)]
Variable = Annotated[str, AfterValidator(_variable)]
Window = Annotated[str, AfterValidator(_window)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceSettings(Section):
    """`core.prices.Price`, as it is written. Whoever does not know a price leaves it out: none is free but by saying so."""

    per_request: Dollars | None = Field(None, description="for the request, however many pictures")
    per_image: Dollars | None = Field(None, description="for each picture; 0 is free")
    first_megapixel: Dollars | None = Field(None, description="for the first million pixels of each picture")
    per_megapixel: Dollars | None = Field(None, description="for each million pixels beyond the first, else for all")
    per_input_megapixel: Dollars | None = Field(None, description="for each million pixels of the pictures given")
    per_step: Dollars | None = Field(None, description="for each step of each picture")
    by_quality: dict[str, Dollars] = Field({}, description="for each picture, by the quality asked for")
    per_1m_input_text_tokens: Dollars | None = Field(None, description="for a million tokens of the prompt")
    per_1m_input_image_tokens: Dollars | None = Field(None, description="for a million tokens of the pictures given")
    per_1m_output_image_tokens: Dollars | None = Field(None, description="for a million tokens of the pictures made")
    tokens_by_quality: dict[str, Count] = Field({}, description="tokens of one picture made, by quality, for quotes")
    whole_megapixels: bool = Field(False, description="megapixels are rounded up before they are counted")
    version: str = Field(
        "", max_length=128, description="names the price in the ledger; default: told from the amounts"
    )
    source: str = Field("", description="who says so")
    read_on: Day = Field("", description="when it was read there")

    @model_validator(mode="after")
    def _says_something(self) -> PriceSettings:
        amounts = [name for name in type(self).model_fields if name.startswith(("per_", "first_"))]
        if not self.by_quality and all(getattr(self, name) is None for name in amounts):
            raise ValueError(
                "there is no amount in it; leave an unknown price out, and write per_image = 0 for a free one"
            )
        return self


class ProviderSettings(Section):
    """An account at a service."""

    name: Name = Field(description="what deployments call it")
    kind: ProviderKind = Field(description="whose API it speaks")
    base_url: Annotated[str, AfterValidator(_base_url)] | None = Field(
        None, description="where it is; default: the service's own address"
    )
    api_key_env: Variable | None = Field(
        None,
        description="the variable of the environment that holds the key; default: the service's usual one, such as "
        "OPENAI_API_KEY, and with a base_url none",
    )
    max_active: int | None = Field(
        None, ge=1, description="calls under way at once with this key; default: the catalog's"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="calls begun with this key; default: the catalog's")
    images_per_minute: int | None = Field(
        None, ge=1, description="pictures asked for with this key; default: the catalog's"
    )

    webhooks: bool = Field(
        False,
        description="bfl, replicate and fal call back at server.public_url/hooks/NAME when work is done; they are polled "
        "less often then",
    )
    webhook_secret_env: Variable | None = Field(
        None,
        description="the variable of the environment that holds what signs them: for bfl any secret, for replicate the "
        "account's, whsec_…; fal needs none",
    )

    @property
    def key_variable(self) -> str | None:
        """None: it is asked without a key. A usual key never goes to an address that somebody wrote."""
        if self.api_key_env is not None or self.base_url is not None:
            return self.api_key_env
        return USUAL_KEY_VARIABLES.get(self.kind)

    @model_validator(mode="after")
    def _engine_is_here(self) -> ProviderSettings:
        if self.kind == "local" and (self.base_url is not None or self.api_key_env is not None):
            raise ValueError("the engine on this machine has neither base_url nor api_key_env; leave them out")
        return self

    @model_validator(mode="after")
    def _can_call_back(self) -> ProviderSettings:
        if self.webhooks and self.kind not in CALLING_BACK:
            raise ValueError(f"{self.kind} does not call back; those that do are {', '.join(CALLING_BACK)}")
        if (self.webhook_secret_env is not None) != (self.webhooks and CALLING_BACK[self.kind]):
            needing = ", ".join(kind for kind, needs in CALLING_BACK.items() if needs)
            raise ValueError(f"webhooks and webhook_secret_env go together for {needing}, and for no other kind")
        return self


class DeploymentSettings(Section):
    """A model at a provider."""

    name: Name = Field(description="what the ledger, decisions and rules call it")
    model: ModelName = Field(description="what callers ask for; several deployments may serve one model")
    provider: Name = Field(description="a provider's name; `local` is the engine")
    provider_model: str | None = Field(None, max_length=256, description="the model's name there; default: as `model`")
    region: str | None = Field(None, max_length=64, description="where pictures are made, for rules")
    price: PriceSettings | None = Field(None, description="what it costs; default: the catalog's")
    quality: float | None = Field(None, ge=0, le=1, description="how good its pictures are, 0 to 1")
    tasks: tuple[Task, ...] | None = Field(None, min_length=1, description="what it is asked for; default: all it can")
    weight: float = Field(1.0, ge=0, description="how much it is preferred among equals")
    seed: bool | None = Field(
        None, description="of kind openai: whether the server takes a seed; default: all but OpenAI's own do"
    )
    max_active: int | None = Field(
        None, ge=1, description="calls of this model under way at once at the provider; default: the catalog's"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="calls of it begun; default: the catalog's")
    images_per_minute: int | None = Field(None, ge=1, description="its pictures asked for; default: the catalog's")
    max_images: int | None = Field(
        None, ge=1, description="pictures of one call; default: the catalog's, or all it can"
    )
    max_references: int | None = Field(None, ge=0, description="pictures given; default: the catalog's, or all it can")
    max_side: int | None = Field(
        None, ge=64, description="of a picture, in pixels; default: the catalog's, or all it can"
    )
    max_megapixels: Annotated[Decimal, Field(gt=0)] | None = Field(
        None, description="of a picture; default: the catalog's, or all it can"
    )

    @property
    def at_provider(self) -> str:
        return self.provider_model or self.model


class AliasSettings(Section):
    """Another name for a model."""

    name: ModelName = Field(description="what callers may ask for, too")
    model: ModelName = Field(description="the model that they get")
    note: str = Field("", max_length=256, description="why, told to callers as a warning")


class KeyBudget(Section):
    amount: Dollars = Field(description="US dollars")
    window: Window | None = Field(None, description="such as 30d, 12h, month; default: for good")
    alerts: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.8,), description="shares of it that are told of")


class KeyLimits(Section):
    requests_per_minute: int | None = Field(None, ge=1, description="of its callers")
    images_per_minute: int | None = Field(None, ge=1, description="of its callers")
    megapixels_per_minute: int | None = Field(None, ge=1, description="of its callers")
    concurrent_jobs: int | None = Field(None, ge=1, description="of its callers")

    @property
    def limits(self) -> Limits:
        return Limits(
            self.requests_per_minute, self.images_per_minute, self.concurrent_jobs, self.megapixels_per_minute
        )


class KeySettings(Section):
    """A key of this gateway's callers."""

    name: Name = Field(description="what budgets and reports call it")
    secret_env: Variable = Field(description="the variable of the environment that holds the key")
    owner: str = Field("local", max_length=128, description="who has it")
    project: Name = Field("local", description="whose jobs, files and bills its are")
    role: Role = Field("member", description="viewer, member or admin")
    models: tuple[ModelName, ...] | None = Field(None, description="what it may ask for; default: all")
    routes: tuple[str, ...] | None = Field(None, description="what it may call, such as /v1/images; default: all")
    limits: KeyLimits = Field(KeyLimits(), description="how much it may ask for")  # type: ignore[call-arg]
    budget: KeyBudget | None = Field(None, description="how much it may spend")
    policy: Policy | None = Field(
        None, description="how its requests are routed; default: its project's, or routing.policy"
    )


class ProjectSettings(Section):
    """What holds for all keys of a project that have nothing of their own."""

    name: Name = Field(description="the project, as keys name it")
    policy: Policy = Field(description="how its requests are routed")


class BudgetSettings(KeyBudget):
    """A ceiling that all that it covers share."""

    scope: Literal["project", "key", "model"] = Field(description="what `subject` names")
    subject: str = Field(min_length=1, max_length=128, description="the project, the key or the model")


class RuleThen(Section):
    """One of them; but for the policy an expression in CEL that says of which deployments."""

    exclude: str | None = Field(None, description='never ask those of which this is true: deployment.region == "us"')
    prefer: str | None = Field(None, description="ask those of which it is true first")
    require: str | None = Field(None, description="ask those of which it is true alone")
    policy: Policy | None = Field(None, description="choose by this")

    @model_validator(mode="after")
    def _one(self) -> RuleThen:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"it is one of {', '.join(type(self).model_fields)}; write a rule for each")
        return self


class RuleSettings(Section):
    """What holds for requests that an expression picks."""

    name: str = Field(min_length=1, max_length=128, description="what decisions call it")
    when: str | None = Field(
        None, min_length=1, max_length=4096, description="an expression in CEL, such as request.n > 4; default: always"
    )
    then: RuleThen = Field(description="what follows: one of exclude, prefer, require and policy")

    @property
    def flat(self) -> dict[str, str]:
        """As `gateway.routing.rules` reads it."""
        return {
            name: value
            for name, value in {"name": self.name, "when": self.when, **self.then.model_dump()}.items()
            if value is not None
        }


class Routing(Section):
    policy: Policy = Field("balanced", description="what places are chosen by: balanced, cost, latency or quality")
    max_attempts: int = Field(4, ge=1, le=20, description="calls for a request at all places together")
    total_seconds: float = Field(600.0, gt=0, le=3600, description="for all of them, waiting included")
    call_seconds: float = Field(300.0, gt=0, le=3600, description="for one of them")
    on_unknown: Literal["never", "after_collect"] = Field(
        "after_collect",
        description="whether to ask elsewhere if nobody knows whether a place took the work on: never, or once that has "
        "been found out",
    )
    unknown_hours: float = Field(
        24.0,
        gt=0,
        description="after which an attempt of which nobody knows how it ended is booked as charged, for what was set aside",
    )
    allow_double_up_to: Dollars | None = Field(
        None, description="instead of on_unknown: ask elsewhere at once, as long as at most this may be paid twice"
    )
    unknown_price_reserve: Dollars | None = Field(
        None, description="set aside for a call whose price is not known; default: such places are not asked"
    )
    hedge: bool = Field(False, description="ask a second place, too, if the first takes unusually long")
    hedge_share: float = Field(0.05, gt=0, le=1, description="of all calls at most: slow days are not paid twice")
    losses: Literal["strict", "warn", "drop"] = Field(
        "warn", description="what is asked for and a place does not honour: an error, a warning, or nothing"
    )
    failures: int = Field(5, ge=1, description="of a place one after another, after which it is left alone")
    rest_seconds: float = Field(30.0, gt=0, description="how long; then one call tries it")
    probe_seconds: float = Field(60.0, ge=0, description="between checks of places, which buy nothing; 0: none")
    canary_hours: float | None = Field(
        None,
        ge=0.1,
        description="after which a smallest picture is bought at a place that nothing was heard of; default: none is",
    )
    canary_budget: Dollars | None = Field(None, description="what all of those may cost in a window; needed for them")
    canary_window: Window | None = Field("30d", description="such as 30d, 12h, month")

    @property
    def unknown(self) -> Literal["never", "after_collect"] | Decimal:
        """What to do after an attempt of which nobody knows whether it is charged; dollars are what may be paid twice."""
        return self.on_unknown if self.allow_double_up_to is None else self.allow_double_up_to

    @model_validator(mode="after")
    def _canaries_are_bounded(self) -> Routing:
        if self.canary_hours is not None and self.canary_budget is None:
            raise ValueError("canary_hours buys pictures; say in canary_budget for how much at most")
        return self

    @model_validator(mode="after")
    def _one_answer_to_unknown(self) -> Routing:
        if self.allow_double_up_to is not None and "on_unknown" in self.model_fields_set:
            raise ValueError("on_unknown and allow_double_up_to answer the same question; set one of them")
        return self


class Lists(Section):
    """All that stands in the file as arrays of tables."""

    providers: tuple[ProviderSettings, ...] = ()
    deployments: tuple[DeploymentSettings, ...] = ()
    aliases: tuple[AliasSettings, ...] = ()
    keys: tuple[KeySettings, ...] = ()
    projects: tuple[ProjectSettings, ...] = ()
    budgets: tuple[BudgetSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = ()


ARRAYS: dict[str, type[Section]] = {
    "providers": ProviderSettings,
    "deployments": DeploymentSettings,
    "aliases": AliasSettings,
    "keys": KeySettings,
    "projects": ProjectSettings,
    "budgets": BudgetSettings,
    "rules": RuleSettings,
}
