"""Line charts as SVG, for reports that are one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 260, 64, 16, 12, 34
COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")

Curve = Sequence[tuple[float, float]]
"""Points (step, value), by step."""


def chart(curves: Mapping[str, Curve], *, unit: str = "step", dots: bool = False) -> str:
    """The curves in one picture with a legend; `dots` marks each point."""
    drawn = {name: [(x, y) for x, y in curve if math.isfinite(y)] for name, curve in curves.items()}
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        return ""
    xs, ys = _range([x for x, _ in points]), _range([y for _, y in points], pad=0.06)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[1] - xs[0])
        up = (y - ys[0]) / (ys[1] - ys[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    lines = [*_grid(xs, ys, at, unit)]
    for number, curve in enumerate(drawn.values()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        if dots or len(curve) == 1:
            lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in (at(*p) for p in curve)]
    legend = "".join(
        f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(drawn)
    )
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(lines)}</svg>'
    return f'<figure>{picture}<figcaption class="legend">{legend}</figcaption></figure>'


def smooth(curve: Curve, weight: float = 0.9) -> list[tuple[float, float]]:
    """The moving average of a curve; its beginning is not drawn towards zero."""
    total = share = 0.0
    smoothed = []
    for x, y in curve:
        total, share = weight * total + (1 - weight) * y, weight * share + (1 - weight)
        smoothed.append((x, total / share))
    return smoothed


def _grid(
    xs: tuple[float, float], ys: tuple[float, float], at: Callable[[float, float], tuple[float, float]], unit: str
) -> list[str]:
    lines = []
    for y in _ticks(*ys):
        _, top = at(xs[0], y)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:.1f}" y2="{top:.1f}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{top + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in _ticks(*xs):
        across, _ = at(x, ys[0])
        lines.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(unit)}</text>')
    return lines


def _range(values: Sequence[float], pad: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low - pad * (high - low), high + pad * (high - low)


def _ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round numbers from low to high, about `num` of them."""
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
