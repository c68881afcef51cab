"""The engine's worker seen from outside: start it, send requests, listen to events, survive its end. No torch here.

What was being made when the worker ended fails with words; what was still waiting goes to the next worker, which is
started at once. A worker that keeps dying without having made anything is given up.
"""

from __future__ import annotations

import itertools
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Self

from kleinbild.core.errors import CancelledError, KleinbildError, WorkerError, error_of
from kleinbild.core.messages import Cancel, Done, Event, Failed, Queued, Ready, Submit, Terms, ToWorker
from kleinbild.core.offload import Offload
from kleinbild.core.requests import PictureRequest

MAX_STARTS = 3  # of workers in a row that end without having made a picture
Listener = Callable[[Event], None]
START_SECONDS = 600.0  # loading 16 GB from a slow disk takes minutes


@dataclass(slots=True, eq=False)
class Stream:
    """The events of one request, in order; ends after Done or Failed. Iterate, or ask for the `result`.

    With a `listener`, that is called for each event instead, from the thread that reads what the worker says.
    """

    submit: Submit
    _engine: RemoteEngine
    _events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    started: bool = False  # a worker has begun to make it
    cancelled: bool = False
    last: Done | Failed | None = None
    listener: Listener | None = None

    @property
    def id(self) -> str:
        return self.submit.id

    def __iter__(self) -> Iterator[Event]:
        while self.last is None:
            yield self.next()

    def next(self, timeout_s: float | None = None) -> Event:
        """The next event. Raises TimeoutError if none comes within `timeout_s` seconds."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty as error:
            raise TimeoutError(f"no event within {timeout_s:g} s") from error
        if isinstance(event, Done | Failed):
            self.last = event
        return event

    def result(self, timeout_s: float | None = None) -> Done:
        """The picture, when it is done. Raises what went wrong as an error of ours, TimeoutError after `timeout_s`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self.last is None:
            self.next(None if until is None else max(until - time.monotonic(), 0.0))
        if isinstance(self.last, Failed):
            raise error_of(self.last.kind, self.last.message, self.last.hint)
        return self.last

    def cancel(self) -> None:
        """Frees what the request holds within a step; its last event is then Failed, unless it was done before."""
        self.cancelled = True
        self._engine.send(Cancel(self.id))

    def put(self, event: Event) -> None:
        self.started = self.started or not isinstance(event, Queued)
        if self.listener is None:
            self._events.put(event)
        else:
            self.listener(event)


