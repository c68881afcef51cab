"""Tensors in files that are named by all that they depend on: found again only where they would come out the same.

A file is moved to its place when it is whole; one that is damaged counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from kleinbild.core.errors import OutputError
from kleinbild.core.sizes import Size
from kleinbild.engine.files import write_file
from kleinbild.model.weights import Model
from kleinbild.train.data.buckets import Placed
from kleinbild.train.data.encoding import fingerprint

VERSION = 1
"""Of what is computed. Raise it whenever the same key would come to hold other numbers."""

Kind = Literal["latents", "contexts", "weights"]


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of files. What pictures and captions have in common is digested once."""

    picture: str
    text: str

    @classmethod
    def of(cls, model: Model) -> Keys:
        return cls(
            picture=_digest(
                VERSION, fingerprint(model.autoencoder), str(model.dtype), model.spec.autoencoder.pixels_per_token
            ),
            text=_digest(
                VERSION,
                fingerprint(model.text_encoder),
                str(model.dtype),
                model.precision,
                model.spec.text_encoder.layers,
                model.spec.text_encoder.max_tokens,
            ),
        )

    def of_picture(self, sha256: str, made: Size, box: Sequence[float] | None) -> str:
        """`box` None: fitted freely. Its end size tells the rest."""
        return _digest(self.picture, sha256, made.width, made.height, box)

    def of_mask(self, sha256: str, placed: Placed, *, alpha: bool) -> str:
        """`alpha`: its transparency is the mask. No network has a part in it."""
        return _digest(VERSION, alpha, sha256, placed.made.width, placed.made.height, placed.box)

    def of_caption(self, ids: Iterable[int], mask: Iterable[int]) -> str:
        """Tokens say all that caption, template and tokenizer have to say."""
        return _digest(self.text, list(ids), list(mask))


def place_of(folder: Path, kind: Kind, key: str) -> Path:
    return folder / kind / key[:2] / f"{key}.safetensors"


def is_whole(path: Path) -> bool:
    """Whether the file is there and as long as its header says."""
    try:
        with safe_open(path, framework="pt") as file:
            return "tensor" in file.keys()  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError):
        return False


def keep(path: Path, tensor: Tensor) -> None:
    """Writes the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({"tensor": tensor.contiguous()}))


def load(path: Path) -> Tensor:
    """Raises OutputError for a file that has gone since it was found."""
    try:
        return load_file(path)["tensor"]
    except (OSError, SafetensorError, KeyError) as error:
        raise OutputError(
            f"{path}, kept when the data were encoded, is gone or damaged", "start the run again"
        ) from error


def _digest(*ingredients: object) -> str:
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:40]
