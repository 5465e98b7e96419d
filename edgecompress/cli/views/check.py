"""Views of the findings of the probe."""

from collections.abc import Iterator

from rich.table import Table

from edgecompress.cli.views.tables import make_table
from edgecompress.records import CheckResult, Finding


def tabulate_check(found: CheckResult) -> Table:
    """Return a row for each check that passed, and for each finding of the others."""
    rows: list[tuple[str, ...]] = []
    for kind in found.checks:
        own = [finding for finding in found.findings if finding.kind == kind]
        rows += [(kind, finding.severity, finding.text, finding.remedy) for finding in own] or [(kind, "ok", "", "")]
    return make_table(("check", "result", "finding", "remedy"), rows, text_columns=4, fold=("finding", "remedy"))


def describe_check(found: CheckResult) -> str:
    """Return the number of errors and warnings in a sentence."""
    warnings = sum(finding.severity == "warning" for finding in found.findings)
    if found.errors:
        return f"{found.model}: {len(found.errors)} to mend before anything else runs"
    return f"{found.model}: every step can run{f'; {warnings} to look at' if warnings else ''}"


def list_findings(found: CheckResult) -> Iterator[str]:
    """Yield a line for each warning and note."""
    yield from (_describe_finding(finding) for finding in found.findings if finding.severity != "error")


def list_errors(found: CheckResult) -> Iterator[str]:
    """Yield a line for each error, for commands that go on: it stops a later step."""
    yield from map(_describe_finding, found.errors)


def _describe_finding(finding: Finding) -> str:
    return f"{finding.severity}: {finding.text}{f'; {finding.remedy}' if finding.remedy else ''}"
