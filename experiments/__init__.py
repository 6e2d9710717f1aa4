"""What was measured with the library, and how: `python -m experiments list`."""
