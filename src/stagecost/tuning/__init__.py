"""`stagecost tune`: a search for gamma and lambda with Optuna, depth against accuracy."""
