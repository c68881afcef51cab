"""Recipes: everything that decides how a training run goes, as one frozen value, read once.

A recipe is a small TOML file, one of ours by name or anybody's by path. What it leaves open follows from the model and
from how many examples there are (`defaults.resolve`); `--set key=value` overrides anything. The resolved recipe is written into
the run's folder, so that it says all. No torch here.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

from kleinbild.core.errors import OutputError, RequestError

FOLDER = Path(__file__).parent / "recipes"
FILE = "recipe.toml"
MODEL = "nano-base"  # what is trained if nobody says

Method = Literal["lora", "lokr", "dora", "full"]
Optimizer = Literal["adamw", "adamw8bit", "prodigy", "muon"]
Precision = Literal["fp32", "bf16", "int8", "nf4"]
Times = Literal["logit-normal", "uniform", "constant-shift", "weighted", "distilled-4"]
Schedule = Literal["constant", "cosine", "linear"]
LossWeight = Literal["none", "peaked", "bell"]
References = Literal["target", "free"]


@dataclass(frozen=True, slots=True)
class Range:
    """What a number may be, both ends included."""

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A resolved recipe. Sizes are pixels; `batch_size` counts all processes together. 0 means never for intervals.

    Keys without a default here follow from the model, the method and the data: see `defaults.resolve`.
    """

    about: str = ""
    # What is trained on what
    name: str = ""  # the adapter's, when it is registered
    model: str = MODEL
    data: str = ""
    regularization_data: str = ""  # pictures of what shall stay as it is; a folder `reg` in the data is found by itself
    validation_data: str = ""  # examples that only the validation sees; none: a run measures itself on some of its own
    trigger_words: tuple[str, ...] = ()
    licence: str = ""
    seed: Annotated[int, Range(0, 2**53)] = 0
    # What is trained
    method: Method = "lora"
    rank: Annotated[int, Range(1, 1024)] = 16
    alpha: Annotated[float, Range(1e-3, 4096)]  # the rank: changes count as they are
    targets: tuple[str, ...] = ()  # presets or patterns of layers' names; none is "blocks", with method full everything
    # How long, how fast
    steps: Annotated[int, Range(1, 10_000_000)]
    learning_rate: Annotated[float, Range(1e-8, 10)]
    schedule: Schedule
    warmup_steps: Annotated[int, Range(0, 100_000)]
    optimizer: Optimizer = "adamw"
    weight_decay: Annotated[float, Range(0, 1)] = 1e-4
    batch_size: Annotated[int, Range(1, 4096)]
    accumulation: Annotated[int, Range(1, 4096)] = 1
    clip: Annotated[float, Range(0, 1000)] = 1.0  # of the gradient's norm; 0 is not at all
    ema: Annotated[float, Range(0, 0.99999)]  # the average's decay a step; 0 is no average
    precision: Precision  # of the base that is not trained
    gradient_checkpointing: bool
    # Which times, which losses
    times: Times = "logit-normal"
    time_mean: Annotated[float, Range(-10, 10)]  # of the logit-normal
    time_spread: Annotated[float, Range(0.01, 10)]
    time_shift: Annotated[float, Range(0, 100)]  # the factor by which times are shifted; 0 is the resolution's own
    loss_weight: LossWeight  # by time
    caption_lines: bool = False  # each line of a caption is a caption of its own, one of them drawn each time
    caption_dropout: Annotated[float, Range(0, 1)] = 0.05
    reference_dropout: Annotated[float, Range(0, 1)] = 0.0
    prior_pictures: Annotated[int, Range(0, 100_000)]  # made by the model before it learns, as regularization examples
    regularization_share: Annotated[float, Range(0, 0.9)]  # of all samples, drawn from regularization examples
    regularization_weight: Annotated[float, Range(0, 10)] = 1.0
    masked_loss: bool = True  # where examples have masks
    # Pictures
    sizes: tuple[int, ...]  # a picture is learned at each of these areas, side squared, in its own shape
    references: References = "free"  # "target": on the very grid of what is made from them; "free": in their own shape
    alpha_masks: bool = False  # where a picture is opaque is its mask, if it has no other
    # Watching
    progress_every: Annotated[int, Range(1, 100_000)] = 10
    validate_every: Annotated[int, Range(0, 1_000_000)]
    preview_every: Annotated[int, Range(0, 1_000_000)]
    checkpoint_every: Annotated[int, Range(0, 1_000_000)]
    checkpoint_minutes: Annotated[float, Range(0, 10_000)] = 5.0  # the state to resume from is kept so often, too
    preview_prompts: tuple[str, ...] = ()
    wandb: str = ""  # a project of Weights & Biases that the curves and this recipe are sent to
    early_stop: bool = True
    sweep: bool = (
        True  # at the end: pictures at several strengths, to recommend the best; without, nothing is recommended
    )


