"""Pictures that are none of nano's world, so that its autoencoder also keeps what people bring: their own.

No photographs are shipped. Dead leaves (shapes that cover each other, sizes by a power law) have the edges and the spectrum
of natural pictures, cloudy noise their shading and their rough surfaces, lines of letters their finest detail. Source of
the first two: Ruderman, "Origins of scaling in natural images" (1997); Lee, Mumford and Huang, "Occlusion models for
natural images" (2001).
"""

from __future__ import annotations

import string

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FLAT_SHARE = 0.1
LARGEST, SMALLEST = 0.6, 0.03  # leaves' radii, of the picture's side
NUM_LEAVES = (40, 500)
NUM_LINES = (3, 9)
LINE_LENGTH = 24  # letters
CHARACTERS = string.ascii_letters + string.digits + " .,-()&"


def random_texture(generator: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A picture (side, side, 3): cloudy ground, mostly leaves on it, at times letters, at times out of focus. Some are of one
    colour alone, any."""
    if generator.random() < FLAT_SHARE:
        return np.full((side, side, 3), generator.integers(0, 256, 3), np.uint8)
    light = clouds(generator, side, 1)
    colors = palette(generator)
    picture = Image.fromarray(_mixed(colors[0], colors[1], light))
    if generator.random() < 0.8:
        _leaves(generator, picture, colors)
    if generator.random() < 0.25:
        _letters(generator, picture)
    if generator.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0.4, 2.0)))
    rough = clouds(generator, side, 1, generator.uniform(0.3, 1.6)) * generator.uniform(0, 1) ** 2 * 90
    return (np.asarray(picture, np.float32) + rough).round().clip(0, 255).astype(np.uint8)


def palette(generator: np.random.Generator) -> NDArray[np.float32]:
    """A few colours (8, 3) that belong together: they differ in light more than in hue; some have no hue at all."""
    light = generator.uniform(10, 245, (8, 1))
    hue = generator.normal(0, 1, 3) * 25 + generator.normal(0, 1, (8, 3)) * generator.uniform(5, 60)
    return (light + hue * (generator.random() < 0.85)).clip(0, 255).astype(np.float32)


def clouds(generator: np.random.Generator, side: int, channels: int, power: float = 1.4) -> NDArray[np.float32]:
    """Noise (side, side, channels) whose amplitude falls as frequency to the `power`; mean 0, spread 0.5."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]) * side
    amplitude = np.maximum(frequency, 1) ** -power
    spectrum = np.fft.rfft2(generator.standard_normal((side, side, channels)), axes=(0, 1)) * amplitude[..., None]
    noise = np.fft.irfft2(spectrum, (side, side), axes=(0, 1))
    noise -= noise.mean()
    clouds: NDArray[np.float32] = (0.5 * noise / noise.std()).astype(np.float32)
    return clouds


def _mixed(one: NDArray[np.float32], other: NDArray[np.float32], light: NDArray[np.float32]) -> NDArray[np.uint8]:
    share = (light + 0.5).clip(0, 1)
    return ((1 - share) * one + share * other).round().astype(np.uint8)


def _leaves(generator: np.random.Generator, picture: Image.Image, colors: NDArray[np.float32]) -> None:
    """Draws ellipses, rectangles and polygons, large ones first; half of them shaded."""
    draw, side = ImageDraw.Draw(picture), picture.width
    # Radii with density 1/r³, the scale-invariant one.
    uniform = generator.random(int(generator.integers(*NUM_LEAVES)))
    radii = side / np.sqrt(LARGEST**-2 + uniform * (SMALLEST**-2 - LARGEST**-2))
    for radius in np.sort(radii)[::-1]:
        x, y = generator.uniform(0, side, 2)
        color = tuple((colors[generator.integers(len(colors))] + generator.normal(0, 12)).clip(0, 255).astype(int))
        kind = generator.integers(3)
        if kind == 0:
            high = radius * generator.uniform(0.3, 1)
            draw.ellipse((x - radius, y - high, x + radius, y + high), fill=color)
        else:
            corners = int(generator.integers(3, 7))
            angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
            reach = radius * generator.uniform(0.6, 1, corners)
            points = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
            draw.polygon([tuple(point) for point in points], fill=color)


def _letters(generator: np.random.Generator, picture: Image.Image) -> None:
    draw, side = ImageDraw.Draw(picture), picture.width
    color = tuple(int(value) for value in generator.integers(0, 256, 3))
    size = float(generator.uniform(0.06, 0.2)) * side
    top = float(generator.uniform(0, 0.4)) * side
    for line in range(int(generator.integers(*NUM_LINES))):
        text = "".join(generator.choice(list(CHARACTERS), LINE_LENGTH))
        draw.text(
            (generator.uniform(0, 0.1) * side, top + 1.3 * line * size), text, color, ImageFont.load_default(size)
        )
