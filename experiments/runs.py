"""The whole way on real images: train with a stage cost, analyse, prune, read the test images once.

Command     python -m experiments run runs [--dataset mnist-homogeneous] [--data-root DIR]
Machine     the records name it; two CPU cores, one thread a run
Runtime     about three quarters of an hour on one core
Seeds       0

A record holds what the verbs print with `--json`, and the command lines that do the same.
"""
