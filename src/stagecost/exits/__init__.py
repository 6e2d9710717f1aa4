"""Early exit: policies that say where an image leaves, and the engine that lets it."""
