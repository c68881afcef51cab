"""`generate` and `edit` with a running server: it is found, told, used, and gives the picture that this process would."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from kleinbild.cli.main import run
from kleinbild.client import running
from tests.unit.client.contract import Contract, Fault, contract, error, made


@pytest.fixture
def server() -> Iterator[Contract]:
    with contract() as listening:
        yield listening


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a home of one's own, in which no server is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("KLEINBILD_BASE_URL", raising=False)
    monkeypatch.delenv("KLEINBILD_API_KEY", raising=False)


def free_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_the_server_that_is_named_makes_the_file_that_this_process_would(
    server: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a fox", "--seed", "7", "--server", server.url, "-o", "fox.png"]) == 0
    told = capsys.readouterr()
    assert told.out == "fox.png\n"
    assert f"the server at {server.url} makes it" in told.err
    assert "seed 7 · 128x128" in told.err
    asked = {"prompt": "a fox", "seed": 7, "size": "128x128"}
    assert Path("fox.png").read_bytes() == made(asked, 0, {}).to_bytes("png")


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_other_formats_are_made_of_the_same_pixels(server: Contract, suffix: str) -> None:
    assert run(["a fox", "--seed", "7", "--server", server.url, "-o", f"fox.{suffix}"]) == 0
    wanted = made({"prompt": "a fox", "seed": 7}, 0, {}).to_bytes("webp" if suffix == "webp" else "jpeg")
    assert Path(f"fox.{suffix}").read_bytes() == wanted


def test_a_server_on_this_machine_is_found_and_the_environment_goes_before(
    server: Contract, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running.announce(server.url)
    assert run(["a fox", "-n", "2", "--seed", "7", "--json"]) == 0
    told = capsys.readouterr()
    assert [row["seed"] for row in json.loads(told.out)] == [7, 8]
    assert told.err.count(server.url) == 1
    monkeypatch.setenv("KLEINBILD_BASE_URL", server.url)
    monkeypatch.setenv("KLEINBILD_API_KEY", "kb_1")
    running.announce(free_url())
    assert run(["a fox"]) == 0
    assert server.calls[-1].headers["authorization"] == "Bearer kb_1"


def test_an_edit_sends_the_names_of_its_files(server: Contract) -> None:
    Image.new("RGB", (48, 32), "red").save("apple.png")
    Image.new("RGBA", (48, 32), (0, 0, 0, 0)).save("mask.png")
    command = ["edit", "a lemon", "-i", "apple.png", "-i", "apple.png", "--mask", "mask.png", "-o", "lemon.png"]
    assert run([*command, "--server", server.url]) == 0
    sent = server.called("POST /v1/jobs")[0].json
    assert sent["task"] == "image.edit"
    assert all(";name=apple.png;" in one["image_url"][:60] for one in sent["input"]["images"])
    assert ";name=mask.png;" in sent["input"]["mask"]["image_url"][:60]


@pytest.mark.parametrize(
    ("option", "value", "sent", "said"),
    [
        ("--aspect", "3:2", "144x96", ""),
        ("--size", "100x130", "96x128", "100x130 was rounded to 96x128"),
        ("--size", "64x64", "64x64", ""),
    ],
)
def test_sizes_are_what_they_are_here(
    option: str, value: str, sent: str, said: str, server: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["a fox", option, value, "--server", server.url]) == 0
    assert server.called("POST /v1/jobs")[0].json["input"]["size"] == sent
    assert said in capsys.readouterr().err


def test_nothing_heavy_is_loaded(server: Contract) -> None:
    program = "import sys; from kleinbild.cli.main import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, "a fox", "--server", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert "httpx2" in loaded
    assert loaded & {"torch", "numpy", "transformers", "safetensors", "fastapi", "starlette"} == set()
    assert len(list(Path().glob("a-fox-*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--dtype", "float32"], "--dtype cannot be sent"),
        (["--offload", "none", "--dtype", "int8"], "--dtype and --offload cannot be sent"),
        ([], "it has nano, not klein-4b"),
    ],
)
def test_what_is_not_for_a_server_is_made_here_and_said(
    options: list[str], why: str, server: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    running.announce(server.url)
    assert run(["a fox", "-m", "klein-4b", *options]) == 3  # here it would be made, were its weights here
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"made here, not by the server at {server.url}: {why}"
    assert not server.jobs
    assert run(["a fox", "-m", "klein-4b", *options, "--server", server.url]) == 2
    assert f"the server at {server.url} cannot make this: {why}" in capsys.readouterr().err


def test_local_asks_no_server(server: Contract, capsys: pytest.CaptureFixture[str]) -> None:
    running.announce(server.url)
    assert run(["a fox", "--local", "-m", "klein-4b"]) == 3
    assert server.url not in capsys.readouterr().err
    assert server.calls == []
    assert run(["a fox", "--local", "--server", server.url]) == 2


def test_a_server_that_was_named_and_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = free_url()
    assert run(["a fox", "--server", url]) == 5
    assert f"no server answers at {url}" in (told := capsys.readouterr().err)
    assert "--local" in told
    monkeypatch.setenv("KLEINBILD_BASE_URL", url)
    assert run(["a fox"]) == 5


def test_a_found_server_that_refuses_is_told_and_not_used(server: Contract, capsys: pytest.CaptureFixture[str]) -> None:
    running.announce(server.url)
    server.faults = [Fault("GET /v1/models", 401, body=error("a key is needed", code="invalid_api_key"))]
    assert run(["a fox", "-m", "klein-4b"]) == 3
    assert f"made here, not by the server at {server.url}: a key is needed" in capsys.readouterr().err
    server.faults = [Fault("GET /v1/models", 401, body=error("a key is needed", code="invalid_api_key"))]
    assert run(["a fox", "--server", server.url]) == 2
    assert "KLEINBILD_API_KEY" in capsys.readouterr().err


def test_what_the_server_says_is_wrong_has_its_exit_code(server: Contract, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults = [Fault("POST /v1/jobs", 400, body=error("'xyzzy' is no word; try fox", code="invalid_prompt"))]
    assert run(["xyzzy it", "--server", server.url]) == 2
    assert "error: 'xyzzy' is no word" in capsys.readouterr().err
    server.outcome, server.error = "failed", error("out of memory", "server_error")["error"]
    assert run(["a fox", "--server", server.url]) == 6


@pytest.mark.alone
def test_a_file_that_a_killed_server_left_costs_nothing(tmp_path: Path) -> None:
    running.announce(free_url())
    begun = time.perf_counter()
    assert running.find() is None
    assert time.perf_counter() - begun < 0.2
    for text in ("", "{", "[]", '{"url": 3}', '{"url": "nonsense", "pid": 1}', '{"url": "http://[", "pid": 1}'):
        running.server_file().write_text(text)
        assert running.find() is None


def test_a_server_withdraws_only_itself() -> None:
    running.announce("http://127.0.0.1:1", pid=11)
    running.withdraw(pid=12)
    assert running.read() == running.Running("http://127.0.0.1:1", 11)
    running.withdraw(pid=11)
    assert running.read() is None
    running.withdraw(pid=11)
