"""The clients and the command against the real server, as a process of its own with nano's engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

import kleinbild
from kleinbild.cli.main import run
from kleinbild.client import errors
from kleinbild.client.events import Completed, Preview, Queued, Step
from kleinbild.core.errors import CancelledError
from kleinbild.core.requests import digest
from kleinbild.engine.picture import read_record
from tests.integration.command import KLEINBILD, environment

START_S = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """A server as anybody starts it, on a free port."""
    command = [*KLEINBILD, "serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=home, env=environment(KLEINBILD_HOME=str(home)), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert " at http" in first, first + process.stderr.read()
        url = first.split(" at ")[1].split("/v1")[0]
        _wait_until_ready(url)
        yield url
    finally:
        process.terminate()
        process.stderr.read()
        process.stderr.close()
        process.wait(60)


def _wait_until_ready(url: str) -> None:
    import httpx2

    deadline = time.monotonic() + START_S
    while httpx2.get(f"{url}/readyz", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def client(url: str) -> Iterator[kleinbild.Client]:
    with kleinbild.Client(url) as connected:
        yield connected


@pytest.fixture(autouse=True)
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEINBILD_HOME", str(home))
    monkeypatch.delenv("KLEINBILD_BASE_URL", raising=False)
    monkeypatch.delenv("KLEINBILD_API_KEY", raising=False)


def pixels(file: str) -> tuple[tuple[int, int], bytes]:
    with Image.open(file) as image:
        return image.size, image.convert("RGB").tobytes()


def test_a_picture_is_the_one_that_this_process_makes(client: kleinbild.Client) -> None:
    served, local = client.run("a red apple on a beach", seed=7), kleinbild.generate("a red apple on a beach", seed=7)
    assert served.bytes == local.to_bytes("png")
    assert served.record == local.record
    assert served.usage is not None
    assert served.usage["output_tokens"] > 0
    assert sum(served.timings.values()) > 0


def test_several_of_a_job_have_the_seeds_that_follow(client: kleinbild.Client) -> None:
    made = client.run("a fox on a mint background", n=2, seed=5, size="64x64")
    assert [one.seed for one in made] == [5, 6]
    assert (
        made[1].pil().tobytes() == kleinbild.generate("a fox on a mint background", seed=6, size="64x64").pil.tobytes()
    )


def test_events_and_handles(client: kleinbild.Client) -> None:
    events = list(client.stream("a fox on a mint background", seed=7, previews=1))
    kinds = [type(event) for event in events]
    assert kinds[0] is Queued
    assert kinds.count(Step) == 4
    assert Preview in kinds
    assert isinstance(events[-1], Completed)
    job = client.job(events[-1].job.id)
    assert job.pictures()[0].bytes == events[-1].pictures[0].bytes
    assert isinstance(list(job.events())[-1], Completed)
    assert job.id in [one.id for one in client.jobs(status="completed")]
    assert [model.id for model in client.models()] == ["nano"]


def test_a_job_is_taken_back(client: kleinbild.Client) -> None:
    job = client.submit("a fox on a mint background", steps=200)
    assert job.cancel() == "cancelled"
    with pytest.raises(CancelledError):
        job.pictures()


def test_errors_arrive_as_what_they_are(client: kleinbild.Client) -> None:
    with pytest.raises(errors.ModelNotFoundError) as unknown:
        client.run("a fox", model="klein-99b", strict=True)
    assert (unknown.value.exit_code, unknown.value.status) == (3, 404)
    assert unknown.value.request_id
    with pytest.raises(errors.BadRequestError) as wrong:
        client.run("a fox", steps=-1)
    assert wrong.value.param is not None
    assert "steps" in wrong.value.param
    with pytest.raises(errors.NotFoundError):
        client.job("job_00000000000000000000000000")
    client.submit("a fox on a mint background", idempotency_key="once")
    with pytest.raises(errors.ConflictError):
        client.submit("a cat on a mint background", idempotency_key="once")


def test_a_key_stands_for_one_job(client: kleinbild.Client) -> None:
    first, second = (client.submit("a fox on a mint background", idempotency_key="twice") for _ in range(2))
    assert first.id == second.id


def test_the_async_client(url: str) -> None:
    async def several() -> list[Any]:
        made: list[Any] = []
        async with kleinbild.AsyncClient(url) as client, anyio.create_task_group() as group:

            async def one(seed: int) -> None:
                made.append(await client.run("a fox on a mint background", seed=seed, size="64x64"))

            for seed in range(4):
                group.start_soon(one, seed)
        return made

    made = anyio.run(several)
    assert sorted(one.seed for one in made) == [0, 1, 2, 3]


def test_the_command_finds_it_and_makes_the_same_file(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["a red apple on a beach", "--seed", "7"]
    assert run([*prompt, "-o", "served.png"]) == 0
    assert f"the server at {url} makes it" in capsys.readouterr().err
    assert run([*prompt, "-o", "local.png", "--local"]) == 0
    assert url not in capsys.readouterr().err
    assert Path("served.png").read_bytes() == Path("local.png").read_bytes()


@pytest.mark.parametrize("options", [[], ["--size", "96x64"], ["--aspect", "3:2"], ["--mask", "mask.png"]])
def test_an_edit_is_the_same_file_and_can_be_replayed(
    options: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kleinbild.generate("a red apple on a beach", seed=7, size="112x80").save("apple.png")
    with Image.open("apple.png") as apple:
        cut = apple.convert("RGB").crop((0, 0, 100, 70))
    cut.save("apple.png")
    mask = cut.convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, 0, 50, 70))
    mask.save("mask.png")
    command = ["edit", "replace the red apple with a lemon", "-i", "apple.png", "--seed", "3", *options]
    assert run([*command, "-o", "served.png"]) == 0
    assert f"the server at {url} makes it" in capsys.readouterr().err
    assert run([*command, "-o", "local.png", "--local"]) == 0
    assert pixels("served.png") == pixels("local.png")
    assert read_record("served.png") == read_record("local.png")
    assert read_record("served.png").references[0].sha256 == digest(Path("apple.png").read_bytes())
    assert run(["generate", "--from", "served.png", "-o", "again.png"]) == 0
    assert "the same as served.png, to the pixel" in capsys.readouterr().err


def test_what_is_wrong_has_the_same_exit_code_as_here(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["a xyzzy on a plugh"], ["a fox", "--guidance", "3"], ["a fox", "--size", "4096x4096"]):
        assert [run(arguments), run([*arguments, "--local"])] == [2, 2]
    assert capsys.readouterr().err.count(f"the server at {url} makes it") == 3


@pytest.mark.alone
def test_it_is_quick(url: str, home: Path) -> None:
    """The whole command, from a shell: most of it is Python's start."""
    assert url
    program = "from kleinbild.cli.main import run; import sys; sys.exit(run(['a red apple on a beach', '-o', 'x.png']))"
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env={**os.environ})
    assert time.perf_counter() - begun < 20  # here about 1.5 s; importing torch alone takes longer on a busy machine
