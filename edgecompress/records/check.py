"""The findings of the probe, which runs a network for seconds before anything long begins."""

from __future__ import annotations

from typing import Literal

from edgecompress.records.base import SCHEMA, Record


class Finding(Record, frozen=True, kw_only=True):
    """One fact about a network or its data that a user should know.

    Attributes:
        kind: The check that found it, a key of `edgecompress.network.checks.CHECKS`; "recipe" where the recipe could not be read,
            "checkpoint" for how the weights were read.
        severity: An error stops the command; a warning does not; a note says what is done about the fact.
        text: The fact.
        remedy: One way to change it; "" where nothing need be done.
    """

    kind: str
    severity: Literal["error", "warning", "note"]
    text: str
    remedy: str = ""


class CheckResult(Record, frozen=True, kw_only=True):
    """The findings of all checks of one network and its data.

    Attributes:
        checks: Names of the checks that were made; one without a finding has passed. A check that needs another one to pass is left out
            where that one failed.
        macs: MACs of the weights in the exported graph, for one sample; None where the network could not be exported.
        other_macs: Weight → MACs, for weights that no layer holds: those of unregistered layers, of recurrent layers and of functions.
    """

    schema: int = SCHEMA
    model: str
    checks: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    macs: int | None = None
    other_macs: dict[str, int] = {}

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a command."""
        return tuple(finding for finding in self.findings if finding.severity == "error")
