"""Inputs: which size follows from a request, what is said about it, and what cannot be asked for together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kleinbild.core.errors import MaskError, PictureError, RequestError, SizeError
from kleinbild.core.requests import PictureRequest
from kleinbild.core.sizes import Size, SizeRange
from kleinbild.engine.inputs import Inputs, prepare_inputs
from tests.unit.engine.test_masks import box, with_alpha
from tests.unit.engine.test_prepare import reference

SIZES = SizeRange(min_side=64, max_side=256, max_pixels=256 * 256, multiple=16)
ODD, EVEN, LARGE = reference(130, 97), reference(128, 96), reference(601, 431)
HOLE = with_alpha(box(97, 130, (slice(10, 20), slice(30, 40))))


def inputs(*references: bytes, **fields: Any) -> Inputs:
    return prepare_inputs(PictureRequest("a red cat", references=references, **fields), 128, SIZES)


@pytest.mark.parametrize(
    ("references", "fields", "size", "made"),
    [
        ((), {}, (128, 128), (128, 128)),
        ((), {"size": Size(96, 64)}, (96, 64), (96, 64)),
        ((), {"size": Size(100, 70)}, (96, 64), (96, 64)),
        ((), {"aspect": 1.5}, (144, 96), (144, 96)),
        ((EVEN,), {}, (128, 96), (128, 96)),
        ((ODD,), {}, (130, 97), (144, 112)),
        ((ODD, EVEN), {"size": Size(130, 97)}, (130, 97), (144, 112)),
        ((ODD,), {"size": Size(131, 97)}, (128, 96), (128, 96)),
        ((ODD,), {"aspect": 1.5}, (144, 96), (144, 96)),
        ((ODD,), {"mask": HOLE}, (130, 97), (144, 112)),
        ((ODD, EVEN), {"canvas": Size(150, 97)}, (150, 97), (160, 112)),
        ((LARGE,), {}, (601, 431), (160, 112)),
        ((LARGE,), {"size": Size(601, 431)}, (601, 431), (160, 112)),
    ],
)
def test_the_size_is_the_one_asked_for_or_the_inputs(
    references: tuple[bytes, ...], fields: dict[str, Any], size: tuple[int, int], made: tuple[int, int]
) -> None:
    found = inputs(*references, **fields)
    assert (found.frame.size, found.frame.made) == (Size(*size), Size(*made))
    assert len(found.references) == len(references)
    if found.frame.size != found.frame.made:
        assert found.references[0].size == made


def test_what_is_not_quite_as_asked_for_is_said() -> None:
    assert inputs(size=Size(100, 71)).notes == ("100x71 was rounded to 96x64: sides are multiples of 16",)
    assert inputs(LARGE, reference_names=("me.jpg",)).notes == (
        "reference 1 (me.jpg) is 601x431: the model made 151x108, and that was enlarged",
    )
    assert inputs(reference(30, 30)).notes == ("reference 1 is 30x30: the model made 128x128, and that was shrunk",)
    assert inputs(EVEN, canvas=Size(300, 300)).notes[0].startswith("the canvas is 300x300: the model made")
    for found in (inputs(), inputs(ODD), inputs(ODD, mask=HOLE), inputs(size=Size(96, 64)), inputs(aspect=2.0)):
        assert found.notes == ()


def test_a_canvas_holds_the_picture_where_it_was_put() -> None:
    found = inputs(ODD, canvas=Size(150, 97), place=(20, 0))
    assert found.place == (20, 0)
    assert found.masked is not None
    assert (np.asarray(found.masked.image) == (255, 0, 0)).all()
    assert inputs(ODD, canvas=Size(150, 97)).place == (10, 0)
    assert inputs(ODD, mask=HOLE).place is None


@pytest.mark.parametrize(
    ("error", "words", "references", "fields"),
    [
        (RequestError, "a mask was given, but no picture", (), {"mask": HOLE}),
        (RequestError, "a canvas was given, but no picture", (), {"canvas": Size(200, 200)}),
        (RequestError, "both given", (ODD,), {"mask": HOLE, "canvas": Size(200, 200)}),
        (RequestError, "no canvas", (ODD,), {"place": (0, 0)}),
        (RequestError, "does not lie on", (ODD,), {"canvas": Size(131, 97), "place": (2, 0)}),
        (SizeError, "size of its input", (ODD,), {"mask": HOLE, "size": Size(64, 64)}),
        (SizeError, "size of the canvas", (ODD,), {"canvas": Size(200, 200), "aspect": 1.0}),
        (SizeError, "smaller than the picture, which is 130x97", (ODD,), {"canvas": Size(64, 64)}),
        (MaskError, "is 130x97, the picture that it is for is 128x96", (EVEN,), {"mask": HOLE}),
        (MaskError, r"the mask \(hole.png\) has no transparency", (ODD,), {"mask": ODD, "mask_name": "hole.png"}),
        (PictureError, "the canvas is 1300x97", (ODD,), {"canvas": Size(1300, 97)}),
    ],
)
def test_what_does_not_go_together_is_told(
    error: type[RequestError], words: str, references: tuple[bytes, ...], fields: dict[str, Any]
) -> None:
    with pytest.raises(error, match=words) as caught:
        inputs(*references, **fields)
    assert type(caught.value) is error
    assert caught.value.hint
