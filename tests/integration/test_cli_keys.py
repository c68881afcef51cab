"""`kleinbild keys`: beside a server and without one. What it makes, the real `openai` package is served with."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from kleinbild.cli.failures import in_words
from kleinbild.cli.main import run
from kleinbild.storage.keys import FORM
from tests.integration.command import kleinbild
from tests.integration.served import served

NOTICED_S = 6.0  # 5, and a second for a busy machine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def told(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `kleinbild keys …` says on stdout."""

    def keys(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run(["keys", *arguments]) == code
        return capsys.readouterr().out

    return keys


def test_a_key_is_alone_on_stdout_and_shown_this_once(home: Path, told: Callable[..., str]) -> None:
    made = kleinbild("keys", "create", "--name", "laptop", cwd=home, KLEINBILD_HOME=str(home))
    assert made.code == 0
    key = made.stdout.decode().removesuffix("\n")
    assert FORM.fullmatch(key)
    assert key not in made.stderr
    assert "name: laptop" in made.stderr
    assert (home / "server" / "secret").stat().st_mode & 0o077 == 0
    for command in (
        ["list"],
        ["list", "--json"],
        ["show", key[:11]],
        ["show", key[:11], "--json"],
        ["audit", "--json"],
    ):
        shown = told(*command)
        assert key[:11] in shown
        assert key[11:] not in shown
    assert all(key.encode() not in file.read_bytes() for file in (home / "server").iterdir())


def test_everything_that_a_key_may_is_given_and_shown(told: Callable[..., str]) -> None:
    rights = "--role viewer --model nano --model klein-4b --route /v1/images --expires 30d".split()
    limits = "--requests-per-minute 60 --images-per-minute 10 --megapixels-per-minute 20 --concurrent-jobs 2".split()
    made = json.loads(told("create", "--name", "n", "--owner", "anna", "--project", "p", *rights, *limits, "--json"))
    assert FORM.fullmatch(made.pop("key"))
    assert made == json.loads(told("show", made["id"], "--json"))
    assert [made] == json.loads(told("list", "--json"))
    assert made["expires_at"] == pytest.approx(time.time() + 30 * 24 * 3600, abs=30)
    wanted = {
        "name": "n",
        "owner": "anna",
        "project": "p",
        "role": "viewer",
        "models": ["klein-4b", "nano"],
        "routes": ["/v1/images"],
        "limits": {
            "requests_per_minute": 60,
            "images_per_minute": 10,
            "concurrent_jobs": 2,
            "megapixels_per_minute": 20,
        },
    }
    assert {name: made[name] for name in wanted} == wanted
    shown = told("show", made["prefix"])
    assert all(
        text in shown
        for text in ("anna", "klein-4b, nano", "images per minute:     10", "megapixels per minute: 20", "viewer")
    )


def test_a_child_has_what_its_parent_has_and_never_more(told: Callable[..., str]) -> None:
    rights = "--owner anna --project p --model nano --expires 1d --images-per-minute 10".split()
    parent = json.loads(told("create", *rights, "--json"))
    child = json.loads(told("create", "--parent", parent["prefix"], "--concurrent-jobs", "2", "--json"))
    same = ("owner", "project", "role", "models", "expires_at")
    assert {name: child[name] for name in same} == {name: parent[name] for name in same}
    assert {name: limit for name, limit in child["limits"].items() if limit is not None} == {
        "images_per_minute": 10,
        "concurrent_jobs": 2,
    }
    assert child["parent"] == parent["id"]
    for more in ("--role admin", "--model klein-4b", "--project q", "--expires 2d", "--images-per-minute 11"):
        told("create", "--parent", parent["id"], *more.split(), code=2)
    assert len(json.loads(told("list", "--json"))) == 2
    assert told("list", "--project", "q").count("\n") == 1


def test_a_key_has_a_budget_and_a_policy(told: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(told("create", "--budget", "5.00/30d", "--policy", "cost", "--json"))
    assert (made["policy"], made["budget"]["amount"], made["budget"]["window"]) == ("cost", "5", "30d")
    child = json.loads(told("create", "--parent", made["id"], "--json"))
    assert (child["policy"], child["budget"]) == (None, None)
    shown = told("show", made["id"])
    assert "budget:                $5 each 30d ($5 left, $0 spent, $0 reserved; anew 20" in shown
    assert re.search(r"policy: +cost", shown)
    header, first, second = told("list").splitlines()
    assert header.split()[-2:] == ["left", "parent"]
    assert first.split()[-2:] == ["$5", "-"]
    assert second.split()[-2:] == ["-", made["id"]]
    assert "amount 5.00 window 30d" in told("audit")
    for good in ("0.5/12h", "20/month", "100"):
        told("create", "--budget", good)
    capsys.readouterr()


def test_revoking_a_key_revokes_what_is_below_it(told: Callable[..., str]) -> None:
    parent = json.loads(told("create", "--json"))
    told("create", "--parent", parent["id"])
    told("create")
    assert json.loads(told("revoke", parent["prefix"], "--json"))["revoked_at"] is not None
    assert re.findall(r" (good|revoked|expired) ", told("list")) == ["revoked", "revoked", "good"]
    told("rotate", parent["id"], code=2)


def test_every_change_is_audited_and_no_refused_one(told: Callable[..., str]) -> None:
    made = json.loads(told("create", "--name", "app", "--json"))
    rotated = told("rotate", made["prefix"]).strip()
    told("rotate", made["prefix"], code=2)  # it starts otherwise now
    told("revoke", rotated[:11])
    entries = json.loads(told("audit", "--json"))
    assert [entry["action"] for entry in entries] == ["key.revoke", "key.rotate", "key.create"]
    assert {entry["target"] for entry in entries} == {made["id"]}
    assert all(re.fullmatch(r"cli:.+", entry["actor"]) for entry in entries)
    assert entries[2]["details"]["name"] == "app"
    assert len(told("audit", "--limit", "1").splitlines()) == 2
    assert not {made["key"], rotated} & set(re.findall(FORM, json.dumps(entries)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("create --expires 30", "90m, 12h, 30d"),
        ("create --role king", "viewer, member, admin"),
        ("create --route images", "--route 'images'"),
        ("create --budget 5.00/30m", "5.00/30d, 0.50/12h, 20/month, or 100 for good"),
        ("create --budget 5/400d", "not a budget"),
        ("create --budget -1", "not a budget"),
        ("create --policy cheap", "cost, latency, quality, balanced"),
        ("create --images-per-minute 0", "not a whole number from 1"),
        ("create --parent key_unknown", "there is no key 'key_unknown'"),
        ("show kb_unknown", "there is no key 'kb_unknown'"),
        ("audit --limit 0", "not a whole number from 1 to 1000"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: str, words: str, told: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    told("create")
    assert run(["keys", *arguments.split()]) == 2
    assert words in capsys.readouterr().err


def test_only_create_makes_a_folder(told: Callable[..., str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["audit"], ["revoke", "key_1"], ["rotate", "key_1"], ["show", "key_1"]):
        assert run(["keys", *command, "--data", str(home / "elsewhere")]) == 2
        assert f"no key was ever made in {home / 'elsewhere'}" in capsys.readouterr().err
    assert not (home / "elsewhere").exists()
    told("create", "--data", str(home / "elsewhere"))
    (home / "settings.toml").write_text(f'[server]\ndata = "{home / "elsewhere"}"\n')
    assert len(json.loads(told("list", "--json", "--config", str(home / "settings.toml")))) == 1


def test_no_key_is_made_with_another_secret_than_the_servers(
    told: Callable[..., str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(told("create", "--json"))
    (home / "server" / "secret").unlink()
    for command in (["create"], ["rotate", made["id"]]):
        told(*command, code=2)
        assert run(["keys", *command]) == 2
        assert "whose secret is not in" in capsys.readouterr().err
    assert not (home / "server" / "secret").exists()
    assert len(json.loads(told("list", "--json"))) == 1
    told("revoke", made["id"])


@pytest.mark.parametrize("package", ["pydantic", "sqlalchemy", "cryptography"])
def test_a_missing_package_of_the_server_is_said(package: str) -> None:
    error = in_words(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert error is not None
    assert error.hint == "pip install 'kleinbild[all]'"


def test_a_server_for_all_needs_keys_and_serves_those_who_have_one(home: Path, told: Callable[..., str]) -> None:
    refused = kleinbild("serve", "--host", "0.0.0.0", "--port", "0", cwd=home, KLEINBILD_HOME=str(home))
    assert refused.code == 2
    assert "0.0.0.0 can be reached from other machines, and there are no keys" in refused.stderr
    assert "kleinbild keys create" in refused.stderr
    key = told("create").strip()
    with served(home, "--host", "0.0.0.0") as server:
        url = server.url
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="nonsense", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.images.generate(model="nano", prompt="a red apple")
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            made = client.images.generate(model="nano", prompt="a red apple", response_format="b64_json")
            assert made.data
            assert base64.b64decode(made.data[0].b64_json or "").startswith(b"\x89PNG")
            told("revoke", key[:11])
            assert _seconds_until_refused(client) < NOTICED_S


def test_a_server_without_keys_closes_once_there_is_one(home: Path, told: Callable[..., str]) -> None:
    with served(home) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as anyone:
        assert [model.id for model in anyone.models.list()] == ["nano"]
        key = told("create").strip()
        assert _seconds_until_refused(anyone) < NOTICED_S
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["nano"]


def _seconds_until_refused(client: openai.OpenAI) -> float:
    begun = time.monotonic()
    while time.monotonic() < begun + 2 * NOTICED_S:
        try:
            client.models.list()
        except openai.AuthenticationError:
            break
        time.sleep(0.1)
    return time.monotonic() - begun
