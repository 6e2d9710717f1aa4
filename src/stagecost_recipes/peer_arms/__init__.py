"""The arms of the comparison with peers: what is trained, and what is done after a training."""
