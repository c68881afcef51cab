"""The times of a request: how many steps, and how far each is shifted towards noise.

Rectified flow: x_t = (1 - t)·x_0 + t·noise, the model predicts noise - x_0, Euler from t = 1 to 0. The shift grows with
the number of image tokens and depends on the number of steps. Source: the reference implementation's empirical fit.
"""

from __future__ import annotations

import math

HIGH_RESOLUTION_TOKENS = 4300


def shift(num_tokens: int, num_steps: int) -> float:
    """The exponent mu of the time shift, for `num_tokens` tokens of the image being made (references do not count)."""
    at_200_steps = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > HIGH_RESOLUTION_TOKENS:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (at_200_steps - at_10_steps) / 190.0
    return slope * num_steps + (at_200_steps - 200.0 * slope)


def times(num_tokens: int, num_steps: int) -> tuple[float, ...]:
    """`num_steps + 1` times from 1 down to 0, shifted. Raises ValueError below one step."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    stretch = math.exp(shift(num_tokens, num_steps))
    linear = (1.0 - i / num_steps for i in range(num_steps))
    return (*(stretch / (stretch + 1.0 / t - 1.0) for t in linear), 0.0)
