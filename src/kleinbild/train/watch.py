"""The watch over a run: does it learn, or does it learn by heart, and does it spoil what it was not to touch.

Three things are looked at, all on fixed prompts and seeds:
* the validation loss (`train.validate`);
* copies: pictures of prompts that are no training caption and yet are a training picture again. Near is measured
  against how near the training pictures are to each other, and what the base model makes of the prompt without the
  adapter does not count;
* drift: how far pictures of neutral prompts move away from what they are without the adapter. 1 is as far as pictures of
  different prompts are from each other.

Whether to stop is a function of the checks so far, so that a run that is resumed decides as one that was not. A subject
in a new place is no copy: distances compare place by place, ground and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kleinbild.core.training import Validated
from kleinbild.train.likeness import LEAST_SPACING, Look, apart, nearest, spacing, spread
from kleinbild.train.neutral import words

COPY = 0.3  # of the training pictures' own spacing
COPIED, DRIFT = "copied", "drift"  # the metrics' names in events


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run is stopped.

    `patience`: after so many checks in a row with a validation loss over the best one by the share `margin`.
    `copies`: after `num_looks` looks in a row of which at least this share were copies.
    """

    patience: int = 5
    margin: float = 0.01
    copies: float = 0.5
    num_looks: int = 2


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture with the adapter and the one without, at the same prompt and seed."""

    prompt: str
    adapted: Look
    plain: Look


def reason_to_stop(checks: Sequence[Validated], limits: Limits = Limits()) -> str | None:
    """Why a run with these checks should stop now, in words; None while it should not."""
    return _risen(checks, limits) or _copying(checks, limits)


def _risen(checks: Sequence[Validated], limits: Limits) -> str | None:
    if len(checks) <= limits.patience:
        return None
    best = min(checks, key=lambda check: check.loss)
    since = checks[-limits.patience :]
    if any(check.loss <= best.loss * (1 + limits.margin) for check in since):
        return None
    return (
        f"the validation loss has been above its best for {limits.patience} checks in a row: "
        f"{best.loss:.4f} at step {best.step}, {checks[-1].loss:.4f} at step {checks[-1].step}"
    )


def _copying(checks: Sequence[Validated], limits: Limits) -> str | None:
    looks = [check for check in checks if COPIED in check.metrics][-limits.num_looks :]
    if len(looks) < limits.num_looks or any(look.metrics[COPIED] < limits.copies for look in looks):
        return None
    return (
        f"training pictures are learnt by heart: {looks[-1].metrics[COPIED]:.0%} of the pictures of other prompts at step "
        f"{looks[-1].step} are copies of one, as at the look before"
    )


def measure(
    training: Sequence[Look], captions: Sequence[str], shown: Sequence[Shown], neutral: Sequence[Shown]
) -> Mapping[str, float]:
    """What the pictures of one look say: `copied` (a share) and `drift`, each only where it can be measured.

    Copies cannot be told among training pictures that are all alike, or of a single one.
    """
    metrics: dict[str, float] = {}
    usual = spacing(training)
    if usual > LEAST_SPACING:
        known = {words(caption) for caption in captions}
        others = [one for one in (*shown, *neutral) if words(one.prompt) not in known]
        counted = [one for one in others if nearest(one.plain, training) > COPY * usual]
        if counted:
            copies = [one for one in counted if nearest(one.adapted, training) <= COPY * usual]
            metrics[COPIED] = len(copies) / len(counted)
    if apart_usually := spread([one.plain for one in neutral]):
        metrics[DRIFT] = drift(neutral, apart_usually)
    return metrics


def drift(neutral: Sequence[Shown], usual: float) -> float:
    """`usual` is how far the neutral prompts' pictures are from each other without the adapter."""
    return sum(apart(one.adapted.places_F, one.plain.places_F) for one in neutral) / len(neutral) / usual
