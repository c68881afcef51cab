from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kleinbild.core.errors import RequestError
from kleinbild.gateway.secrets import Secrets, load_secrets


def test_the_first_start_makes_the_secret_and_later_ones_find_it(tmp_path: Path) -> None:
    first = load_secrets(tmp_path / "data")
    assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600
    assert load_secrets(tmp_path / "data") == first
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret"]
    assert load_secrets(tmp_path / "other") != first


def test_starts_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: load_secrets(tmp_path).master, range(64)))
    assert len(found) == 1


def test_each_purpose_has_a_secret_of_its_own(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path)
    derived = [secrets.derive("api keys"), secrets.derive("signed urls"), secrets.derive("webhook secrets")]
    assert len({*derived, secrets.master}) == 4
    assert {len(secret) for secret in derived} == {32}
    assert secrets.derive("api keys") == derived[0]


def test_derivation_does_not_change_between_versions() -> None:
    """Else every key and signed URL that is out there would stop working."""
    derived = Secrets(bytes(32)).derive("api keys").hex()
    assert derived == "5d186cde5903f2dbc5d73c19c7da711f89ef104d357220c5b80ec5c269feb593"


def test_one_that_was_set_is_used_and_no_file_made(tmp_path: Path) -> None:
    assert load_secrets(tmp_path, "ab" * 32).master == b"\xab" * 32
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["", "short", "g" * 64, "ab" * 31])
def test_a_weak_or_misspelt_one_is_refused_without_being_told(tmp_path: Path, given: str) -> None:
    with pytest.raises(RequestError, match="64 hexadecimal digits") as refused:
        load_secrets(tmp_path, given)
    assert not given or given not in refused.value.message


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    load_secrets(tmp_path)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(RequestError, match="read by others"):
        load_secrets(tmp_path)


def test_the_secret_is_in_no_representation(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path)
    assert secrets.master.hex() not in repr(secrets)
    assert str(secrets.master) not in repr(secrets)
