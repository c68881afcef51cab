"""The Python face: `kleinbild.generate` and `kleinbild.edit`.

Arguments are read and checked before a model is loaded. Loaded engines are kept, so that the second picture is fast.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from kleinbild.core.adapters import AdapterUse
from kleinbild.core.errors import RequestError, SizeError
from kleinbild.core.offload import Offload
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size, parse_aspect, parse_size
from kleinbild.engine.files import read_file
from kleinbild.engine.picture import Picture, png_file, read_record
from kleinbild.engine.prepare import check

if TYPE_CHECKING:
    from kleinbild.engine.runtime import Engine

Reference = str | os.PathLike[str] | bytes | Image.Image | Picture
"""A picture to start from: a file's path or its bytes, a Pillow image, or a picture made here."""

Adapter = str | tuple[str, float] | AdapterUse
"""An adapter by its name or its file's path, alone or with a strength."""

KEPT_ENGINES = 2
_engines: OrderedDict[tuple[str, str | None, str | None, Offload | None], Engine] = OrderedDict()
_engines_lock = threading.Lock()


def generate(
    prompt: str,
    *,
    model: str = "nano",
    size: str | tuple[int, int] | Size | None = None,
    aspect: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    adapters: Adapter | Sequence[Adapter] = (),
    device: str | None = None,
    dtype: str | None = None,
    offload: Offload | None = None,
) -> Picture:
    """A picture of `prompt`. `size` is "128x96" or (128, 96), `aspect` "3:2" at the model's own area.

    What is left out follows from the model; without a seed one is drawn, and the picture tells it. Raises
    `KleinbildError` in one of its kinds, with `message` and `hint`. `adapters`: names, or ("name", strength); without a
    strength the one that its card recommends. `device`, `dtype` and `offload` are `Engine`'s.
    """
    request = PictureRequest(
        prompt, model, _size(size), _aspect(aspect), seed, steps, guidance, adapters=_adapters(adapters)
    )
    return _make(request, device, dtype, offload)


def edit(
    prompt: str,
    images: Reference | Sequence[Reference],
    *,
    model: str = "nano",
    size: str | tuple[int, int] | Size | None = None,
    aspect: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    mask: Reference | None = None,
    canvas: str | tuple[int, int] | Size | None = None,
    place: tuple[int, int] | None = None,
    cache_references: bool = False,
    adapters: Adapter | Sequence[Adapter] = (),
    device: str | None = None,
    dtype: str | None = None,
    offload: Offload | None = None,
) -> Picture:
    """A picture of `prompt` that starts from one or several `images`; the prompt counts them "image 1", "image 2", ….

    Without a size it gets the first image's, whatever that is. The rest is as for `generate`.

    With a `mask`, of the first image's size, only its transparent pixels are made anew; opaque ones stay what they are,
    to the bit. A `canvas` is a larger size: the first image goes to `place` on it (left, top; default the middle), and
    what is around it is made.

    `cache_references` saves time with large or several images: after the first step they are not computed again. That is
    an approximation on models not trained for it.
    """
    names, files = _files(images)
    mask_name, mask_file = ("", None) if mask is None else _read(mask)
    request = PictureRequest(
        prompt,
        model,
        _size(size),
        _aspect(aspect),
        seed,
        steps,
        guidance,
        files,
        names,
        mask_file,
        mask_name,
        _size(canvas),
        _place(place),
        cache_references,
        adapters=_adapters(adapters),
    )
    return _make(request, device, dtype, offload)


def replay(
    picture: str | os.PathLike[str] | bytes,
    images: Reference | Sequence[Reference] = (),
    *,
    mask: Reference | None = None,
    model: str | None = None,
) -> Picture:
    """The picture inside the file `picture` once more, to the pixel; `images` and `mask` are the very files used then.

    `model` says where the weights are, if they are not those of a known name.
    """
    record = read_record(picture)
    _, files = _files(images)
    mask_file = None if mask is None else _read(mask)[1]
    return engine(model or record.model, record.device, record.dtype).replay(record, files, mask_file)


def engine(
    model: str, device: str | None = None, dtype: str | None = None, offload: Offload | None = None
) -> Engine:  # fmt: skip
    """The engine that `generate` and `edit` use: loaded at the first call, the last two are kept."""
    from kleinbild.engine.runtime import Engine  # torch: only now, when every argument has been read

    key = (model, device, dtype, offload)
    with _engines_lock:
        if key not in _engines:
            _engines[key] = Engine(model, device=device, dtype=dtype, offload=offload)
            while len(_engines) > KEPT_ENGINES:
                _engines.popitem(last=False)
        _engines.move_to_end(key)
        return _engines[key]


def _make(request: PictureRequest, device: str | None, dtype: str | None, offload: Offload | None) -> Picture:
    if (request.model, device, dtype, offload) not in _engines:
        check(request)  # what is wrong is told now, not after seconds of loading
    return engine(request.model, device, dtype, offload).generate(request)


def _size(size: str | tuple[int, int] | Size | None) -> Size | None:
    if size is None or isinstance(size, Size):
        return size
    if isinstance(size, str):
        return parse_size(size)
    sides: tuple[object, ...] = tuple(size)
    if [type(side) for side in sides] != [int, int]:
        raise SizeError(f"{size!r} is not a size", "give (width, height) in pixels, for example (128, 96)")
    return Size(*size)


def _place(place: tuple[int, int] | None) -> tuple[int, int] | None:
    if place is None:
        return None
    sides: tuple[object, ...] = tuple(place)
    if [type(side) for side in sides] != [int, int]:
        raise RequestError(f"{place!r} is not a place", "give (left, top) in pixels, for example (32, 0)")
    return place


def _adapters(adapters: Adapter | Sequence[Adapter]) -> tuple[AdapterUse, ...]:
    if isinstance(adapters, str | AdapterUse) or (
        isinstance(adapters, tuple) and len(adapters) == 2 and isinstance(adapters[1], int | float)
    ):
        adapters = [adapters]
    return tuple(_adapter(each) for each in adapters)


def _adapter(adapter: Adapter) -> AdapterUse:
    if isinstance(adapter, AdapterUse):
        return adapter
    return AdapterUse(adapter) if isinstance(adapter, str) else AdapterUse(*adapter)


def _aspect(aspect: str | None) -> float | None:
    return None if aspect is None else parse_aspect(aspect)


def _files(images: Reference | Sequence[Reference]) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """The names and the bytes of one or several pictures."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image | Picture):
        images = [images]
    read = [_read(image) for image in images]
    return tuple(name for name, _ in read), tuple(file for _, file in read)


def _read(image: Reference) -> tuple[str, bytes]:
    """The file name, if there is one, and the bytes of an encoded picture."""
    if isinstance(image, bytes):
        return "", image
    if isinstance(image, Picture):
        return "", image.to_bytes("png")
    if isinstance(image, Image.Image):
        return "", png_file(image)
    return Path(image).name, read_file(image)
