"""How right forecasts are: `python benchmarks/forecast.py [--model nano] [--json]`. On a quiet machine.

Each row is forecast first and made afterwards; `ratio` is forecast over actual, 1 is perfect.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.forecast import Plan, forecast, measure
from kleinbild.engine.runtime import Engine

RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    engine = Engine(arguments.model)
    side = engine.model.settings.default_size
    rows = {
        "default": Plan(Size(side, side), (), engine.model.settings.default_steps, guided=False),
        "half the area": Plan(Size(side, side // 2), (), engine.model.settings.default_steps, guided=False),
        "twice the area, 8 steps": Plan(Size(2 * side, side), (), 8, guided=False),
        "one reference": Plan(Size(side, side), (Size(side, side),), 4, guided=False),
        "two references": Plan(Size(side, side), (Size(side, side),) * 2, 4, guided=False),
    }
    ratios = {}
    print(f"{engine.name} on {engine.device}, {engine.dtype}")
    print(f"{'':<26}{'forecast s':>12}{'actual s':>12}{'ratio':>8}")
    for name, plan in rows.items():
        speeds = measure(engine.model.spec, plan, device=engine.device, precision=engine.dtype)
        expected = forecast(engine.model.spec, plan, speeds, precision=engine.dtype).total_seconds
        actual = statistics.median(seconds(engine, plan, run) for run in range(RUNS))
        ratios[name] = round(expected / actual, 3)
        print(f"{name:<26}{expected:>12.3f}{actual:>12.3f}{ratios[name]:>8.2f}")
    if arguments.json:
        print(json.dumps({"forecast_over_actual": ratios}))


def seconds(engine: Engine, plan: Plan, run: int) -> float:
    """Of one picture, other than any before: nothing may come from a cache."""
    from PIL import Image

    files = []
    for number, size in enumerate(plan.references):
        buffer = io.BytesIO()
        Image.new("RGB", (size.width, size.height), (40 * run, 60 * number, 90)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    prompt = (
        "put the object of image 1 on the background of image 2"
        if files
        else f"{('a cat', 'a dog', 'a fox')[run]} on red"
    )
    if len(files) == 1:
        prompt = f"change the background to {('red', 'blue', 'mint')[run]}"
    request = PictureRequest(prompt, engine.name, size=plan.size, steps=plan.steps, seed=run, references=tuple(files))
    timings = engine.generate(request).timings
    return sum(timings[stage] for stage in ("text", "references", "denoise", "decode"))


if __name__ == "__main__":
    main()
