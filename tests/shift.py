"""By how much one picture is shifted against another, to a fraction of a pixel: phase correlation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEGLIGIBLE = 0.01  # of the strongest frequency: below is rounding, not picture


def shift(one: Image.Image, other: Image.Image) -> float:
    """The distance in pixels by which `other` must be moved to lie on `one`. Both have the same size."""
    assert one.size == other.size
    spectrum = np.fft.fft2(_grey(one)) * np.conj(np.fft.fft2(_grey(other)))
    strength = np.abs(spectrum)
    peaks = np.fft.ifft2(spectrum / np.maximum(strength, NEGLIGIBLE * strength.max())).real
    row, column = np.unravel_index(peaks.argmax(), peaks.shape)
    return math.hypot(_vertex(peaks[:, column], int(row)), _vertex(peaks[row], int(column)))


def _grey(image: Image.Image) -> NDArray[np.float64]:
    """Brightness around 0, fading towards the border, whose jump would correlate with itself."""
    grey = np.asarray(image.convert("L")).astype(np.float64)
    grey -= grey.mean()
    return grey * np.hanning(image.height + 2)[1:-1, None] * np.hanning(image.width + 2)[None, 1:-1]


def _vertex(values: NDArray[np.float64], peak: int) -> float:
    """Where the parabola through a peak and its neighbours is highest, counted from the nearer end."""
    before, at, after = values[peak - 1], values[peak], values[(peak + 1) % len(values)]
    position = peak + (before - after) / (2 * (before - 2 * at + after))
    return float(position if position <= len(values) / 2 else position - len(values))
