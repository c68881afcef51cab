"""Names sort by age, none comes twice, and a forked process gives others than its parent."""

from __future__ import annotations

import os
import re

import pytest

from kleinbild.core import ids


def test_names_have_a_form_and_none_comes_twice() -> None:
    found = [ids.new_id("job") for _ in range(20_000)]
    assert all(re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", each) for each in found)
    assert len(set(found)) == len(found)


def test_names_sort_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1_000_000_000_000_000_000, 1_000_000_000_001_000_000, 1_900_000_000_000_000_000])
    monkeypatch.setattr("kleinbild.core.ids.time.time_ns", lambda: next(times))
    found = [ids.new_id("job") for _ in range(3)]
    assert found == sorted(found)


def test_chance_is_never_given_twice() -> None:
    found = [ids.random_bytes(count) for count in (1, 16, 4095, 4096, 10_000, 16) for _ in range(3)]
    assert [len(each) for each in found] == [count for count in (1, 16, 4095, 4096, 10_000, 16) for _ in range(3)]
    assert len(set(found[3:])) == len(found) - 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked on this system")
def test_a_forked_process_gives_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ids.random_bytes(1)
    monkeypatch.setattr(ids, "_pool", ids._pool)
    parents = ids._pool
    ids._renew()
    assert ids._pool is not parents
    assert ids.random_bytes(16) != parents.take(16)