class RemoteEngine:
    """A model in a process of its own. From any thread: `submit`, then listen to the stream.

    `device`, `dtype`, `offload` and `compile` are `Engine`'s; the worker writes its notes to its log (stderr). `nice` makes
    its process give way to others, to the one that speaks with it for a start.
    `close` (or leaving the `with` block) ends the worker; what was under way fails.
    """

    def __init__(
        self,
        model: str = "nano",
        *,
        device: str | None = None,
        dtype: str | None = None,
        offload: Offload | None = None,
        compile: bool = False,  # noqa: A002 - as torch calls it
        memory_bytes: int | None = None,
        nice: int = 0,
    ) -> None:
        options = {"--device": device, "--dtype": dtype, "--offload": offload, "--memory-bytes": memory_bytes}
        if nice:
            options["--nice"] = nice
        given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        flags = ["--compile"] if compile else []
        self._command = [sys.executable, "-m", "kleinbild.engine.worker", model, *given, *flags]
        self._ids = itertools.count()
        self._lock = threading.RLock()
        self._streams: dict[str, Stream] = {}
        self._ready = threading.Event()
        self._refused: KleinbildError | None = None
        self._fruitless = 0
        self._closed = False
        self.ready_message: Ready | None = None
        self.num_starts = 0
        self._outbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The worker's process id; another one after a restart."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_SECONDS) -> Ready:
        """What the worker says once its model is loaded. Raises what kept it from loading, TimeoutError if it is slow."""
        if not self._ready.wait(timeout_s):
            raise TimeoutError(f"the engine's worker was not ready within {timeout_s:g} s")
        if self._refused is not None:
            raise self._refused
        assert self.ready_message is not None
        return self.ready_message

    @property
    def refused(self) -> KleinbildError | None:
        """Why no more pictures are made: the model cannot be loaded, or workers keep ending. None while all is well."""
        return self._refused

    def submit(
        self,
        request: PictureRequest,
        terms: Terms = Terms(),  # noqa: B008 - frozen
        listener: Listener | None = None,
    ) -> Stream:
        """Asks for a picture. Errors, wrong requests among them, come through the stream."""
        stream = Stream(Submit(str(next(self._ids)), request, terms), self, listener=listener)
        with self._lock:
            if self._refused is not None:
                stream.put(Failed.of(stream.id, self._refused))
                return stream
            if self._closed:
                stream.put(Failed.of(stream.id, WorkerError("the engine was closed")))
                return stream
            self._streams[stream.id] = stream
            self.send(stream.submit)
        return stream

    def send(self, message: ToWorker) -> None:
        """Never blocks; if the worker has just ended, the listening thread sees to what was submitted."""
        with self._lock:
            self._outbox.put(message)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            process = self._process
            self._outbox.put(None)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._fail_all(WorkerError("the engine was closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self.num_starts += 1
        self._outbox = queue.SimpleQueue()
        threading.Thread(target=_write, args=(process, self._outbox), daemon=True).start()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for message in _messages(process.stdout):
            if isinstance(message, Ready):
                self.ready_message = message
                self._ready.set()
            elif isinstance(message, Failed) and not message.id:  # the model cannot be loaded: no use in trying again
                self._refuse(error_of(message.kind, message.message, message.hint))
            else:
                self._pass_on(message)
            del message  # and the picture in it
        self._ended(process)

    def _pass_on(self, event: Event) -> None:
        with self._lock:
            last = isinstance(event, Done | Failed)
            stream = self._streams.pop(event.id, None) if last else self._streams.get(event.id)
            if isinstance(event, Done):
                self._fruitless = 0
        if stream is not None:
            stream.put(event)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            if self._closed or self._refused is not None:
                return
            self._fruitless += 1
            why = f"the engine's process ended ({_how(code)})"
            for stream in [stream for stream in self._streams.values() if stream.started]:
                del self._streams[stream.id]
                stream.put(
                    Failed.of(stream.id, WorkerError(f"{why} while the picture was being made", "ask for it again"))
                )
            if self._fruitless >= MAX_STARTS:
                self._refuse(WorkerError(f"{why} {MAX_STARTS} times in a row", "see what it wrote to its log"))
                return
            self._outbox.put(None)
            self._process = self._start()
            for stream in list(self._streams.values()):  # in the order in which they came
                if stream.cancelled:
                    del self._streams[stream.id]
                    stream.put(Failed.of(stream.id, CancelledError("the request was cancelled")))
                else:
                    self.send(stream.submit)

    def _refuse(self, error: KleinbildError) -> None:
        with self._lock:
            self._refused = error
            self._ready.set()
            self._fail_all(error)

    def _fail_all(self, error: KleinbildError) -> None:
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream.put(Failed.of(stream.id, error))


def _write(process: subprocess.Popen[bytes], outbox: queue.SimpleQueue[ToWorker | None]) -> None:
    """Sends what is in the outbox until None; in a thread, because a worker that computes may be slow to read."""
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:  # closing it is the worker's sign to end
        while (message := outbox.get()) is not None:
            pickle.dump(message, pipe)
            pipe.flush()
            del message  # and the pictures in it, which would stay for as long as nothing else is sent


def _messages(stream: IO[bytes]) -> Iterator[Ready | Event]:
    """What the worker says, until it ends, were it in the middle of a message."""
    with suppress(EOFError, OSError, pickle.UnpicklingError), stream:
        while True:
            yield pickle.load(stream)  # noqa: S301 - from the process that we started, over a pipe of its own


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
