"""What was measured with the library, and how: each experiment is one file, `python -m experiments list`."""
