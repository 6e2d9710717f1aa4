"""Networks by name: the registry, the native builders, and loading what was saved."""
