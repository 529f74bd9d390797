"""Reports rendered from rows and what belongs to them. Rows and counts are the truth; a report is never read back."""

from experiments.reporting.pages import FILES, write_report

__all__ = ["FILES", "write_report"]
