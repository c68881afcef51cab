"""How long to wait before the next try."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleinbild.gateway.flow.backoff import MAX_RETRY_AFTER_SECONDS, MAX_SECONDS, ceiling, delay


class Drawn(Random):
    """Draws always the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


highest, lowest = Drawn(1.0), Drawn(0.0)


def test_the_ceiling_doubles_with_each_try_up_to_a_bound() -> None:
    assert [delay(number, None, highest, base=1, longest=6) for number in (1, 2, 3, 4, 5)] == [1, 2, 4, 6, 6]


def test_the_jitter_is_full() -> None:
    assert delay(4, None, lowest) == 0.0
    drawn = [delay(3, None, Random(1)) for _ in range(3)]
    assert len(set(drawn)) == 1  # of one seed, one delay
    many = [delay(3, None, rng) for rng in map(Random, range(200))]
    assert min(many) < 0.2 * ceiling(3) < 0.8 * ceiling(3) < max(many)


def test_a_service_is_not_asked_before_the_time_that_it_gave() -> None:
    assert delay(1, 7.0, lowest) == 7.0
    assert delay(1, 7.0, highest) == 7.0 + ceiling(1)


@pytest.mark.parametrize("absurd", [1e12, float("inf")])
def test_an_absurd_time_is_bounded(absurd: float) -> None:
    assert delay(1, absurd, lowest) == MAX_RETRY_AFTER_SECONDS


@given(st.integers(-5, 10**9), st.none() | st.floats(allow_nan=False), st.floats(0, 1))
def test_a_delay_is_never_negative_and_never_endless(number: int, retry_after: float | None, drawn: float) -> None:
    assert 0.0 <= delay(number, retry_after, Drawn(drawn)) <= MAX_SECONDS + MAX_RETRY_AFTER_SECONDS
