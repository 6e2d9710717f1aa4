"""What the verbs do: runs in folders, and functions with typed results that report and console share."""
