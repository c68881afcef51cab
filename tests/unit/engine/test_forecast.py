"""Forecasts: of the right order, growing with what is asked for, and cheap."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine.forecast import Plan, Speeds, forecast, measure, num_parameters
from kleinbild.engine.runtime import Engine
from kleinbild.model.official import KLEIN_4B, KLEIN_9B
from kleinbild.nano.specs import NANO

CPU = torch.device("cpu")
PLAN = Plan(Size(512, 512), (), steps=4, guided=False)
SPEEDS = Speeds(blocks=1e12, text=1e12, decode=1e-6, encode=1e-6, attention=1e-9)


def test_a_forecast_of_nano_is_of_the_right_order() -> None:
    """Other processes may run beside the tests, so a factor of three; `benchmarks/forecast.py` holds it to 30 %."""
    engine = Engine("nano", device="cpu")
    asked = PictureRequest("a fox on red", seed=1, size=Size(256, 256), steps=8)
    engine.generate(asked)
    begun = time.perf_counter()
    plan = Plan(Size(256, 256), (), steps=8, guided=False)
    speeds = measure(NANO, plan, device=CPU, precision="float32")
    assert time.perf_counter() - begun < 30
    expected = forecast(NANO, plan, speeds, precision="float32")
    timings = engine.generate(replace(asked, seed=2)).timings
    actual = timings["denoise"] + timings["decode"]
    assert actual / 3 < expected.seconds["denoise"] + expected.seconds["decode"] < actual * 3


@pytest.mark.parametrize(
    "more",
    [{"steps": 8}, {"size": Size(1024, 512)}, {"references": (Size(512, 512),)}, {"guided": True}],
    ids=lambda more: next(iter(more)),
)
def test_more_takes_longer_and_needs_more(more: dict[str, object]) -> None:
    less, greater = (
        forecast(KLEIN_4B, plan, SPEEDS, precision="bfloat16")
        for plan in (PLAN, replace(PLAN, **more))  # type: ignore[arg-type]
    )
    assert greater.total_seconds > 1.3 * less.total_seconds or "references" in more
    assert greater.seconds["denoise"] > 1.3 * less.seconds["denoise"]
    assert greater.picture_bytes >= less.picture_bytes


def test_cached_references_save_time() -> None:
    plan = replace(PLAN, references=(Size(1024, 1024),) * 2)
    plain, cached = (
        forecast(KLEIN_9B, plan, SPEEDS, precision="bfloat16", caching=caching) for caching in (False, True)
    )
    assert cached.seconds["denoise"] < 0.6 * plain.seconds["denoise"]
    assert cached.picture_bytes > plain.picture_bytes


def test_the_official_models_have_the_official_numbers_of_parameters() -> None:
    """As published: 3.88 and 9.08 billion; of the text encoders only the layers that are needed are loaded."""
    assert num_parameters(KLEIN_4B) == pytest.approx(3.88e9 + 0.084e9 + 3.11e9, rel=0.02)
    assert num_parameters(KLEIN_9B) == pytest.approx(9.08e9 + 0.084e9 + 5.83e9, rel=0.02)
