"""Pictures from a running server: finding it, whether the request is for it, and asking it. No torch is imported.

A server is used if `--server` or $KLEINBILD_BASE_URL names it, or if `kleinbild serve` runs on this machine. Which one
it is, and why it is not used where there is one, is said on stderr.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kleinbild.cli.terminal import Steps, say
from kleinbild.cli.wishes import Wishes
from kleinbild.client import running
from kleinbild.client.settings import DEFAULT_TIMEOUT, URL_VARIABLE
from kleinbild.core.adapters import is_path
from kleinbild.core.errors import KleinbildError, MissingWeightsError, NetworkError, RequestError
from kleinbild.core.metadata import Record
from kleinbild.core.requests import PictureRequest
from kleinbild.engine.picture import Picture

if TYPE_CHECKING:
    from kleinbild.client.asking import PictureOptions
    from kleinbild.client.events import Event
    from kleinbild.client.picture import RemotePicture
    from kleinbild.client.sync import Client

MULTIPLE = 16  # of the sides that the family makes
LOOK_S = 1.0
"""What a server that nobody named may take to say which models it has."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that takes the request, whatever seed it has."""

    client: Client

    def make(self, request: PictureRequest, bar: Steps) -> Picture:
        """The picture, as an engine here would give it. It comes as PNG, which loses nothing, whatever it is saved as."""
        made: tuple[RemotePicture, ...] = ()
        with closing(self.client.stream(request.prompt, **as_options(request))) as events:
            for event in events:
                show_progress(event, bar)
                made = getattr(event, "pictures", ())
        return made[0].to_picture()


def find_server(request: PictureRequest, wishes: Wishes, record: Record | None) -> Server | None:
    """The server that makes `request`, or None: then this process does. Raises what is wrong with a server that was named."""
    if wishes.local and wishes.server:
        raise RequestError("--local and --server were both given", "give one of them")
    named = wishes.server or os.environ.get(URL_VARIABLE)
    found = None if wishes.local or named else running.find()
    url = named or (found.url if found else None)
    if wishes.local or url is None:
        return None
    why_not = only_here(request, wishes, record) or not_at(url, request.model, named=bool(named))
    if why_not is None:
        say(f"the server at {url} makes it; with --local it is made here", "dim")
        return Server(connect(url))
    if wishes.server:
        raise RequestError(f"the server at {url} cannot make this: {why_not}", "change that, or leave --server out")
    say(f"made here, not by the server at {url}: {why_not}")
    return None


def only_here(request: PictureRequest, wishes: Wishes, record: Record | None) -> str | None:
    """What in the command line no server takes."""
    if record is not None:
        return "an exact replay needs the weights at hand"
    chosen = {
        "--dtype": wishes.dtype,
        "--offload": wishes.offload,
        "--canvas": request.canvas,
        "--place": request.place,
        "an adapter's file": next((each for each in request.adapters if is_path(each.name)), None),
    }
    said = [name for name, value in chosen.items() if value is not None]
    return f"{' and '.join(said)} cannot be sent" if said else None


def not_at(url: str, model: str, *, named: bool) -> str | None:
    """Why the server does not make pictures with `model`. Raises that if it cannot be asked although it was `named`."""
    try:
        with connect(url, *((DEFAULT_TIMEOUT, 1) if named else (LOOK_S, 0))) as client:
            known = [one.id for one in client.models()]
    except NetworkError as error:
        if named:
            raise NetworkError(error.message, "start it, or make the picture here with --local") from error
        return "it does not answer"
    except (KleinbildError, ModuleNotFoundError) as error:
        if named:
            raise
        return getattr(error, "message", str(error))
    return None if model.lower() in map(str.lower, known) else f"it has {', '.join(known) or 'no model'}, not {model}"


def connect(url: str, timeout: float = DEFAULT_TIMEOUT, max_retries: int = 2) -> Client:
    from kleinbild.client.sync import Client  # the HTTP library: only now, when there is a server

    return Client(url, timeout=timeout, max_retries=max_retries)


def as_options(request: PictureRequest) -> PictureOptions:
    """`request` in the client's terms."""
    from kleinbild.client.asking import NamedFile

    names = request.reference_names or ("",) * len(request.references)
    return {
        "model": request.model,
        "images": [NamedFile(*pair) for pair in zip(names, request.references, strict=True)],
        "mask": None if request.mask is None else NamedFile(request.mask_name, request.mask),
        "size": request.size,
        "seed": request.seed,
        "steps": request.steps,
        "guidance": request.guidance,
        "cache_references": request.cache_references or None,
        "adapters": request.adapters,
        "output_format": "png",
        "strict": True,  # as here: what the model cannot do is an error
    }


def with_size(request: PictureRequest) -> PictureRequest:
    """`request` with a size that a server takes: an aspect or an odd size comes to what it comes to here, and that is said.

    For that the model's settings are needed. Where they are not here, the server sees to a size; an aspect is an error.
    """
    size = request.size
    if request.aspect is None and (size is None or not (size.width % MULTIPLE or size.height % MULTIPLE)):
        return request
    from kleinbild.engine.prepare import check  # numpy

    try:
        inputs = check(request).inputs
    except MissingWeightsError as error:
        if request.aspect is None:
            return request
        raise RequestError(
            f"what --aspect comes to depends on {request.model}, which is not here", "give --size"
        ) from error
    for note in inputs.notes:
        say(note)
    found = inputs.frame.size
    is_first_ones = found == size and inputs.frame.made != found  # then it is not asked for, and the picture has it
    return replace(request, size=None if is_first_ones else found, aspect=None)


def show_progress(event: Event, bar: Steps) -> None:
    from kleinbild.client.events import Queued, Started, Step

    if isinstance(event, Queued) and event.position:
        bar.stage(f"waiting behind {event.position}")
    elif isinstance(event, Started):
        bar.stage("picture")
    elif isinstance(event, Step):
        bar.step(event.step, event.num_steps)
