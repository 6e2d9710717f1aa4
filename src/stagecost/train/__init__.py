"""Training: settings, the loop, checkpoints, devices. The loop knows no file; `stagecost.runs` does."""
