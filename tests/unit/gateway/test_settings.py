"""Settings: one file, the environment and flags, in that order; what is unknown or wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleinbild.gateway.configured import ARRAYS
from kleinbild.gateway.settings import SECTIONS, ConfigurationError, Settings, read_configuration


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str) -> Path:
    path = Path("kleinbild.toml")
    path.write_text(text)
    return path


def refused(*arguments: object) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(*arguments)  # type: ignore[arg-type]
    return caught.value


def test_nothing_set_is_a_loopback_server_with_the_embedded_model() -> None:
    found = read_configuration()
    assert found.settings == Settings()
    assert found.settings.loopback
    assert found.settings.engine.models == ("nano",)
    assert found.sources == {}


def test_the_later_overrides_the_earlier_and_each_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    written('[server]\nport = 1\nhost = "::1"\n[limits]\nmax_queue = 7\n')
    monkeypatch.setenv("KLEINBILD_SERVER__PORT", "2")
    monkeypatch.setenv("KLEINBILD_LIMITS__MAX_IMAGE_MB", "3.5")
    found = read_configuration(None, {"server": {"port": 3}})
    assert (found.settings.server.port, found.settings.server.host) == (3, "::1")
    assert (found.settings.limits.max_queue, found.settings.limits.max_image_mb) == (7, 3.5)
    assert found.sources == {
        "server.port": "flag",
        "server.host": "kleinbild.toml",
        "limits.max_queue": "kleinbild.toml",
        "limits.max_image_mb": "environment",
    }


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_ENGINE__MODELS", "nano, nano-base")
    monkeypatch.setenv("KLEINBILD_LIMITS__ALLOWED_NETWORKS", "10.0.0.0/8,fd00::/8")
    found = read_configuration().settings
    assert found.engine.models == ("nano", "nano-base")
    assert [str(network) for network in found.limits.allowed_networks] == ["10.0.0.0/8", "fd00::/8"]


def test_an_unknown_setting_lists_the_known_and_guesses() -> None:
    error = refused(written("[server]\nprot = 1\n"))
    assert error.message == "unknown setting 'server.prot' (kleinbild.toml)"
    assert error.hint.startswith("did you mean port? server knows host, port, data,")


def test_an_unknown_section_lists_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEINBILD_SEVRER__PORT", "1")
    error = refused()
    assert error.message == "unknown section 'sevrer' (environment)"
    assert error.hint == f"sections are {', '.join(SECTIONS)}; lists are {', '.join(ARRAYS)}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1\n", "kleinbild.toml: 'port' stands outside a section"),
        ("[server\n", "is not TOML"),
        ('[server]\nport = "many"\n', "server.port is wrong: Input"),
        ("[server]\nport = 70000\n", "given was 70000"),
        ("[engine]\nmodels = []\n", "engine.models is wrong"),
        ('[limits]\nallowed_networks = ["all"]\n', "limits.allowed_networks is wrong"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    assert said in refused(written(text)).message


def test_a_file_that_was_named_must_be_there_and_the_usual_one_need_not() -> None:
    assert "there is no file other.toml" in refused(Path("other.toml")).message
    assert read_configuration().settings == Settings()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("kleinbild.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert read_configuration(None, {"server": {"host": host}}).settings.loopback is loopback


def test_every_setting_says_what_it_is() -> None:
    found = read_configuration()
    assert {*SECTIONS, *ARRAYS} == {*Settings.model_fields}
    for section, model in (SECTIONS | ARRAYS).items():
        for name in model.model_fields:
            assert found.describe(section, name), f"{section}.{name}"
