"""An evaluation's results as figures with intervals, tables, pictures and one page."""

from __future__ import annotations

from kvmmu.report.evaluation.results import Results, parse_results, read_results
from kvmmu.report.evaluation.summary import summarise
from kvmmu.report.evaluation.tables import markdown
from kvmmu.report.evaluation.terminal import terminal_tables
from kvmmu.report.evaluation.words import headline_words, method_notes
from kvmmu.report.evaluation.write import write_report

__all__ = [
    "Results",
    "headline_words",
    "markdown",
    "method_notes",
    "parse_results",
    "read_results",
    "summarise",
    "terminal_tables",
    "write_report",
]
