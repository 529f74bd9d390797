"""Reports rendered from result rows and the small files beside them."""

from experiments.report.write import write_report

__all__ = ["write_report"]
