"""Training runs: settings, loop, checkpoints, folders, and opening what was trained."""