class Sizing(TypedDict, total=False):
    """How long a run is, where `steps` does not say: in rounds, or in samples by the number of examples.

    Samples for regularization come on top.
    """

    epochs: Annotated[float, Range(0.01, 100_000)]
    samples_an_example: Annotated[int, Range(1, 100_000)]
    min_samples: Annotated[int, Range(1, 100_000_000)]
    max_samples: Annotated[int, Range(1, 100_000_000)]


Values = dict[str, Any]


def names() -> tuple[str, ...]:
    """Our recipes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read(name_or_path: str | Path) -> Values:
    """What a recipe says: one of ours by name, or a file. Raises RequestError."""
    path = FOLDER / f"{name_or_path}.toml" if str(name_or_path) in names() else Path(name_or_path).expanduser()
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        close = difflib.get_close_matches(str(name_or_path), names(), n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise RequestError(
            f"there is no recipe {str(name_or_path)!r}; ours are {', '.join(names())}",
            f"{guess}A path to a TOML file works too.",
        ) from error
    except (OSError, ValueError) as error:
        raise RequestError(f"the recipe {path} cannot be read: {error}", "correct it; recipes are TOML") from error
    return checked(values)


def with_settings(values: Mapping[str, Any], settings: Iterable[str]) -> Values:
    """`values` with each `key=value` in its place. A value is written as in TOML; texts need no quotes."""
    changed = dict(values)
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise RequestError(f"{setting!r} sets nothing", "write key=value, for example rank=32")
        changed[key] = text if keys().get(key) is str else _toml_value(text)
    return checked(changed)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@cache
def keys() -> Mapping[str, Any]:
    """Every key of a recipe's file, and its type."""
    return {**get_type_hints(Recipe, include_extras=True), **get_type_hints(Sizing, include_extras=True)}


def checked(values: Mapping[str, Any]) -> Values:
    """`values` with every type and range as it should be. Raises RequestError that says what is allowed."""
    for key in values:
        if key not in keys():
            close = difflib.get_close_matches(key, keys(), n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise RequestError(f"a recipe has no {key!r}", f"{guess}Known are {', '.join(sorted(keys()))}.")
    return {key: _value(key, value, keys()[key]) for key, value in values.items()}


def _value(key: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return _texts(key, value) if get_args(kind)[0] is str else _sides(key, value)
    if get_origin(kind) is Literal:
        return _one_of(key, value, get_args(kind))
    if get_origin(kind) is Annotated:
        kind, allowed = get_args(kind)
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind or not allowed.least <= value <= allowed.most:
            what = "a whole number" if kind is int else "a number"
            raise RequestError(f"{key} cannot be {value!r}", f"use {what} from {allowed.least:g} to {allowed.most:g}")
        return value
    if type(value) is not kind:
        raise RequestError(f"{key} cannot be {value!r}", "write true or false" if kind is bool else "write a text")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of texts; on a command line also one text, with commas between."""
    texts = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise RequestError(f"{key} cannot be {value!r}", f'write a list of texts, for example {key} = ["one", "two"]')
    return tuple(each for each in texts if each)


def _sides(key: str, value: Any) -> tuple[int, ...]:
    sides = [value] if type(value) is int else value
    if isinstance(sides, list | tuple) and sides and all(type(each) is int and each > 0 for each in sides):
        return tuple(sides)
    raise RequestError(f"{key} cannot be {value!r}", f"write sides in pixels, for example {key} = [512, 768]")


def _one_of(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return str(value)
    why = "fp16 overflows in this model; " if value in ("fp16", "float16", "half") else ""
    raise RequestError(f"{key} cannot be {value!r}", f"{why}use one of {', '.join(choices)}")


def write(recipe: Recipe, path: Path) -> None:
    """Writes a recipe so that `read` gives it back."""
    lines = [f"{key} = {_toml(value)}" for key, value in asdict(recipe).items()]
    try:
        beside = path.with_suffix(".tmp")
        beside.write_text("\n".join(lines) + "\n", "utf-8")
        beside.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}", "choose another place") from error


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML writes texts as JSON does
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What two recipes disagree on, in words: "rank 16, not 32"."""
    return [
        f"{key} {ours.get(key)}, not {theirs.get(key)}"
        for key in sorted(set(ours) | set(theirs))
        if ours.get(key) != theirs.get(key)
    ]
