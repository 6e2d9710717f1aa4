"""Cheaper ways to the same numbers, up to rounding: optional, never needed for a right answer."""
