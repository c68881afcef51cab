"""The end of a run: the strengths to use, the card, the report, and the adapter's place in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kleinbild.core.adapters import Kind
from kleinbild.core.requests import MAX_STEPS
from kleinbild.core.training import Finished
from kleinbild.model.adapters.registry import register, write_card
from kleinbild.train.card import Origin, Outcome, card_of
from kleinbild.train.likeness import Look
from kleinbild.train.report import report
from kleinbild.train.studio import Ask, Studio
from kleinbild.train.sweep import STRENGTHS, Taught, Trial, recommended, sweep

REPORT = "report.html"
NUM_NEUTRAL = 2  # pictures that tell of drift, at each strength


def sweep_strengths(
    studio: Studio, adapter: Path, asks: Sequence[Ask], taught: Sequence[Taught], neutral: Sequence[Ask],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Trial, ...]:  # fmt: skip
    """`taught` are what the pictures of `asks` should look like, in their order."""

    most = max((ask.most_steps for ask in asks), default=MAX_STEPS)
    wanted = (*asks, *(replace(ask, most_steps=most) for ask in neutral[:NUM_NEUTRAL]))

    def make(kind: Kind, strength: float) -> tuple[Sequence[Look], Sequence[Look]]:
        looks = studio.looks(kind, wanted, adapter, strength)
        return looks[: len(asks)], looks[len(asks) :]

    return sweep(studio.kinds, taught, make, strengths)


def finish(folder: Path, adapter: Path, origin: Origin, outcome: Outcome) -> Finished:
    """Writes card and report into the run's folder and registers the adapter under its name."""
    outcome = replace(outcome, strengths=outcome.strengths or recommended(outcome.trials))
    card = card_of(origin, outcome, adapter)
    write_card(folder, card)
    (folder / REPORT).write_text(report(card, outcome, folder), "utf-8")
    register(adapter, card, others={REPORT: folder / REPORT})
    return Finished(outcome.step, card.name, str(adapter.relative_to(folder)), card.sha256, outcome.metrics)
