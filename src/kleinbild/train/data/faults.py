"""What is wrong with the pictures themselves: broken, too narrow, too small, masks that say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kleinbild.core.errors import KleinbildError
from kleinbild.core.sizes import MAX_ASPECT
from kleinbild.engine.references import check_shape
from kleinbild.train.data.buckets import Framing, aspects_differ, usable_sides
from kleinbild.train.data.examples import Example
from kleinbild.train.data.findings import Finding
from kleinbild.train.data.folders import counted, named
from kleinbild.train.data.pictures import Looked, Seen, open_upright

FEW = 5


def is_usable(example: Example, seen: Mapping[Path, Seen], framing: Framing) -> bool:
    """Whether a run could take it: all of its pictures can be read and have a shape that the model makes."""
    if not all(file in seen for file in example.files):
        return False
    pictures = (example.target, *(example.references if framing.references == "free" else ()))
    return not any(_too_narrow(seen[file], framing) for file in pictures)


def picture_findings(
    examples: Sequence[Example], looked: Looked, framing: Framing, num_learned: int
) -> Iterator[Finding]:
    """Errors are what `pictures.look`, `buckets.views` and `cache.prepare` would raise. `num_learned` of the examples are
    what is new to the model."""
    yield from _broken(looked)
    if num_learned < FEW:
        yield Finding(
            "note",
            "few pictures",
            f"{counted(num_learned, 'picture')} to learn from",
            "a run on so few learns them by heart; add more if there are more",
        )
    yield from _unfit(examples, looked.seen, framing)


def _broken(looked: Looked) -> Iterator[Finding]:
    if looked.broken:
        what = [error.message for error in looked.broken.values()]
        yield Finding(
            "error",
            "broken pictures",
            f"{counted(len(what), 'picture')} cannot be used: {named(what, 3)}",
            "replace them or take them away",
            tuple(str(path) for path in looked.broken),
        )


def _too_narrow(seen: Seen, framing: Framing) -> bool:
    try:
        check_shape(seen.size, "", framing.sizes)
    except KleinbildError:
        return True
    return False


def _unfit(examples: Sequence[Example], seen: Mapping[Path, Seen], framing: Framing) -> Iterator[Finding]:
    whole = [example for example in examples if all(file in seen for file in example.files)]
    if names := tuple(each.name for each in whole if any(_too_narrow(seen[file], framing) for file in each.files)):
        yield Finding(
            "error",
            "too narrow",
            f"{counted(len(names), 'example')} with pictures longer than {MAX_ASPECT} times their width: {named(list(names))}",
            "crop them",
            names,
        )
    fits = [example for example in whole if example.name not in names]
    least = min(framing.sides)
    small = [each for each in fits if usable_sides(seen[each.target].size, framing) == (least,)]
    if names := tuple(each.name for each in small if seen[each.target].size.area * framing.max_upscale**2 < least**2):
        yield Finding(
            "warning",
            "small pictures",
            f"{counted(len(names), 'picture')} are smaller than {least}x{least} and would be enlarged: {named(list(names))}",
            "take larger ones, or train at a smaller size: enlarged pictures teach blur",
            names,
        )
    if names := tuple(each.name for each in fits if seen[each.target].transparent and not framing.alpha_masks):
        yield Finding(
            "note",
            "transparent",
            f"{counted(len(names), 'picture')} partly transparent, put on white: {named(list(names))}",
            "put them on what shall be behind them, or set alpha_masks=true to learn what is opaque only",
            names,
        )
    yield from _of_masks(fits, seen)


def _of_masks(examples: Sequence[Example], seen: Mapping[Path, Seen]) -> Iterator[Finding]:
    masked = [(example, example.mask) for example in examples if example.mask is not None]
    other = tuple(example.name for example, mask in masked if aspects_differ(seen[mask], seen[example.target]))
    if other:
        yield Finding(
            "error",
            "masks of another shape",
            f"{counted(len(other), 'mask')} of another shape than the picture: {named(list(other))}",
            "make both of one shape",
            other,
        )
    black = tuple(example.name for example, mask in masked if open_upright(mask).convert("L").getextrema()[1] == 0)
    if black:
        yield Finding(
            "error",
            "black masks",
            f"{counted(len(black), 'mask')} black everywhere: {named(list(black))}",
            "white is what shall be learned; remove the mask, or the picture",
            black,
        )
