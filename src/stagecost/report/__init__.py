"""The report: one self-contained page from plain numbers."""
