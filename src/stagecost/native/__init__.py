"""Loops over pixels in C, for what neither torch's operations nor `torch.compile` do in one pass."""
