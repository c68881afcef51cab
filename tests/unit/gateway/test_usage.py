"""`/v1/usage`: sums and charges, to whom they belong."""

from __future__ import annotations

import csv
import json
import re
import time
from decimal import Decimal

import pytest

from kleinbild.gateway import focus
from kleinbild.gateway.api import usage
from kleinbild.storage.attempts import Entry
from kleinbild.storage.ledger import Ledger
from kleinbild.storage.usage import Correction
from tests.unit.gateway.server import Server
from tests.unit.storage.money import NOON, Clock, an_attempt

pytestmark = pytest.mark.anyio
DAY = 24 * 3600
TIMES = {"start": "2027-01-15", "end": "2027-01-17T00:00:00Z"}


@pytest.fixture
async def spent(server: Server) -> Server:
    """On two projects, on 15 January 2027, what cost $0.03 and $0.3; of the second, $0.02 was given back in February."""
    server.app.include_router(usage.router)
    clock = Clock()
    ledger = Ledger(server.database, clock)
    for attempt, state, cost in (
        (an_attempt("att_1"), "failed_unbilled", "0"),
        (an_attempt("att_2", number=2, price_version="=1+1"), "done", "0.03"),
        (an_attempt("att_3", "0.40", job_id="job_2", project="q", count=4), "done", "0.3"),
    ):
        await ledger.reserve(attempt, ())
        await ledger.settle(attempt.id, state, Decimal(cost))
    clock.now += 30 * DAY
    await ledger.reconcile("fal", [("att_3", Decimal("0.28"))])
    return server


