"""A run's report: one HTML file that needs no other, with its curves, previews, strengths and recipe."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from kleinbild.core.adapters import Card
from kleinbild.core.training import Previewed, Progressed, TrainingEvent, Validated, Warned
from kleinbild.train.card import Outcome
from kleinbild.train.chart import Curve, chart, smooth
from kleinbild.train.sweep import Trial

LARGEST_SHEET, MOST_SHEETS = 1600, 8  # pixels a side; sheets in a report
STYLE = """
:root{color-scheme:light dark;--ink:#1d2129;--pale:#5b6472;--line:#e3e6eb;--paper:#fff;--soft:#f6f7f9;--mark:#dff3e6}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--pale:#9aa3b2;--line:#343a46;--paper:#16181d;--soft:#1f232b;--mark:#1d3b2a}}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:820px;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.4rem 0 .6rem}p.pale,figcaption{color:var(--pale)}
.notice{background:var(--soft);border-left:4px solid #d97706;padding:.6rem .9rem;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--pale);font-weight:500}td.number,th.number{text-align:right}tr.best td{background:var(--mark)}td.code{font-family:ui-monospace,monospace;font-size:.86rem;overflow-wrap:anywhere}
figure{margin:.4rem 0 1rem}figure img{max-width:100%;border:1px solid var(--line)}svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--pale)}svg .grid{stroke:var(--line)}
.legend span{margin-right:1.1rem;white-space:nowrap}.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
details summary{cursor:pointer;margin:.6rem 0}
"""


def report(card: Card, outcome: Outcome, folder: Path) -> str:
    """The whole page. `folder` is the run's: previews are read from it."""
    parts = [
        f"<h1>{escape(card.name)}</h1>",
        f'<p class="pale">{escape(_summary(card, outcome))}</p>',
        *_notices(outcome),
        "<h2>How to use it</h2>", _facts(_use(card)),
        *_previews(outcome.events, folder),
        *_curves(outcome.events),
        *_sweep(outcome),
        "<h2>Where it comes from</h2>", _facts(_origin(card)),
        "<details><summary>The whole recipe</summary>", _facts(card.report["config"]), "</details>",
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(card.name)} · Kleinbild</title><style>{STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _summary(card: Card, outcome: Outcome) -> str:
    num = card.report["data"]["num_examples"]
    weights = f", weights of step {outcome.best_step}" if outcome.best_step else ""
    return f"An adapter for {card.family or card.base}, trained on {num} examples in {outcome.step} steps{weights}."


def _notices(outcome: Outcome) -> Iterable[str]:
    if outcome.stopped:
        yield f'<p class="notice">Stopped early: {escape(outcome.stopped)}.</p>'
    for event in outcome.events:
        if isinstance(event, Warned):
            at = f"Step {event.step}: " if event.step else ""
            yield f'<p class="notice">{at}{escape(event.message)}</p>'


def _use(card: Card) -> dict[str, Any]:
    strengths = ", ".join(f"{strength:g} on the {kind} model" for kind, strength in card.strengths.items())
    return {
        "name": card.name,
        "trigger words": ", ".join(card.trigger_words) or "none",
        "strength": strengths or "1 (not measured)",
        "licence": card.licence or "not said",
    }


def _origin(card: Card) -> dict[str, Any]:
    data = card.report["data"]
    return {
        "base model": f"{card.base} ({card.base_fingerprint})",
        "data": f"{data['num_examples']} examples, SHA-256 {data['sha256']}",
        "file": f"{card.size_bytes / 1e6:.1f} MB, SHA-256 {card.sha256}",
        **{f"{name} version": version for name, version in card.report["versions"].items()},
        **{name.replace("_", " "): f"{value:.4g}" for name, value in card.report["metrics"].items()},
    }


def _facts(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th>{escape(str(name))}</th><td class="code">{escape(_text(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _previews(events: Sequence[TrainingEvent], folder: Path) -> Iterable[str]:
    """The last sheet, and the ones before it behind a click."""
    made = {event.path: event for event in events if isinstance(event, Previewed) and (folder / event.path).is_file()}
    if not made:
        return
    *earlier, last = list(made.values())
    yield "<h2>Previews</h2>"
    yield _sheet(last, folder)
    if shown := _spread_out(earlier, MOST_SHEETS - 1):
        yield "<details><summary>Earlier ones</summary>"
        yield from (_sheet(event, folder) for event in shown)
        yield "</details>"


def _spread_out(events: Sequence[Previewed], most: int) -> list[Previewed]:
    if len(events) <= most:
        return list(events)
    return [events[round(i * (len(events) - 1) / (most - 1))] for i in range(most)]


def _sheet(event: Previewed, folder: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(folder / event.path) as image:
        image.thumbnail((LARGEST_SHEET, LARGEST_SHEET))
        image.convert("RGB").save(buffer, "WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    words = f"Step {event.step}, {escape(event.model)}"
    return f'<figure><img src="data:image/webp;base64,{data}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _curves(events: Sequence[TrainingEvent]) -> Iterable[str]:
    training = [(event.step, event.loss) for event in events if isinstance(event, Progressed)]
    checks = [event for event in events if isinstance(event, Validated)]
    losses: dict[str, Curve] = {"training, smoothed": smooth(training)} if training else {}
    if checks:
        yield "<h2>Validation loss</h2>"
        yield chart({"mean over all times": [(check.step, check.loss) for check in checks]}, dots=True)
        yield "<h2>Validation loss by time</h2>"
        yield chart(
            {
                f"t = {time}": [(c.step, c.by_time[time]) for c in checks if time in c.by_time]
                for time in checks[0].by_time
            }
        )
    if losses:
        yield "<h2>Training loss</h2>"
        yield chart(losses)
    names = dict.fromkeys(name for check in checks for name in check.metrics)
    if names:
        yield "<h2>Copies and drift</h2>"
        yield chart({n: [(c.step, c.metrics[n]) for c in checks if n in c.metrics] for n in names}, dots=True)
        yield (
            '<p class="pale">copied: the share of pictures of other prompts that repeat a training picture. '
            "drift: how far neutral prompts have moved; 1 is as far as from one neutral prompt to another.</p>"
        )


def _sweep(outcome: Outcome) -> Iterable[str]:
    if not outcome.trials:
        return
    yield "<h2>Strengths</h2>"
    kinds = dict.fromkeys(trial.kind for trial in outcome.trials)
    scores = {str(kind): [(t.strength, t.score) for t in outcome.trials if t.kind == kind] for kind in kinds}
    yield chart(scores, unit="strength", dots=True)
    numbers = "".join(
        f'<th class="number">{name}</th>' for name in ("strength", "distance to what was taught", "drift", "score")
    )
    rows = "".join(_row(trial, best=outcome.strengths.get(trial.kind) == trial.strength) for trial in outcome.trials)
    yield f"<table><tr><th>model</th>{numbers}</tr>{rows}</table>"


def _row(trial: Trial, *, best: bool) -> str:
    values = (f"{trial.strength:g}", f"{trial.distance:.4f}", f"{trial.drift:.3f}", f"{trial.score:+.3f}")
    cells = "".join(f'<td class="number">{value}</td>' for value in values)
    return f"<tr class='{'best' if best else ''}'><td>{trial.kind}</td>{cells}</tr>"
