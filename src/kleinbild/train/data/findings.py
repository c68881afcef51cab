"""What the preflight has to say of a data set, one finding a matter: how bad, what, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """An error keeps a run from starting or makes it useless; a warning says what would probably spoil it.

    `files` are names of examples or files, all of them. `kind` tells findings of one sort to programs.
    """

    severity: Severity
    kind: str
    what: str
    advice: str
    files: tuple[str, ...] = ()


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, notes last."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
