"""What pictures cost: a price is a function of what is asked for, with a version and a source. Unknown is never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import ROUND_CEILING, Decimal
from types import MappingProxyType

from kleinbild.core.errors import KleinbildError
from kleinbild.core.money import ZERO
from kleinbild.core.sizes import Size

MILLION = Decimal(1_000_000)
USUAL_MEGAPIXELS = Decimal("1.048576")
"""Of 1024x1024, whose tokens are what services publish."""
BASE_TOKENS, TILE_TOKENS = 65, 129
FIDELITY_TOKENS = 6240
"""Of a picture given: OpenAI scales its shorter side to 512 and counts squares of 512. A high input fidelity adds 4160 if
it is a square, else these."""
PREVIEW_TOKENS = 100
"""Of a preview, as of a picture made."""
NOTHING: Mapping[str, Decimal] = MappingProxyType({})


class UnknownPriceError(KleinbildError):
    """It cannot be told what this would cost: no price, or one that depends on what is not known."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class BilledTokens:
    """Tokens as hosted services count and bill them."""

    input_text: int = 0
    input_image: int = 0
    output_image: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """The work that a price, or a prediction of seconds, is a function of.

    `megapixels` are of one picture made, `input_megapixels` those of all references and the mask together, in millions of
    pixels. `steps` is None where nobody said and the service decides. `input_tokens` are those of all pictures given as far
    as they can be told before, `most_input_tokens` the most that they can be; `previews` are of each picture. `tokens` are
    known only afterwards.
    """

    images: int = 1
    megapixels: Decimal = USUAL_MEGAPIXELS
    input_megapixels: Decimal = ZERO
    steps: int | None = None
    quality: str = "auto"
    references: int = 0
    input_tokens: int = 0
    most_input_tokens: int = 0
    previews: int = 0
    tokens: BilledTokens | None = None

    def of_call(self, images: int, megapixels: Decimal, steps: int | None) -> Measure:
        """What one call is of it. `replace` would take twice the time, for every place of every request."""
        return Measure(
            images,
            megapixels,
            self.input_megapixels,
            steps,
            self.quality,
            self.references,
            self.input_tokens,
            self.most_input_tokens,
            self.previews,
        )


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars, the sum of all that is given. None of the parts given is an unknown price: a free one says `per_image` 0.

    For each picture: `per_image`; `by_quality`, a price by OpenAI's quality names ("auto" is looked up as such);
    `first_megapixel` and `per_megapixel`, which counts what is beyond the first if there is a first, else all;
    `per_input_megapixel`; `per_step`. For the request: `per_request` and, by tokens, `per_1m_…`. `tokens_by_quality` are
    the output tokens of one picture of 1024x1024, for a quote. With `whole_megapixels` each count of megapixels is rounded up.
    `version` names this price in the ledger; `source` and `read_on` (a date) say who says so.
    """

    per_request: Decimal | None = None
    per_image: Decimal | None = None
    first_megapixel: Decimal | None = None
    per_megapixel: Decimal | None = None
    per_input_megapixel: Decimal | None = None
    per_step: Decimal | None = None
    by_quality: Mapping[str, Decimal] = field(default_factory=lambda: NOTHING)
    per_1m_input_text_tokens: Decimal | None = None
    per_1m_input_image_tokens: Decimal | None = None
    per_1m_output_image_tokens: Decimal | None = None
    tokens_by_quality: Mapping[str, Decimal] = field(default_factory=lambda: NOTHING)
    whole_megapixels: bool = False
    version: str = ""
    source: str = ""
    read_on: str = ""

    @property
    def is_known(self) -> bool:
        return bool(self.by_quality) or any(getattr(self, part.name) is not None for part in _AMOUNTS)

    def of(self, measure: Measure) -> Decimal:
        """What it costs, before it is made (no tokens: a quote) or after. Raises UnknownPriceError."""
        if not self.is_known:
            raise UnknownPriceError("no price is known", "set `price` of the deployment")
        return (self.per_request or ZERO) + self._pictures(measure) + self._tokens(measure)

    def beyond(self, measure: Measure, prompt_bytes: int) -> Decimal:
        """The most that it can cost beyond the quote, which leaves out the prompt (no token is shorter than a byte), a high
        fidelity to pictures given that nobody asked for, previews, and that a picture of more than 1024x1024 has more
        tokens (by its area at most)."""
        larger = max(ZERO, measure.megapixels / USUAL_MEGAPIXELS - 1)
        made = PREVIEW_TOKENS * measure.previews + self.tokens_by_quality.get(measure.quality, ZERO) * larger
        counted = (
            (self.per_1m_input_text_tokens, prompt_bytes),
            (self.per_1m_input_image_tokens, measure.most_input_tokens - measure.input_tokens),
            (self.per_1m_output_image_tokens, made * measure.images),
        )
        return sum(((each or ZERO) * count for each, count in counted), ZERO) / MILLION

    def _pictures(self, measure: Measure) -> Decimal:
        each = self.per_image or ZERO
        if self.by_quality:
            if measure.quality not in self.by_quality:
                known = ", ".join(self.by_quality)
                raise UnknownPriceError(f"no price of the quality {measure.quality!r} is known", f"known are {known}")
            each += self.by_quality[measure.quality]
        each += self._megapixels(self._counted(measure.megapixels))
        each += (self.per_input_megapixel or ZERO) * self._counted(measure.input_megapixels)
        if self.per_step is not None:
            if measure.steps is None:
                raise UnknownPriceError("the price depends on the steps, which nobody gave", "give steps")
            each += self.per_step * measure.steps
        return each * measure.images

    def _megapixels(self, count: Decimal) -> Decimal:
        if self.first_megapixel is None:
            return (self.per_megapixel or ZERO) * count
        return self.first_megapixel + (self.per_megapixel or ZERO) * max(ZERO, count - 1)

    def _counted(self, megapixels: Decimal) -> Decimal:
        return megapixels.to_integral_value(ROUND_CEILING) if self.whole_megapixels else megapixels

    def _tokens(self, measure: Measure) -> Decimal:
        output = self.per_1m_output_image_tokens
        tokens = measure.tokens
        if tokens is None:
            given = (self.per_1m_input_image_tokens or ZERO) * measure.input_tokens / MILLION
            if output is None:
                return given
            if measure.quality not in self.tokens_by_quality:
                raise UnknownPriceError(f"no number of tokens is known for the quality {measure.quality!r}", "")
            return given + output * self.tokens_by_quality[measure.quality] * measure.images / MILLION
        counted = (
            (self.per_1m_input_text_tokens, tokens.input_text),
            (self.per_1m_input_image_tokens, tokens.input_image),
            (output, tokens.output_image),
        )
        return sum(((each or ZERO) * count for each, count in counted), ZERO) / MILLION


def tokens_given(size: Size) -> tuple[int, int]:
    """Of a picture that is given: with a low fidelity to it, and with a high one."""
    shorter, longer = sorted((size.width, size.height))
    low = BASE_TOKENS + TILE_TOKENS * math.ceil(longer / shorter)
    return low, low + FIDELITY_TOKENS


_AMOUNTS = [part for part in fields(Price) if part.name.startswith(("per_", "first_"))]
