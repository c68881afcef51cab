"""The export of charges against the FOCUS project's own validator, which needs an environment of its own (Python 3.12):

pip install "focus-validator==2.2.1" "pyarrow<20"; FOCUS_VALIDATOR=its/bin/focus-validator pytest tests/conformance/test_focus.py
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from pathlib import Path

import pytest

from kleinbild.gateway import focus
from tests.unit.gateway.test_usage import rows

VALIDATOR = os.environ.get("FOCUS_VALIDATOR", "")
OURS = (
    "ACCOUNT_NAMING_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "MULTIPLE_BILLING_ACCOUNT_TYPES_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "MULTIPLE_SUB_ACCOUNT_TYPES_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
)
MISTAKEN = {
    # One of two that exclude each other, for charges with an invoice and without: the validator asks for both.
    "InvoiceId-C-005-C",
    # It looks at CommitmentDiscountStatus, a column that is there only where commitments are.
    "ConsumedQuantity-C-004-C",
    # By its words it is of charges that are no corrections, by its condition of those that are.
    "ConsumedQuantity-C-006-C",
    # Made of these.
    "ConsumedQuantity-C-005-C",
    "ConsumedQuantity-C-003-C",
    "ConsumedQuantity-C-000-C",
}


@pytest.mark.skipif(not VALIDATOR, reason="FOCUS_VALIDATOR names no validator")
def test_the_validator_of_focus_1_2_finds_nothing_but_its_own_mistakes(tmp_path: Path) -> None:
    currencies = tmp_path / "focus_validator" / "rules" / "currency_codes.csv"  # which it would fetch
    currencies.parent.mkdir(parents=True)
    currencies.write_text(",currency_codes\n0,USD\n")
    with (tmp_path / "charges.csv").open("w", newline="") as file:
        csv.writer(file).writerows([focus.COLUMNS, *([row[column] for column in focus.COLUMNS] for row in rows())])
    command = [VALIDATOR, "--data-file", "charges.csv", "--validate-version", "1.2", "--block-download"]
    command += ["--applicability-criteria", ",".join(OURS)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    passed = re.search(r"Pass: (\d+)", said)
    assert passed is not None, said
    assert int(passed[1]) > 180
    assert set(re.findall(r"^\S+ (\S+): FAIL", said, re.MULTILINE)) <= MISTAKEN
