"""What `generate` and `edit` share: the request's pictures made one after the other, written, and reported.

1 the place is checked, 2 who makes it found: a running server, else this process, where the request is checked and the
model loaded, 3 each picture made, 4 written, 5 told: its path on stdout, the rest on stderr.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleinbild.cli.outputs import plan
from kleinbild.cli.served import find_server, with_size
from kleinbild.cli.show import show
from kleinbild.cli.terminal import Steps, progress, result, result_json, say
from kleinbild.cli.wishes import Wishes
from kleinbild.core.errors import OutputError
from kleinbild.core.metadata import Record
from kleinbild.core.requests import MAX_SEED, PictureRequest
from kleinbild.engine.picture import Picture

if TYPE_CHECKING:
    from kleinbild.engine.runtime import Engine


def make(request: PictureRequest, wishes: Wishes, record: Record | None = None) -> list[Picture]:
    """Makes, writes and reports the pictures; with `record`, the very picture that it was taken from."""
    destination = plan(wishes)
    if destination.to_stdout and (wishes.as_json or wishes.show):
        raise OutputError(
            "with -o - stdout is the picture itself", "leave --json and --show out, or name a file with -o"
        )
    server = find_server(request, wishes, record)
    if server is None:
        check(request)
    else:
        request = with_size(request)
    pictures, paths = [], []
    stage = f"loading {request.model}" if server is None else "asking the server"
    with server.client if server else nullcontext(), progress(stage) as bar:
        make_one = server.make if server else maker_here(request.model, record, wishes)
        for number in range(1, wishes.count + 1):
            bar.stage(f"picture {number} of {wishes.count}" if wishes.count > 1 else "picture")
            picture = make_one(request, bar)
            request = next_request(picture, request)
            path = destination.write(picture, number)
            report(picture, path, wishes)
            pictures.append(picture)
            paths.append(path)
    if wishes.as_json:
        rows = [as_json(*pair) for pair in zip(pictures, paths, strict=True)]
        result_json(rows if wishes.count > 1 else rows[0])
    return pictures


def load(model: str, record: Record | None, wishes: Wishes) -> Engine:
    begun = time.perf_counter()
    from kleinbild.engine.runtime import Engine  # torch: the larger part of the time for small models

    then = (record.device, record.dtype) if record else (None, None)
    engine = Engine(model, device=then[0], dtype=wishes.dtype or then[1], offload=wishes.offload)
    how = engine.dtype if engine.offload == "none" else f"{engine.dtype}, offload {engine.offload}"
    say(f"{engine.model.name} on {engine.device}, {how}, loaded in {time.perf_counter() - begun:.1f} s", "dim")
    for note in engine.notes:
        say(note)
    return engine


def check(request: PictureRequest) -> None:
    """Raises what is wrong, before the model is loaded."""
    from kleinbild.engine.prepare import check  # numpy: not where a server makes it

    check(request)


def maker_here(model: str, record: Record | None, wishes: Wishes) -> Callable[[PictureRequest, Steps], Picture]:
    """What makes pictures in this process: the engine, once loaded."""
    engine = load(model, record, wishes)

    def make_one(request: PictureRequest, bar: Steps) -> Picture:
        if record is not None:
            return engine.replay(record, request.references, request.mask, on_step=bar.step)
        return engine.generate(request, on_step=bar.step)

    return make_one


def next_request(made: Picture, request: PictureRequest) -> PictureRequest:
    """The request for the picture after `made`: the next seed, which the engine may have drawn."""
    return replace(request, seed=made.seed + 1 if made.seed < MAX_SEED else 0)


def report(picture: Picture, path: Path | None, wishes: Wishes) -> None:
    record = picture.record
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in picture.timings.items() if seconds >= 0.005)
    steps = f"{record.steps} step{'s' if record.steps > 1 else ''}"
    for note in picture.notes:
        say(note)
    say(f"seed {picture.seed} · {record.size} · {steps} · {sum(picture.timings.values()):.2f} s ({stages})")
    if path is None:
        return
    if not wishes.as_json:
        result(str(path))
    if wishes.show:
        show(picture, path)


def as_json(picture: Picture, path: Path | None) -> dict[str, Any]:
    """The picture as --json tells it; `record` is what stands inside the file."""
    record = picture.record
    return {
        "path": str(path),
        "seed": picture.seed,
        "model": record.model,
        "size": str(record.size),
        "steps": record.steps,
        "notes": list(picture.notes),
        "timings": {name: round(seconds, 4) for name, seconds in picture.timings.items()},
        "record": json.loads(record.to_json()),
    }
