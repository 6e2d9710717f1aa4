"""What a stage cost costs: step time, memory, analysis and latency against the plain loop, and packages."""
