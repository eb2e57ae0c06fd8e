"""The report for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.doctor.findings import Finding, Report

_STYLES = {"ok": "green", "replaced": "yellow", "missing": "red"}


def show(report: Report) -> None:
    """Print a table, the remedies, and the verdict."""
    console = Console()
    table = Table("", "what", box=None, pad_edge=False)
    table.add_column("found", overflow="fold")
    for finding in report.findings:
        table.add_row(_word(finding), finding.name, Text(finding.detail))
    console.print(table)
    for finding in report.findings:
        if finding.remedy is not None:
            console.print(Text.assemble("\n", (finding.name, "bold"), ": ", finding.remedy))
    console.print(Text(f"\n{verdict(report)}", style="bold"))


def _word(finding: Finding) -> Text:
    if finding.status == "missing" and not finding.required:
        return Text("not needed")
    return Text(finding.status, style=_STYLES[finding.status])


def verdict(report: Report) -> str:
    """One line."""
    if not report.able:
        names = [f.name for f in report.findings if f.status == "missing" and f.required]
        return f"The {report.driver} driver cannot keep this policy here: {', '.join(names)}."
    replaced = [finding.name for finding in report.findings if finding.status == "replaced"]
    if replaced:
        return f"The {report.driver} driver keeps this policy here, with replacements for {', '.join(replaced)}."
    return f"The {report.driver} driver keeps this policy here."
