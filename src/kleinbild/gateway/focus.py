"""Attempts as charges in the words of FOCUS 1.2 (focus.finops.org), which tools for clouds' bills read.

What FOCUS says of a provider is here the service that made the picture; a sub-account is one of our projects. Unit prices
are left out, as it allows: what a picture costs follows from more than a number of them. Columns of our own begin with x_.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

from kleinbild.core.money import written
from kleinbild.storage.attempts import Attempt, Entry
from kleinbild.storage.budgets import window_end, window_start
from kleinbild.storage.usage import Correction

COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "PricingCategory",
    "PricingCurrency",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    "x_AttemptId",
    "x_AttemptNumber",
    "x_Hedged",
    "x_JobId",
    "x_KeyId",
    "x_PriceVersion",
    "x_QuotedCost",
    "x_ReportedCost",
    "x_RequestId",
    "x_State",
)
Row = dict[str, str | None]
"""By column; None is FOCUS's null."""


def is_charge(entry: Entry) -> bool:
    """Whether there is something to bill, be it for nothing: not where an attempt failed and is not billed."""
    return entry.state in ("done", "failed_billed")


def usage_row(entry: Entry) -> Row:
    """The charge of an attempt that has ended."""
    attempt = entry.attempt
    pictures = "1 picture" if attempt.count == 1 else f"{attempt.count} pictures"
    outcome = "" if entry.state == "done" else ", which failed"
    return {
        **_row(entry, entry.cost or Decimal(0), attempt.created_at),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{pictures} of {attempt.model} by {attempt.provider}{outcome}",
        "ConsumedQuantity": _number(attempt.megapixels * attempt.count),
        "ConsumedUnit": "Megapixels",
        "PricingCategory": "Standard",
        "PricingQuantity": _number(Decimal(attempt.count)),
        "PricingUnit": "Images",
    }


def correction_row(correction: Correction) -> Row:
    """What a provider's statement says beyond a charge; a "Correction" where that was of a month before."""
    attempt = correction.entry.attempt
    is_later = _month(correction.at) != _month(attempt.created_at)
    return {
        **_row(correction.entry, correction.amount, correction.at),
        "ChargeCategory": "Adjustment",
        "ChargeClass": "Correction" if is_later else None,
        "ChargeDescription": f"Difference to the statement of {attempt.provider} for {attempt.id}",
        "ConsumedQuantity": None,
        "ConsumedUnit": None,
        "PricingCategory": None,
        "PricingQuantity": None,
        "PricingUnit": None,
    }


def _row(entry: Entry, cost: Decimal, billed_at: float) -> Row:
    attempt = entry.attempt
    start, end = _month(billed_at)
    return {
        **{column: _number(cost) for column in ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")},
        "BillingAccountId": attempt.provider,
        "BillingAccountName": attempt.provider,
        "BillingAccountType": "Provider",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": _time(end),
        "BillingPeriodStart": _time(start),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _time(max(math.ceil(entry.ended_at or 0), int(attempt.created_at) + 1)),
        "ChargePeriodStart": _time(int(attempt.created_at)),
        "InvoiceId": None,  # of an invoice nothing is known
        "PricingCurrency": "USD",
        **_service(attempt),
        "SubAccountId": attempt.project,
        "SubAccountName": attempt.project,
        "SubAccountType": "Project",
        "Tags": json.dumps({"key": attempt.caller, "task": attempt.task}),
        "x_AttemptId": attempt.id,
        "x_AttemptNumber": str(attempt.number),
        "x_Hedged": str(attempt.hedged).lower(),
        "x_JobId": attempt.job_id,
        "x_KeyId": attempt.caller,
        "x_PriceVersion": attempt.price_version or None,
        "x_QuotedCost": None if attempt.quoted is None else written(attempt.quoted),
        "x_ReportedCost": None if entry.reported is None else written(entry.reported),
        "x_RequestId": entry.request_id,
        "x_State": entry.state,
    }


def _service(attempt: Attempt) -> Row:
    return {
        "InvoiceIssuerName": attempt.provider,
        "ProviderName": attempt.provider,
        "PublisherName": attempt.provider,
        "ResourceId": attempt.deployment,
        "ResourceName": attempt.deployment,
        "ResourceType": "Deployment",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": attempt.model,
        "ServiceSubcategory": "Generative AI",
        "SkuId": attempt.provider_model,
        "SkuMeter": "Images",
        "SkuPriceId": attempt.provider_model,
    }


def _number(value: Decimal) -> str:
    """With a point, by which readers tell a decimal from a whole number although a whole column has none."""
    text = written(value)
    return text if "." in text else f"{text}.0"


def _month(at: float) -> tuple[float, float]:
    start = window_start("month", at)
    return start, window_end("month", start) or 0.0


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
