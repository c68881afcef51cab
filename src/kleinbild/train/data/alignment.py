"""Whether a picture and what it is made from lie on each other, pixel for pixel: a shift between them is learned, too.

Phase correlation: the cross-power spectrum of two pictures that are shifted against each other is a plane wave, its
transform a peak at the shift. It is taken of the strengths of edges, which recolouring changes little, and without the
highest frequencies, which hold the noise of JPEG. How high the peak is (1: the same picture, shifted) is the
confidence: an edit that leaves the picture in its place has its peak at zero, one that changes all of it has none.

Shape suffixes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kleinbild.train.data.buckets import Framing, View, aspects_differ
from kleinbild.train.data.findings import Finding
from kleinbild.train.data.folders import counted, named
from kleinbild.train.data.pictures import Seen, open_upright

MAX_SIDE = 512
PASSED = 0.2  # of the sampling frequency: where the low-pass has fallen to exp(-1/2)
MIN_CONFIDENCE, MIN_SHIFT = 0.4, 0.5
MAX_AT_ZERO = 0.85  # of the peak: a second peak there means that the picture did not move, only something in it
MAX_SHARE = 1 / 8  # of a side: what moves further was meant to

MAX_PAIRS = 200  # looked at, evenly over all

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far `target` lies to the right of and below `reference`, in the target's pixels; `confidence` from 0 to 1.

    `at_zero` is how well they agree without being moved.
    """

    x: float
    y: float
    confidence: float
    at_zero: float
    size: tuple[int, int]

    @property
    def pixels(self) -> float:
        return float(np.hypot(self.x, self.y))

    @property
    def is_misaligned(self) -> bool:
        """Whether the two show the same, one of them moved."""
        return (
            self.confidence >= MIN_CONFIDENCE
            and MIN_SHIFT < self.pixels <= MAX_SHARE * min(self.size)
            and self.at_zero < MAX_AT_ZERO * self.confidence
        )


def shift_between(reference: Image.Image, target: Image.Image) -> Shift:
    """Of two RGB pictures of one size."""
    scale = min(1.0, MAX_SIDE / max(target.size))
    size = max(8, round(target.width * scale)), max(8, round(target.height * scale))
    spectra = [np.fft.fft2(_edges(image, size)) for image in (target, reference)]
    cross = spectra[0] * spectra[1].conj()
    magnitude = np.abs(cross)
    rows: Real = np.fft.fftfreq(size[1])[:, None].astype(np.float64)
    columns: Real = np.fft.fftfreq(size[0])[None].astype(np.float64)
    weights = np.exp(-(rows**2 + columns**2) / (2 * PASSED**2))
    weights[0, 0] = 0.0
    if magnitude.max() <= 1e-9:  # a picture of one colour lies anywhere
        return Shift(0.0, 0.0, 0.0, 0.0, target.size)
    waves = weights / weights.sum() * np.where(magnitude > 1e-9 * magnitude.max(), cross / (magnitude + 1e-30), 0)
    surface_HW = np.fft.ifft2(waves).real * waves.size
    y, x = np.unravel_index(int(surface_HW.argmax()), surface_HW.shape)
    at_y, at_x = (
        int(at) - side if at > side // 2 else int(at) for at, side in zip((y, x), surface_HW.shape, strict=True)
    )
    at_y, at_x, peak = _refined(waves, rows, columns, at_y, at_x)
    return Shift(at_x / scale, at_y / scale, peak, max(0.0, float(surface_HW[0, 0])), target.size)


def pair_findings(
    found: Sequence[View], seen: Mapping[Path, Seen], framing: Framing, told: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Of pictures that are made from others. `told` is told how many pairs have been compared, of how many."""
    pairs = list({view.example.name: view for view in found if view.example.references}.values())
    same = tuple(
        view.example.name
        for view in pairs
        if any(seen[file].pixels == seen[view.example.target].pixels for file in view.example.references)
    )
    if same:
        yield Finding(
            "warning",
            "nothing changes",
            f"{counted(len(same), 'picture')} the same as a reference, to the last pixel: {named(list(same))}",
            "fine as an example of leaving things as they are; else take them away",
            same,
        )
    if framing.references != "target":
        return
    other = tuple(
        view.example.name
        for view in pairs
        if any(aspects_differ(seen[file], seen[view.example.target]) for file in view.example.references)
    )
    if other:
        yield Finding(
            "warning",
            "pairs of other shapes",
            f"{counted(len(other), 'pair')} of other shapes, cropped to the picture's: {named(list(other))}",
            "crop both alike, or set references=free where they need not lie on each other",
            other,
        )
    yield from _misaligned([view for view in pairs if view.example.name not in other], told)


def _misaligned(pairs: Sequence[View], told: Callable[[int, int], None]) -> Iterator[Finding]:
    step = max(1, -(-len(pairs) // MAX_PAIRS))
    looked_at = pairs[::step]
    moved: list[tuple[str, Shift]] = []
    for done, view in enumerate(looked_at, 1):
        moved += [(view.example.name, shift) for shift in _shifts(view) if shift.is_misaligned]
        told(done, len(looked_at))
    if not moved:
        return
    listed = [f"{name} by {shift.x:+.1f}, {shift.y:+.1f} pixels ({shift.confidence:.0%} sure)" for name, shift in moved]
    of = f" of {len(looked_at)} looked at" if step > 1 else f" of {len(pairs)}"
    yield Finding(
        "warning",
        "misaligned pairs",
        f"{counted(len(moved), 'pair')}{of} do not lie on each other: {named(listed, 3)}",
        "shift one onto the other, else the shift is learned (to the right and down is positive)",
        tuple(name for name, _ in moved),
    )


def _shifts(view: View) -> Iterator[Shift]:
    target = view.target(open_upright(view.example.target))
    for file, placed in zip(view.example.references, view.references, strict=True):
        if placed is not None:
            yield shift_between(placed(open_upright(file)), target)


def _edges(image: Image.Image, size: tuple[int, int]) -> Real:
    """How strong the edges are, fading to the border, which the transform would see as one."""
    grey_HW = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.float64)
    down_HW, right_HW = np.gradient(grey_HW)
    strength_HW = np.hypot(down_HW, right_HW)
    window_HW = np.hanning(size[1] + 2)[1:-1, None] * np.hanning(size[0] + 2)[None, 1:-1]
    faded: Real = (strength_HW - strength_HW.mean()) * window_HW
    return faded


def _refined(waves: Complex, rows: Real, columns: Real, y: float, x: float) -> tuple[float, float, float]:
    """The peak around whole pixels, in steps of a tenth and then of a hundredth."""
    peak = 0.0
    for step in (0.1, 0.01):
        offsets = np.arange(-10, 11) * step
        down = np.exp(2j * np.pi * (y + offsets)[:, None] * rows.reshape(1, -1))
        right = np.exp(2j * np.pi * columns.reshape(-1, 1) * (x + offsets)[None])
        values = (down @ waves @ right).real
        best = np.unravel_index(int(values.argmax()), values.shape)
        y, x, peak = y + float(offsets[best[0]]), x + float(offsets[best[1]]), float(values[best])
    return y, x, min(1.0, max(0.0, peak))
