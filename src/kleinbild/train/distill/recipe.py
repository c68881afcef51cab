"""How a distillation is run: every number of it, with defaults by model, and how they are written and given."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from kleinbild.core.errors import OutputError, RequestError
from kleinbild.model.spec import ModelSpec

RECIPE_FILE = "recipe.toml"
SMALL = 1024  # hidden size below which a transformer is trained as nano is, not as those with billions of parameters
FOUR_WINDOWS = (0.35, 0.25, 0.2, 0.2)

Product = Literal["model", "adapter"]
Loss = Literal["huber", "mse"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a run. Shares and probabilities are from 0 to 1; rates are AdamW's, cosine to `final_rate`.

    `num_steps` are the student's, `num_substeps` the teacher's within each of those; its `guidance` is on at times
    below `guided_below`. Where there are real pictures, `rollout_share` of the lessons begin on the teacher's own ways
    from noise; from `own_from` of stage 1 on, `own_share` begin where the student itself arrives. Of the teacher's
    ways `num_rollouts` are kept, and `batch_size` of them replaced every `refresh_every` updates.
    """

    product: Product = "model"
    seed: int = 0
    num_updates: int = 3000
    batch_size: int = 16
    num_steps: int = 4
    num_substeps: int = 8
    guidance: float = 4.0
    guided_below: float = 0.98
    loss: Loss = "huber"
    huber_width: float = 0.03
    rollout_share: float = 0.2
    num_rollouts: int = 512
    refresh_every: int = 8
    own_from: float = 2 / 3
    own_share: float = 0.5
    rate: float = 1e-5
    final_rate: float = 1e-6
    warmup: int = 20
    ema_decay: float = 0.999
    clip: float = 1.0
    mixed: bool = True  # products in bfloat16; weights that learn are float32 in any case
    rank: int = 64
    polish: bool = False
    polish_share: float = 0.35  # of the updates
    polish_rate: float = 2e-5
    fake_rate: float = 2e-4
    fake_updates: int = 5  # of the fake score, for one of the student
    anchor_weight: float = 0.1  # of stage 1's loss in the first window, which nothing else trains then
    kept_weight: float = 0.25  # of stage 1's loss in the others
    validate_every: int = 250
    num_validated: int = 8
    num_seeds: int = 16  # whose pictures are compared with each other

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str):
                continue
            least = 1 if isinstance(field.default, int) and field.name not in ("seed", "warmup") else 0
            share = field.name.endswith(("_share", "_from"))
            if not value >= least or (share and value > 1):
                allowed = "0 to 1" if share else f"{least} or more"
                raise RequestError(f"{field.name} = {value!r} is not possible", f"use {allowed}")
        if self.product not in ("model", "adapter") or self.loss not in ("huber", "mse"):
            raise RequestError(
                f"product {self.product!r} with loss {self.loss!r} is not possible", "model or adapter; huber or mse"
            )

    @property
    def first_polished(self) -> int:
        """The update with which stage 2 begins."""
        return round(self.num_updates * (1 - self.polish_share)) if self.polish else self.num_updates

    @property
    def window_weights(self) -> tuple[float, ...]:
        return FOUR_WINDOWS if self.num_steps == len(FOUR_WINDOWS) else (1.0,) * self.num_steps


def recipe_for(spec: ModelSpec, product: Product) -> Recipe:
    """The defaults for a model; its guidance is the one that it is used with."""
    small = spec.transformer.hidden_size < SMALL
    rate = {"model": 2e-4, "adapter": 1e-3} if small else {"model": 1e-5, "adapter": 1e-4}
    return Recipe(
        product=product,
        guidance=spec.default_guidance,
        rate=rate[product],
        final_rate=rate[product] / 20,
        polish_rate=rate[product] / (10 if small else 1),
        fake_rate=2e-4 if small else 1e-5,
    )


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`recipe` with `key=value` each. Raises RequestError for a key that there is not, or a value of another kind."""
    known = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    given: dict[str, Any] = {}
    for setting in settings:
        key, is_there, text = setting.partition("=")
        if not is_there or key not in known:
            raise RequestError(
                f"--set {setting}: no setting of a distillation", f"KEY=VALUE; known are {', '.join(known)}"
            )
        given[key] = _value(setting, text, known[key])
    return replace(recipe, **given)


def _value(setting: str, text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return int(text) if isinstance(default, int) else float(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise RequestError(f"--set {setting}: not {kind}", f"for example {default}".lower()) from None


def write_recipe(folder: Path, recipe: Recipe) -> None:
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in asdict(recipe).items()]
    (folder / RECIPE_FILE).write_text("".join(lines), "utf-8")


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of the run in `folder`, or None where there is no run. Raises OutputError for a damaged one."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    try:
        return Recipe(**tomllib.loads(path.read_text("utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise OutputError(f"{path} is no recipe of a distillation: {error}", "name another folder") from error


def require_same(folder: Path, recipe: Recipe) -> None:
    """Raises OutputError where the run in `folder` was begun with another recipe."""
    begun = read_recipe(folder)
    if begun is None or begun == recipe:
        return
    then, now = asdict(begun), asdict(recipe)
    changed = ", ".join(f"{key} {then[key]} then, {now[key]} now" for key in then if then[key] != now[key])
    raise OutputError(
        f"{folder} holds a run that began otherwise: {changed}", "give the same again, or name another folder"
    )
