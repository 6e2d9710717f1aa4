"""The report: one self-contained page from typed values; importing it loads no chart library."""

from stagecost.report.data import ReportData
from stagecost.report.page import render_comparison, render_report, write_comparison, write_report

__all__ = ["ReportData", "render_comparison", "render_report", "write_comparison", "write_report"]
