"""The engine as a process of its own: `python -m kleinbild.engine.worker nano`.

It reads `core.messages` from its standard input and writes them to its standard output, and ends when its input ends,
so that it never outlives who started it. Three threads: one reads, the main one computes, one encodes files while the
next picture is being made. `engine.remote` is the other side.
"""

from __future__ import annotations

import argparse
import os
import pickle
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from kleinbild.core.messages import Cancel, Done, Event, Failed, FromWorker, Ready, ToWorker
from kleinbild.core.offload import OFFLOADS
from kleinbild.engine import machine
from kleinbild.engine.batcher import Batcher, Job
from kleinbild.engine.picture import Picture
from kleinbild.engine.runtime import Engine, kernels


class Worker:
    """One model, served from `inbox` until it ends. `send` is called from several threads."""

    def __init__(self, engine: Engine, outbox: IO[bytes], memory_bytes: int | None) -> None:
        self.engine = engine
        self.kernels = kernels(engine.device) + (" compiled" if engine.compiled and engine.compiled.possible else "")
        self.batcher = Batcher(
            engine.model, memory_bytes=memory_bytes, adapters=engine.adapters, compiled=engine.compiled
        )
        self.num_logged = 0
        self.jobs: dict[str, Job] = {}
        self._outbox, self._writing = outbox, threading.Lock()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def serve(self, inbox: queue.SimpleQueue[ToWorker | None]) -> None:
        """Until None arrives: whoever started this process has gone."""
        engine, model = self.engine, self.engine.model
        self.send(
            Ready(
                model=engine.name,
                fingerprint=model.fingerprint,
                device=model.device.type,
                dtype=model.precision,
                kernels=self.kernels,
                load_seconds=engine.load_seconds,
                offload=engine.offload,
            )
        )
        while True:
            self.log()
            try:
                message = inbox.get(block=not self.batcher.busy)
            except queue.Empty:
                self.batcher.tick()
                continue
            if message is None:
                return
            self.take(message)
            del message  # and the pictures in it, which would stay until the next one

    def log(self) -> None:
        """What came out otherwise than asked for, as it comes to be known."""
        notes = self.engine.notes
        for note in notes[self.num_logged :]:
            sys.stderr.write(f"kleinbild: {note}\n")
        self.num_logged = len(notes)

    def take(self, message: ToWorker) -> None:
        if isinstance(message, Cancel):
            if job := self.jobs.get(message.id):
                job.cancel()
            return
        try:
            job = self.batcher.job(message.id, message.request, message.terms, self)
        except Exception as error:  # noqa: BLE001 - told to the caller, in words or as a bug
            self.send(Failed.of(message.id, error))
        else:
            self.jobs[message.id] = job
            self.batcher.submit(job)

    def event(self, event: Event) -> None:
        self.send(event)

    def picture(self, job: Job, picture: Picture) -> None:
        del self.jobs[job.id]
        self._encoder.submit(self._deliver, job, picture)

    def error(self, job: Job, error: Exception) -> None:
        del self.jobs[job.id]
        self.send(Failed.of(job.id, error))

    def _deliver(self, job: Job, picture: Picture) -> None:
        try:
            timings = {"queue": job.admitted - job.arrived, **picture.timings}
            self.send(
                Done(
                    id=job.id,
                    file=picture.to_bytes(job.terms.format, job.terms.quality),
                    seed=picture.seed,
                    timings=timings,
                    peak_bytes=machine.peak_memory(),
                    fingerprint=picture.record.fingerprint,
                    kernels=self.kernels,
                    notes=picture.notes,
                    tokens=picture.tokens,
                    revised_prompt=picture.record.revised_prompt,
                )
            )
        except Exception as error:  # noqa: BLE001 - nobody waits for this thread, so it must be told
            self.send(Failed.of(job.id, error))

    def send(self, message: FromWorker) -> None:
        with self._writing:
            try:
                # Between a process and the one that it started, over pipes that nobody else has: pickle is safe here.
                pickle.dump(message, self._outbox)
                self._outbox.flush()
            except BrokenPipeError:  # whoever started this has gone; the end of the input says so, too
                os._exit(0)


def read(stream: IO[bytes], inbox: queue.SimpleQueue[ToWorker | None]) -> None:
    """Passes messages on until the input ends."""
    try:
        while True:
            inbox.put(pickle.load(stream))  # noqa: S301 - see Worker.send
    except (EOFError, OSError, pickle.UnpicklingError):
        inbox.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--offload", choices=OFFLOADS)
    parser.add_argument(
        "--compile", action="store_true", help="compile what gets faster by it; the first pictures wait"
    )
    parser.add_argument("--memory-bytes", type=int, help="what all requests may hold together beside the weights")
    parser.add_argument("--nice", type=int, default=0, help="how much this process gives way to others, 0 to 19")
    arguments = parser.parse_args()
    os.nice(arguments.nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started this decides
    inbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
    threading.Thread(target=read, args=(sys.stdin.buffer, inbox), daemon=True).start()
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get between the messages
    try:
        engine = Engine(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            offload=arguments.offload,
            compile=arguments.compile,
        )
    except Exception as error:  # noqa: BLE001 - told to whoever started this process
        pickle.dump(Failed.of("", error), messages)
        messages.flush()
        return
    Worker(engine, messages, arguments.memory_bytes or engine.room()).serve(inbox)


if __name__ == "__main__":
    main()
