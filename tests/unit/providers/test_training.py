"""The trainer's process: it hears a stop, it ends with whoever started it, and two never work in one folder."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from kleinbild.core.training import Checkpointed, Paused, Progressed, Started, Warned, to_line
from kleinbild.providers.training import EVENTS, Heard, Trainer, tail_of_log

pytestmark = pytest.mark.anyio
STANDING_IN = Trainer("tests.trainer")
STARTING = """
import asyncio, sys
from pathlib import Path
from kleinbild.providers.training import Trainer

async def main():
    process = await Trainer("tests.trainer").start(Path(sys.argv[1]))
    print(process.pid, flush=True)
    await process.ended()

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLEINBILD_HOME", str(tmp_path / "home"))
    place = tmp_path / "run"
    place.mkdir()
    (place / "recipe.toml").write_text('model = "nano-base"\nname = "fox"\nseed = 1\nsteps = 40\n')
    return place


async def until_steps(heard: Heard) -> list[object]:
    events: list[object] = []
    async with asyncio.timeout(30):
        while not any(isinstance(event, Progressed) for event in events):
            events += [event for event, _ in heard.new()]
            await asyncio.sleep(0.02)
    return events


async def test_told_to_stop_it_keeps_its_state_and_goes_on_later(folder: Path) -> None:
    heard = Heard(folder, 0.0)
    process = await STANDING_IN.start(folder)
    assert not await process.ended(0.01)
    events = await until_steps(heard)
    assert isinstance(events[0], Started)
    process.stop()
    assert await process.ended()
    assert process.returncode == 0
    (*_, last) = [event for event, _ in heard.new()]
    assert isinstance(last, Paused)
    again = await STANDING_IN.start(folder)
    first = (await until_steps(heard))[0]
    assert isinstance(first, Started)
    assert first.step == last.step
    again.stop()
    assert await again.ended()


async def test_it_ends_with_whoever_started_it_be_he_killed(folder: Path) -> None:
    starting = [sys.executable, "-c", STARTING, str(folder)]
    parent = await asyncio.create_subprocess_exec(*starting, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await until_steps(Heard(folder, 0.0))
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(30):
        while is_alive(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    *_, (last, _) = Heard(folder, 0.0).new()
    assert isinstance(last, Paused)


async def test_a_second_one_waits_until_the_first_has_ended(folder: Path) -> None:
    first, second = await STANDING_IN.start(folder), await STANDING_IN.start(folder)
    heard = Heard(folder, 0.0)
    await until_steps(heard)
    assert len((folder / "starts").read_text().split()) == 1
    first.stop()
    second.stop()
    assert await first.ended()
    assert await second.ended()


async def test_one_that_does_not_stop_is_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(sys.argv[1] + '/on', 'w')\ntime.sleep(60)"
    (tmp_path / "stubborn.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    process = await Trainer("stubborn", grace_seconds=0.2).start(folder)
    async with asyncio.timeout(30):
        while not (folder / "on").exists():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    process.stop()
    assert await process.ended()
    assert process.returncode == -9


async def test_what_it_writes_beside_is_in_a_log(folder: Path) -> None:
    process = await Trainer("no.such.module").start(folder)
    assert await process.ended()
    assert process.returncode != 0
    assert "No module named" in tail_of_log(folder)


def test_lines_are_heard_once_whole_and_after_a_time(tmp_path: Path) -> None:
    file = tmp_path / EVENTS
    heard = Heard(tmp_path, 10.0)
    assert list(heard.new()) == []
    lines = [to_line(Warned("before"), 9.0), json.dumps({"event": "unknown", "at": 11}), to_line(Warned("one"), 11.0)]
    file.write_text("\n".join(lines) + "\n" + to_line(Checkpointed(2, "c"), 12.0)[:9])
    assert list(heard.new()) == [(Warned("one"), 11.0)]
    assert list(heard.new()) == []
    with file.open("a") as more:
        more.write(to_line(Checkpointed(2, "c"), 12.0)[9:] + "\n")
    assert list(heard.new()) == [(Checkpointed(2, "c"), 12.0)]
    assert heard.until == 12.0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
