"""The engine in a process of its own: real processes, real kills."""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kleinbild
from kleinbild.core.errors import (
    CancelledError,
    CapacityError,
    PromptError,
    RequestError,
    UnknownModelError,
    WorkerError,
)
from kleinbild.core.messages import Done, Encoding, Stepped, Submit, Terms, ToWorker
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size
from kleinbild.engine import cost
from kleinbild.engine.picture import read_record
from kleinbild.engine.remote import MAX_STARTS, RemoteEngine, Stream
from kleinbild.engine.runtime import Engine
from kleinbild.engine.worker import Worker
from kleinbild.model.packing import Segment
from kleinbild.nano.specs import NANO

PATIENCE = 60.0
LONG = PictureRequest("a fox on red", seed=1, steps=200)
SHORT = PictureRequest("a cat on mint", seed=2)


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteEngine]:
    """One for all tests that neither kill it nor ask for another."""
    with RemoteEngine("nano") as engine:
        yield engine


def until(stream: Stream, kind: type) -> None:
    """Waits for an event of `kind`."""
    while not isinstance(stream.next(PATIENCE), kind):
        pass


def is_held_as(file: bytes, other: bytes) -> bool:
    """Whether no more holds `file` than `other`, now or within a few seconds."""
    deadline = time.monotonic() + 5.0
    while sys.getrefcount(file) > sys.getrefcount(other) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sys.getrefcount(file) == sys.getrefcount(other)


def test_a_picture_comes_with_its_story(remote: RemoteEngine) -> None:
    ready = remote.wait_ready(PATIENCE)
    stream = remote.submit(SHORT, Terms(preview_every=1))
    *before, done = list(stream)
    assert [type(event).__name__ for event in before] == ["Queued", "Encoding", *["Stepped"] * 4, "Decoding"]
    assert isinstance(done, Done)
    assert sum(isinstance(event, Stepped) and event.preview is not None for event in before) == 3
    assert next(iter(done.timings)) == "queue"
    assert done.fingerprint == ready.fingerprint
    assert (done.kernels, done.seed) == (ready.kernels, 2)
    assert ready.offload == "none"
    assert (done.peak_bytes or 0) > 10_000_000
    here = kleinbild.generate("a cat on mint", seed=2)
    assert done.file == here.to_bytes("png")
    assert read_record(done.file) == here.record


def test_the_files_of_what_is_done_are_held_no_longer(remote: RemoteEngine) -> None:
    """Nothing comes after them that would take their place: with 20 MB in each, that is what a quiet server would keep."""
    reference, fresh = kleinbild.generate("a cat on mint", seed=2).to_bytes("png"), os.urandom(8)
    made = remote.submit(PictureRequest("make the background blue", references=(reference,))).result(PATIENCE).file
    assert is_held_as(reference, fresh)
    assert is_held_as(made, fresh)


def test_a_worker_that_waits_holds_no_files() -> None:
    inbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
    worker = Worker(Engine("nano"), io.BytesIO(), None)
    serving = threading.Thread(target=worker.serve, args=(inbox,))
    serving.start()
    try:
        reference, fresh = os.urandom(8), os.urandom(8)
        inbox.put(Submit("0", PictureRequest("a cat on red", references=(reference,))))
        assert is_held_as(reference, fresh)
    finally:
        inbox.put(None)
        serving.join()


def test_errors_cross_the_border_as_themselves(remote: RemoteEngine) -> None:
    with pytest.raises(PromptError, match="spaceship") as caught:
        remote.submit(PictureRequest("a spaceship on red")).result(PATIENCE)
    assert caught.value.hint
    with pytest.raises(RequestError):
        remote.submit(PictureRequest("a cat on red", references=(b"no picture",))).result(PATIENCE)
    assert remote.submit(SHORT).result(PATIENCE).seed == 2


