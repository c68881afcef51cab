"""In which numbers a model can be run."""

from __future__ import annotations

from typing import Literal, get_args

from kleinbild.core.errors import RequestError

Precision = Literal["float32", "bfloat16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EIGHT_BITS: tuple[Precision, ...] = ("int8", "fp8")
"""Linear layers of all blocks in eight bits, the rest in bfloat16."""


def element_bytes(precision: Precision) -> int:
    """The bytes of a number, of those that are not in eight bits."""
    return 4 if precision == "float32" else 2


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
