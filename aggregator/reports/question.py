"""What a report is remembered by: what was asked, whose rows it may show, and the version of those rows."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.reports.report import Report
from aggregator.reports.state import Rows, Versions
from schemas import limits


@dataclass(frozen=True, slots=True)
class Question:
    """`version`: of the rows, as `Versions.version` has it; None for rows that may still change unseen."""

    report: Report
    version: str | None


async def question(versions: Versions, report: Report) -> Question:
    """A report with the version that its rows have now. An advertiser's is everybody's: its rows go by its offers, and
    others may send conversions of them. Raises Refused("unavailable")."""
    rows = Rows(report.scope.partner_id, report.asked.starts, report.asked.ends, report.asked.date_basis == "ledger")
    return Question(report, await versions.version(rows))


def life_s(question: Question) -> float:
    """How long its answer may be given; with a version long: after a change nobody asks for this one again."""
    return limits.REPORT_OPEN_S if question.version is None else limits.REPORT_CLOSED_S
