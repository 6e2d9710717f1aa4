"""What was tried and is not recommended: callers of the training loop, with their records."""
