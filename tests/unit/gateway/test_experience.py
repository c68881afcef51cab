"""What is learned of places outlives the server, and is only experience."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kleinbild.core.prices import Measure
from kleinbild.gateway import experience
from kleinbild.gateway.routing.predict import Predictor
from tests.unit.gateway.fleets import deployment

PLACE = deployment("a")


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    assert experience.read(tmp_path).predict(PLACE, Measure(), 0.0).samples == 0
    learned = Predictor()
    for second in range(30):
        learned.observe(PLACE, Measure(), 0.2, float(second), "done")
    experience.keep(tmp_path, learned)
    again = experience.read(tmp_path).predict(PLACE, Measure(), 0.0)
    assert again == learned.predict(PLACE, Measure(), 0.0)
    assert again.samples > 20


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', '{"a": {"calls": [[1]], "at": 0, "successes": 0, "failures": 0}}']
)
def test_a_file_that_cannot_be_read_costs_nothing_but_experience(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / experience.FILE).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert experience.read(tmp_path).to_json() == {}
    assert "begins anew" in caplog.text