def test_a_worker_compiles_as_told_and_its_log_says_what_it_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    with RemoteEngine("nano", offload="blocks", compile=True) as remote:
        assert not remote.wait_ready(PATIENCE).kernels.endswith("compiled")
        remote.submit(SHORT).result(PATIENCE)
    assert "kleinbild: nothing is compiled: offloaded weights" in capfd.readouterr().err


def test_a_worker_offloads_as_told() -> None:
    with RemoteEngine("nano", offload="blocks") as remote:
        assert remote.wait_ready(PATIENCE).offload == "blocks"
        assert remote.submit(SHORT).result(PATIENCE).file == kleinbild.generate("a cat on mint", seed=2).to_bytes("png")


def test_what_cannot_fit_is_refused() -> None:
    with RemoteEngine("nano", memory_bytes=1_000_000) as remote, pytest.raises(CapacityError):
        remote.submit(SHORT).result(PATIENCE)


def test_cancelling(remote: RemoteEngine) -> None:
    stream, waits = remote.submit(LONG), remote.submit(SHORT)
    until(stream, Stepped)
    stream.cancel()
    with pytest.raises(CancelledError):
        stream.result(PATIENCE)
    assert waits.result(PATIENCE).seed == 2


def test_a_kill_fails_what_ran_and_keeps_what_waited() -> None:
    """With room for one at a time: the first runs, the second waits. SIGKILL, in the middle of a step."""
    one = cost.need(NANO, Segment(NANO.text_encoder.max_tokens, (8, 8)), 1, Size(128, 128), cost.FLOAT32)
    with RemoteEngine("nano", memory_bytes=one.peak) as remote:
        runs, waits = remote.submit(LONG), remote.submit(SHORT)
        until(runs, Stepped)
        before = remote.pid
        os.kill(before, signal.SIGKILL)
        with pytest.raises(WorkerError, match="signal 9") as caught:
            runs.result(PATIENCE)
        assert caught.value.hint
        assert waits.result(PATIENCE).seed == 2
        assert remote.pid != before
        assert remote.num_starts == 2


def test_a_kill_while_loading_loses_nothing() -> None:
    with RemoteEngine("nano") as remote:
        stream = remote.submit(SHORT)
        os.kill(remote.pid, signal.SIGKILL)
        assert stream.result(PATIENCE).seed == 2


def test_a_worker_that_keeps_dying_is_given_up() -> None:
    with RemoteEngine("nano") as remote:
        stream = remote.submit(SHORT)
        killed = 0
        for _ in range(MAX_STARTS):
            while remote.pid == killed:
                time.sleep(0.01)
            killed = remote.pid
            os.kill(killed, signal.SIGKILL)
        with pytest.raises(WorkerError, match="3 times in a row"):
            stream.result(PATIENCE)
        with pytest.raises(WorkerError):
            remote.submit(SHORT).result(PATIENCE)


def test_a_model_that_is_not_there_is_told_and_not_tried_again() -> None:
    with RemoteEngine("nanu") as remote:
        with pytest.raises(UnknownModelError, match="nanu"):
            remote.wait_ready(PATIENCE)
        with pytest.raises(UnknownModelError):
            remote.submit(SHORT).result(PATIENCE)
        assert remote.num_starts == 1


def test_closing_ends_everything() -> None:
    remote = RemoteEngine("nano")
    stream = remote.submit(LONG)
    until(stream, Encoding)
    pid = remote.pid
    remote.close()
    with pytest.raises(WorkerError, match="closed"):
        stream.result(PATIENCE)
    with pytest.raises(WorkerError, match="closed"):
        remote.submit(SHORT).result(PATIENCE)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_no_worker_outlives_who_started_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from kleinbild.core.requests import PictureRequest\n"
        "from kleinbild.engine.remote import RemoteEngine\n"
        "remote = RemoteEngine('nano')\n"
        "remote.wait_ready(60)\n"
        "remote.submit(PictureRequest('a fox on red', steps=200))\n"
        "print(remote.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    pid = int(out.stdout)
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker lives on")


def test_talking_to_a_worker_needs_no_torch() -> None:
    code = "import sys, kleinbild.engine.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
