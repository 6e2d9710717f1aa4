"""What a stage cost costs: step time, memory, analysis and latency, beside the plain loop."""