async def told(server: Server, key: str, **params) -> dict:
    answer = await server.ask("GET", "/v1/usage", key, params={**TIMES, **params})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_admin_sees_all_projects_and_others_their_own(spent: Server) -> None:
    _, admin = await spent.key("admin")
    _, viewer = await spent.key("viewer")
    everything = await told(spent, admin, group_by="project")
    assert (everything["currency"], everything["start"], everything["end"]) == ("USD", 1_799_971_200, 1_800_144_000)
    assert everything["data"] == [
        {
            "project": "p",
            "requests": 1,
            "attempts": 2,
            "images": 1,
            "megapixels": 1.048576,
            "cost": "0.03",
            "corrections": "0",
            "reserved": "0",
        },
        {
            "project": "q",
            "requests": 1,
            "attempts": 1,
            "images": 4,
            "megapixels": 4.194304,
            "cost": "0.3",
            "corrections": "-0.02",
            "reserved": "0",
        },
    ]
    assert [row["project"] for row in (await told(spent, admin, group_by="project", project="q"))["data"]] == ["q"]
    assert [row["project"] for row in (await told(spent, viewer, group_by="project"))["data"]] == ["p"]
    assert (await told(spent, viewer, project="p"))["data"][0]["attempts"] == 2
    refused = await spent.ask("GET", "/v1/usage", viewer, params={"project": "q"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "project_not_allowed")
    for form in ("csv", "focus"):
        mine = (
            await spent.ask("GET", "/v1/usage", viewer, params={**TIMES, "format": form, "group_by": "project"})
        ).text
        assert "q" not in {row.get("project", row.get("SubAccountId")) for row in csv.DictReader(mine.splitlines())}


async def test_it_is_of_the_last_thirty_days_if_nobody_says(spent: Server) -> None:
    _, admin = await spent.key("admin")
    answer = (await spent.ask("GET", "/v1/usage", admin)).json()
    assert answer["end"] == pytest.approx(time.time(), abs=5)
    assert answer["end"] - answer["start"] == 30 * DAY
    assert (await told(spent, admin, start=int(NOON), end=int(NOON) + 1))["data"][0]["attempts"] == 3


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"start": "tomorrow"}, "start"),
        ({"group_by": "colour"}, "group_by"),
        ({"format": "xml"}, "format"),
        ({"start": TIMES["end"]}, "start"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(spent: Server, wrong: dict[str, str], param: str) -> None:
    _, key = await spent.key()
    refused = await spent.ask("GET", "/v1/usage", key, params={**TIMES, **wrong})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(param)


async def test_nobody_is_told_without_a_key(spent: Server) -> None:
    await spent.key()
    assert (await spent.ask("GET", "/v1/usage")).status_code == 401


async def test_sums_come_as_csv_with_a_head(spent: Server) -> None:
    _, admin = await spent.key("admin")
    answer = await spent.ask(
        "GET", "/v1/usage", admin, params={**TIMES, "format": "csv", "group_by": ["day", "project", "day"]}
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(answer.text.splitlines())) == [
        ["day", "project", "requests", "attempts", "images", "megapixels", "cost", "corrections", "reserved"],
        ["2027-01-15", "p", "1", "2", "1", "1.048576", "0.03", "0", "0"],
        ["2027-01-15", "q", "1", "1", "4", "4.194304", "0.3", "-0.02", "0"],
    ]


async def test_charges_come_as_focus_has_them(spent: Server) -> None:
    _, admin = await spent.key("admin")
    answer = await spent.ask("GET", "/v1/usage", admin, params={**TIMES, "end": "2027-03-01", "format": "focus"})
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert [(row["x_AttemptId"], row["BilledCost"], row["ChargeClass"]) for row in rows] == [
        ("att_2", "0.03", ""),
        ("att_3", "0.3", ""),
        ("att_3", "-0.02", "Correction"),
    ]
    assert tuple(rows[0]) == focus.COLUMNS


async def test_all_pages_of_charges_come(spent: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, admin = await spent.key("admin")
    monkeypatch.setattr("kleinbild.storage.usage.PAGE", 1)
    answer = await spent.ask("GET", "/v1/usage", admin, params={**TIMES, "end": "2027-03-01", "format": "focus"})
    assert len(answer.text.splitlines()) == 4


MANDATORY = (
    "BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart ChargeCategory "
    "ChargeClass ChargeDescription ChargePeriodEnd ChargePeriodStart ContractedCost EffectiveCost InvoiceIssuerName "
    "ListCost PricingQuantity PricingUnit ProviderName PublisherName ServiceCategory ServiceName"
).split()
NEVER_NULL = set(MANDATORY) - {"ChargeClass", "PricingQuantity", "PricingUnit"}
IF_THERE_ARE_SUCH = (
    "BillingAccountType ConsumedQuantity ConsumedUnit PricingCategory ResourceId ResourceName ResourceType SubAccountId "
    "SubAccountName SubAccountType Tags"
).split()
RECOMMENDED = "ChargeFrequency InvoiceId ServiceSubcategory".split()
ALLOWED: dict[str, set[str | None]] = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {None, "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {None, "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
    "BillingCurrency": {"USD"},
    "InvoiceId": {None},
}
DONE = Entry(
    an_attempt(count=2), "done", cost=Decimal("0.06"), reported=Decimal("0.06"), request_id="r", ended_at=NOON + 7.5
)


def rows() -> list[focus.Row]:
    return [
        focus.usage_row(DONE),
        focus.usage_row(Entry(an_attempt(), "failed_billed", cost=Decimal("1E-9"), ended_at=NOON)),
        focus.correction_row(Correction("adj_1", NOON + DAY, Decimal("-0.01"), DONE)),
        focus.correction_row(Correction("adj_2", NOON + 30 * DAY, Decimal("0.01"), DONE)),
    ]


@pytest.mark.parametrize("row", rows(), ids=["done", "failed", "correction", "later correction"])
def test_every_row_keeps_to_what_focus_demands(row: focus.Row) -> None:
    assert row.keys() == set(focus.COLUMNS)
    assert all(re.fullmatch("[A-Z][A-Za-z]+|x_[A-Z][A-Za-z]+", column) for column in row)
    assert {*MANDATORY, *IF_THERE_ARE_SUCH, *RECOMMENDED} <= row.keys()
    assert all(row[column] in allowed for column, allowed in ALLOWED.items())
    assert all(row[column] for column in NEVER_NULL)
    for column in (column for column in focus.COLUMNS if re.fullmatch("[A-Z].*(Cost|Quantity)", column)):
        assert row[column] is None or re.fullmatch(r"-?\d+\.\d+", row[column] or "")
    for period in ("BillingPeriod", "ChargePeriod"):
        start, end = row[f"{period}Start"], row[f"{period}End"]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at or "") for at in (start, end))
        assert str(start) < str(end)
    is_usage = row["ChargeCategory"] == "Usage"
    assert is_usage or row["ChargeCategory"] == "Adjustment"
    for column in ("PricingQuantity", "PricingUnit", "PricingCategory", "ConsumedQuantity", "ConsumedUnit"):
        assert (row[column] is not None) == is_usage
    assert row["BilledCost"] == row["EffectiveCost"] == row["ListCost"] == row["ContractedCost"]
    assert json.loads(row["Tags"] or "") == {"key": "key_1", "task": "image.generate"}


def test_a_charge_says_what_was_bought_when_and_where() -> None:
    done, failed, _, later = rows()
    wanted = {
        "BilledCost": "0.06",
        "BillingPeriodStart": "2027-01-01T00:00:00Z",
        "BillingPeriodEnd": "2027-02-01T00:00:00Z",
        "ChargePeriodStart": "2027-01-15T12:00:00Z",
        "ChargePeriodEnd": "2027-01-15T12:00:08Z",
        "ChargeDescription": "2 pictures of flux-2-klein by fal",
        "ConsumedQuantity": "2.097152",
        "PricingQuantity": "2.0",
        "SkuId": "fal-ai/flux-2/klein",
        "SubAccountId": "p",
        "x_QuotedCost": "0.03",
        "x_ReportedCost": "0.06",
    }
    assert {column: done[column] for column in wanted} == wanted
    assert failed["BilledCost"] == "0.000000001"
    assert failed["ChargePeriodEnd"] == "2027-01-15T12:00:01Z"
    assert failed["ChargeDescription"] == "1 picture of flux-2-klein by fal, which failed"
    assert later["BillingPeriodStart"] == "2027-02-01T00:00:00Z"
    assert later["ChargePeriodStart"] == "2027-01-15T12:00:00Z"
