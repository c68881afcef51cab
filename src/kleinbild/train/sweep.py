"""Which strength an adapter is best used with, found after training: on the base model and on the distilled one.

An adapter that was trained on the base model may be too weak, or too strong, on the distilled one. So pictures of
validation captions are made at each strength, at fixed seeds, and held against what was to be learnt; pictures of neutral
prompts say what else has changed. The score is the share of the distance to the targets that is gone, less a share of the drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kleinbild.core.adapters import Kind
from kleinbild.train.likeness import Look, apart, spread
from kleinbild.train.watch import Shown, drift

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
DRIFT_WEIGHT = 0.25
AS_GOOD = 0.01  # scores that differ by less are the same


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a picture of a validation sample should look like. `exact`: an edit, whose target is the one right picture.

    Made from words alone, a picture has the manner of its target, but not each thing in the same place.
    """

    target: Look
    exact: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One strength on one model. `distance` to the targets and `drift` as in `train.watch`."""

    kind: Kind
    strength: float
    distance: float
    drift: float
    score: float


Make = Callable[[Kind, float], tuple[Sequence[Look], Sequence[Look]]]
"""Pictures of the validation samples and of the neutral prompts, on a model at a strength."""


def sweep(
    kinds: Iterable[Kind], taught: Sequence[Taught], make: Make, strengths: Sequence[float] = STRENGTHS
) -> tuple[Trial, ...]:
    """Every strength on every model. The first trial of a kind is the one without the adapter: strength 0."""
    return tuple(trial for kind in kinds for trial in _of_kind(kind, taught, make, strengths))


def _of_kind(kind: Kind, taught: Sequence[Taught], make: Make, strengths: Sequence[float]) -> Iterable[Trial]:
    plain, neutral = make(kind, 0.0)
    at_first, usual = _distance(plain, taught), spread(neutral)
    yield Trial(kind, 0.0, at_first, 0.0, 0.0)
    for strength in strengths:
        pictures, others = make(kind, strength)
        distance = _distance(pictures, taught)
        shown = [Shown("", adapted, before) for adapted, before in zip(others, neutral, strict=True)]
        drifted = drift(shown, usual) if usual else 0.0
        gained = (at_first - distance) / at_first if at_first else 0.0
        yield Trial(kind, strength, distance, drifted, gained - DRIFT_WEIGHT * drifted)


def _distance(pictures: Sequence[Look], taught: Sequence[Taught]) -> float:
    distances = [
        apart(made.places_F, one.target.places_F) if one.exact else apart(made.manner_F, one.target.manner_F)
        for made, one in zip(pictures, taught, strict=True)
    ]
    return sum(distances) / len(distances)


def recommended(trials: Sequence[Trial]) -> dict[Kind, float]:
    """The best strength on each kind of model: of those as good as the best the one nearest to 1.

    A kind on which no strength comes nearer to the targets than none at all is left out.
    """
    best: dict[Kind, float] = {}
    for kind in dict.fromkeys(trial.kind for trial in trials):
        own = [trial for trial in trials if trial.kind == kind and trial.strength]
        top = max(trial.score for trial in own)
        if top > 0:
            best[kind] = min(
                (t.strength for t in own if t.score >= top - AS_GOOD), key=lambda strength: abs(strength - 1)
            )
    return best
