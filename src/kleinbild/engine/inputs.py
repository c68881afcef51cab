"""The pictures of a request: what the model reads of them, and the frame of what it makes.

A picture made from another has its size, whatever that is (`framing`), and so has one with a mask or on a canvas
(`masks`). Where a size was asked for, that is made, and references are fitted as diffusers does it (`references`).
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from kleinbild.core.errors import RequestError, SizeError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size, SizeRange, check_aspect, size_for_aspect
from kleinbild.engine.framing import Frame, frame_for
from kleinbild.engine.masks import Masked, masked, on_canvas, place_on
from kleinbild.engine.references import fit, open_picture, prepare_reference


@dataclass(frozen=True, slots=True)
class Inputs:
    """`references` as the model takes them. `masked` is, with a mask or canvas, the first one before that.

    `frame` says what the model makes and what of it is the picture, `place` where on the canvas the first reference is,
    `notes` what the person who asked should know.
    """

    references: tuple[Image.Image, ...]
    frame: Frame
    masked: Masked | None = None
    place: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def prepare_inputs(request: PictureRequest, default_size: int, sizes: SizeRange) -> Inputs:
    """Opens, checks and fits the pictures of `request`. Raises PictureError, SizeError or RequestError in words."""
    _check_combination(request)
    names = [_reference_name(request, index) for index in range(len(request.references))]
    first = open_picture(request.references[0], names[0]) if names else None
    others = tuple(
        prepare_reference(file, name, sizes) for file, name in zip(request.references[1:], names[1:], strict=True)
    )
    if first is None or not _keeps_size(request, first, sizes):
        size, notes = _size(request, default_size, sizes)
        references = () if first is None else (fit(first, names[0], sizes), *others)
        return Inputs(references, Frame.plain(size), notes=notes)
    place = None if request.canvas is None else place_on(request.canvas, Size(*first.size), request.place)
    whole = _masked(request, first, place)
    image = first if whole is None else whole.image
    name = names[0] if place is None else "the canvas"
    frame = frame_for(Size(*image.size), name, sizes, default_size**2)
    return Inputs((frame.into(image), *others), frame, whole, place, _about_scaling(frame, name))


def _check_combination(request: PictureRequest) -> None:
    if request.size is not None and request.aspect is not None:
        raise SizeError("size and aspect ratio were both given", "give one of them")
    if request.place is not None and request.canvas is None:
        raise RequestError("a place was given, but no canvas that it is on", "give the canvas, too")
    if request.mask is None and request.canvas is None:
        return
    what = "mask" if request.canvas is None else "canvas"
    if request.mask is not None and request.canvas is not None:
        raise RequestError("mask and canvas were both given", "give one; what is around a picture can be masked, too")
    if not request.references:
        raise RequestError(f"a {what} was given, but no picture that it is for", "give the picture, too")
    if request.size is not None or request.aspect is not None:
        raise SizeError(
            f"with a {what} the picture has the size of {'its input' if what == 'mask' else 'the canvas'}",
            "leave size and aspect ratio out",
        )


def _reference_name(request: PictureRequest, index: int) -> str:
    return _named(f"reference {index + 1}", request.reference_names[index] if request.reference_names else "")


def _named(what: str, name: str) -> str:
    return f"{what} ({name})" if name else what


def _keeps_size(request: PictureRequest, first: Image.Image, sizes: SizeRange) -> bool:
    """Whether the picture shall have the input's own size: of course with a mask or canvas, or if no other was asked for.

    Who asks for the very size of the input and could not have it otherwise gets it in the same way.
    """
    if request.mask is not None or request.canvas is not None:
        return True
    if request.size is not None:
        return request.size == Size(*first.size) and not sizes.allows(request.size)
    return request.aspect is None


def _size(request: PictureRequest, default_size: int, sizes: SizeRange) -> tuple[Size, tuple[str, ...]]:
    """The size asked for, or the model's own; and a note if it had to be rounded."""
    if request.aspect is not None:
        size = size_for_aspect(check_aspect(request.aspect), default_size**2, sizes.multiple)
        sizes.check(size)
        return size, ()
    asked = request.size or Size(default_size, default_size)
    size = sizes.rounded(asked)
    return size, () if size == asked else (f"{asked} was rounded to {size}: sides are multiples of {sizes.multiple}",)


def _masked(request: PictureRequest, first: Image.Image, place: tuple[int, int] | None) -> Masked | None:
    if request.canvas is not None and place is not None:
        return on_canvas(first, request.canvas, place)
    return None if request.mask is None else masked(first, request.mask, _named("the mask", request.mask_name))


def _about_scaling(frame: Frame, name: str) -> tuple[str, ...]:
    if not frame.scales:
        return ()
    how = "enlarged" if frame.content.area < frame.size.area else "shrunk"
    return (f"{name} is {frame.size}: the model made {frame.content}, and that was {how}",)
