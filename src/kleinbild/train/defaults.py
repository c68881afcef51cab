"""What a recipe leaves open: it follows from the model, the method and how many examples there are. No torch here.

Sources of the numbers: the settings that other trainers and the model's makers publish (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from kleinbild.core.errors import RequestError
from kleinbild.model import catalog
from kleinbild.model.weights.settings import Settings
from kleinbild.model.weights.sources import locate_parts, model_spec
from kleinbild.model.weights.specs import Family, family
from kleinbild.train.recipe import MODEL, Method, Optimizer, Precision, Recipe, Schedule, Sizing, Values, checked


@dataclass(frozen=True, slots=True)
class Trainee:
    """What a recipe needs to know of the model that is to be trained."""

    family: Family | None
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What follows from a model's family, where a recipe does not say.

    `rate` multiplies learning rates, `samples` how many samples a run has by its recipe. `regularization_share` is that
    of a run which makes prior pictures.
    """

    precision: Precision
    gradient_checkpointing: bool
    time_mean: float = 0.0
    time_spread: float = 1.0
    time_shift: float = 0.0
    rate: float = 1.0
    samples: float = 1.0
    batch_size: int = 1
    ema: float = 0.0
    schedule: Schedule = "constant"
    prior_pictures: int = 0
    regularization_share: float = 0.2


# nano learns at narrow widths, which want higher rates, and only at times near noise (`train.nano.flow`). A step of few
# samples is mostly overhead. It has little room: without pictures of its own world it forgets that (docs/training.md).
DEFAULTS: Mapping[Family | None, _Defaults] = {
    "nano": _Defaults(
        "fp32", gradient_checkpointing=False, time_mean=2.0, time_spread=1.4, time_shift=1.0, rate=20.0, samples=3.0,
        batch_size=16, ema=0.98, schedule="linear", prior_pictures=320, regularization_share=0.5,
    ),
    "klein-4b": _Defaults("bf16", gradient_checkpointing=True),
    "klein-9b": _Defaults("bf16", gradient_checkpointing=True),
    None: _Defaults("bf16", gradient_checkpointing=True),
}  # fmt: skip
RATES: Mapping[Method, float] = {"lora": 1e-4, "dora": 1e-4, "lokr": 3e-4, "full": 1e-5}
MUON_RATE = 20.0  # times the method's: its steps are orthogonal, not as large as the gradient's sign


def trainee_of(name_or_path: str) -> Trainee:
    """What is known of a model before its weights are read. Raises UnknownModelError and MissingWeightsError."""
    _, parts = locate_parts(name_or_path)
    return Trainee(family(model_spec(parts).transformer), parts.settings)


def resolve(values: Mapping[str, Any], trainee: Trainee, num_examples: int, *, num_regularization: int = 0) -> Recipe:
    """The whole recipe: what `values` leave open follows from the model and from the number of examples.

    Raises RequestError for a model that cannot be trained so, and where `values` contradict themselves.
    """
    refuse_distilled(str(values.get("model", MODEL)), trainee)
    static = {f.name: f.default for f in fields(Recipe) if f.default is not MISSING}
    given = {key: value for key, value in checked(values).items() if key not in Sizing.__annotations__}
    family = DEFAULTS[trainee.family]
    known = {**static, **_of_family(family), **given}
    method, optimizer = known["method"], known["optimizer"]
    known = {**_kept(given, family, method, num_regularization), **known}
    steps = known.get("steps") or _num_steps(values, known, num_examples, family.samples)
    derived: Values = {
        "alpha": float(known["rank"]),
        "steps": steps,
        "learning_rate": _learning_rate(method, optimizer, family.rate),
        "warmup_steps": min(100, steps // 10),
        "precision": family.precision if method != "full" or family.precision == "fp32" else "bf16",
        "gradient_checkpointing": family.gradient_checkpointing,
        "time_mean": family.time_mean,
        "time_spread": family.time_spread,
        "time_shift": 3.0 if known["times"] == "constant-shift" else family.time_shift,
        "loss_weight": "peaked" if known["times"] == "weighted" else "none",
        "sizes": (trainee.settings.default_size,),
        "validate_every": max(1, steps // 20),
        "preview_every": max(1, steps // 5),
        "checkpoint_every": max(1, steps // 5),
    }
    recipe = Recipe(**{**derived, **known})
    _check_together(recipe, num_regularization)
    return recipe


def _of_family(family: _Defaults) -> Values:
    return {"batch_size": family.batch_size, "ema": family.ema, "schedule": family.schedule}


def _kept(given: Values, family: _Defaults, method: Method, num_regularization: int) -> Values:
    """How what the model can do is kept: by examples of the data, else by pictures of its own. A full training replaces it."""
    wanted = given.get("regularization_share", family.regularization_share)
    own = family.prior_pictures if wanted and method != "full" and not num_regularization else 0
    any_kept = num_regularization or given.get("prior_pictures", own)
    return {"prior_pictures": own, "regularization_share": wanted if any_kept else 0.0}


def _num_steps(values: Mapping[str, Any], known: Values, num_examples: int, factor: float) -> int:
    if "epochs" in values:
        samples: float = values["epochs"] * num_examples
    else:
        least, most = values.get("min_samples", 500), values.get("max_samples", 2000)
        samples = min(max(values.get("samples_an_example", 30) * num_examples, least), most) * factor
    share: float = known["regularization_share"]
    samples_a_step: int = known["batch_size"] * known["accumulation"]
    return max(1, round(samples / (1 - share) / samples_a_step))


def _learning_rate(method: Method, optimizer: Optimizer, rate: float) -> float:
    if optimizer == "prodigy":
        return 1.0  # it finds its own
    return float(f"{RATES[method] * rate * (MUON_RATE if optimizer == 'muon' else 1.0):.6g}")


def _check_together(recipe: Recipe, num_regularization: int) -> None:
    if recipe.method == "full" and recipe.precision in ("int8", "nf4"):
        raise RequestError(
            f"method full trains the base itself, which cannot be in {recipe.precision}", "use precision=bf16 or fp32"
        )
    if recipe.method == "dora" and recipe.precision in ("int8", "nf4"):
        raise RequestError(
            f"DoRA needs the exact norms of the weights, which a base in {recipe.precision} has lost",
            "use precision=bf16, or method=lora",
        )
    if recipe.regularization_share and not num_regularization and not recipe.prior_pictures:
        raise RequestError(
            f"regularization_share is {recipe.regularization_share:g}, but no example is one for regularization",
            "add a folder of them, set prior_pictures=100, or set regularization_share=0",
        )


def refuse_distilled(model: str, trainee: Trainee) -> None:
    """Raises RequestError for a model whose few steps this loss would undo."""
    if not trainee.settings.distilled:
        return
    base = catalog.find_variant(trainee.family, "base")
    instead = f"train on {base.name} (model={base.name})" if base else "train on its base model"
    raise RequestError(
        f"{model} is distilled to {trainee.settings.default_steps} steps: training it with the plain loss undoes that, "
        "and its pictures turn grey",
        f"{instead}: the adapter works on the distilled model too; kleinbild distill makes a base that you changed fast",
    )
