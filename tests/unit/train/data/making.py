"""Data as people have it, made on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """A picture of smooth colours, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def lay_out(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files by their paths: text, bytes, or None for a picture."""
    for seed, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            picture(path, seed=seed)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, "utf-8")
    return root
