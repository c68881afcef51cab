"""In which numbers a model can be run."""

from __future__ import annotations

from typing import Literal, get_args

from kleinbild.core.errors import RequestError

Precision = Literal["float32", "bfloat16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def choose_precision(name: object | None) -> Precision | None:
    """The numbers asked for by name or as a torch.dtype; None leaves the choice to the model.

    Raises RequestError for what models are not run in.
    """
    if name is None:
        return None
    text = str(name).removeprefix("torch.")
    for precision in PRECISIONS:
        if text == precision:
            return precision
    raise RequestError(f"{name} is not a type that models run in", f"use {', '.join(PRECISIONS)}")
