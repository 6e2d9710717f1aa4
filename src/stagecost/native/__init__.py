"""Loops over pixels in plain C, for what neither torch's operations nor `torch.compile` do in one pass."""
