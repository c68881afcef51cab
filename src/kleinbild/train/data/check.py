"""The preflight: everything that can be told of a data set and a recipe before anything is trained.

find        what is there, in which layout
look        can every picture be read
findings    what would keep the run from starting, or spoil it
needs       tokens, memory, disk; with a short smoke run time, and with a price cost
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kleinbild.engine.prepare import size_range
from kleinbild.engine.references import fitted
from kleinbild.model.packing import Segment
from kleinbild.model.spec import ModelSpec
from kleinbild.train.data.alignment import pair_findings
from kleinbild.train.data.buckets import Framing, View, histogram, views
from kleinbild.train.data.captions import caption_findings
from kleinbild.train.data.duplicates import duplicates
from kleinbild.train.data.encoding import grid_of
from kleinbild.train.data.faults import is_usable, picture_findings
from kleinbild.train.data.findings import Finding, in_order
from kleinbild.train.data.given import resolved
from kleinbild.train.data.needs import Memory, Tokens, cache_bytes, choices, memory, tokens_of
from kleinbild.train.data.pictures import Seen, look
from kleinbild.train.defaults import Trainee
from kleinbild.train.recipe import Recipe, Values

SMOKE_STEPS = 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Smoke:
    """What a run of a few steps measured; `seconds_a_step` without the first, which warms up."""

    seconds_a_step: float
    loss_first: float
    loss_last: float


class SmokeRun(Protocol):
    """Trains for `num_steps` steps as `recipe` says and keeps nothing."""

    def __call__(self, recipe: Recipe, num_steps: int) -> Smoke: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is to be trained, as far as it is known without its weights. `count_tokens` as its tokenizer counts."""

    name: str
    spec: ModelSpec
    trainee: Trainee
    count_tokens: Callable[[str], int] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All of the preflight. `memory` is for the recipe as it is, `choices` the totals with other settings (bytes)."""

    layout: str
    notes: tuple[str, ...]
    num_examples: int
    num_regularization: int
    num_validation: int
    findings: tuple[Finding, ...]
    recipe: Recipe
    buckets: Mapping[str, int]
    tokens: Tokens | None
    memory: Memory | None
    choices: Mapping[str, tuple[int, int]]
    disk_bytes: int
    smoke: Smoke | None = None
    seconds: float | None = None
    cost: float | None = None

    @property
    def num_errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)


def check(
    data: Path,
    values: Values,
    subject: Subject,
    *,
    smoke: SmokeRun | None = None,
    price_an_hour: float | None = None,
    remembered: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """`values` are a recipe's, in which `data` takes the place of its own.

    Raises RequestError where the data are in no known layout, or the recipe cannot be; all else is findings.
    """
    told = progress or _untold
    recipe, dataset, held_out = resolved({**values, "data": str(data)}, subject.trainee)
    num_kept = sum(example.regularization for example in dataset.examples)
    num_learned = len(dataset.examples) - num_kept
    every = (*dataset.examples, *(held_out.examples if held_out else ()))
    framing = framing_of(recipe, subject.spec, subject.trainee)
    files = [file for example in every for file in example.files]
    looked = look(files, memory=remembered, progress=lambda done, total: told("looking at pictures", done, total))
    usable = [each for each in dataset.examples if is_usable(each, looked.seen, framing)]
    found, notes = views(usable, looked.seen, framing)
    findings = [
        *picture_findings(every, looked, framing, num_learned),
        *caption_findings(
            every,
            trigger_words=recipe.trigger_words,
            count_tokens=subject.count_tokens,
            max_tokens=subject.spec.text_encoder.max_tokens,
        ),
        *duplicates({each.name: looked.seen[each.target] for each in usable if not each.regularization}),
        *pair_findings(found, looked.seen, framing, lambda done, total: told("comparing pairs", done, total)),
    ]
    report = Report(
        layout=dataset.layout,
        notes=(*dataset.notes, *notes, *(held_out.notes if held_out else ())),
        num_examples=num_learned,
        num_regularization=num_kept,
        num_validation=len(every) - len(dataset.examples),
        findings=in_order(findings),
        recipe=recipe,
        buckets=histogram(found),
        tokens=None,
        memory=None,
        choices={},
        disk_bytes=0,
    )
    return _with_time(_with_needs(report, found, looked.seen, framing, subject), smoke, price_an_hour)


def framing_of(recipe: Recipe, spec: ModelSpec, trainee: Trainee) -> Framing:
    """How a recipe has pictures meet its model."""
    return Framing(
        sizes=size_range(trainee.settings, spec),
        sides=recipe.sizes,
        references=recipe.references,
        alpha_masks=recipe.alpha_masks,
    )


def _with_needs(
    report: Report, found: Sequence[View], seen: Mapping[Path, Seen], framing: Framing, subject: Subject
) -> Report:
    if not found:
        return report
    spec, recipe = subject.spec, report.recipe
    cell = spec.autoencoder.pixels_per_token
    segments = [
        Segment(
            spec.text_encoder.max_tokens,
            grid_of(view.target.made, cell),
            tuple(
                grid_of(placed.made if placed else fitted(seen[file].size, framing.free_sizes), cell)
                for file, placed in zip(view.example.references, view.references, strict=True)
            ),
        )
        for view in found
    ]
    tokens = tokens_of([segment.num_rows for segment in segments], recipe.batch_size * recipe.accumulation)
    at_once = tokens.largest * recipe.batch_size
    num_captions = len({caption for view in found for caption in view.example.captions}) + 1
    return replace(
        report,
        tokens=tokens,
        memory=memory(spec, recipe, at_once),
        choices=choices(spec, recipe, at_once),
        disk_bytes=cache_bytes(
            spec,
            sum(segment.num_stream for segment in segments),
            num_captions,
            4 if recipe.precision == "fp32" else 2,
        ),
    )


def _with_time(report: Report, smoke: SmokeRun | None, price_an_hour: float | None) -> Report:
    """A smoke run only where a run could start at all."""
    if smoke is None or report.num_errors:
        return report
    measured = smoke(report.recipe, SMOKE_STEPS)
    seconds = measured.seconds_a_step * report.recipe.steps
    findings = report.findings
    if not measured.loss_last < float("inf"):  # nan, too
        broken = Finding(
            "error", "loss", f"the loss is {measured.loss_last} after {SMOKE_STEPS} steps", "lower the learning rate"
        )
        findings = in_order((*findings, broken))
    cost = None if price_an_hour is None else seconds / 3600 * price_an_hour
    return replace(report, findings=findings, smoke=measured, seconds=seconds, cost=cost)


def _untold(what: str, done: int, total: int) -> None:
    """For nobody."""
