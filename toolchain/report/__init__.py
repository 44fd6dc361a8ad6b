"""Results joined by lineage into a page to decide from."""

from toolchain.report.page import report

__all__ = ["report"]
