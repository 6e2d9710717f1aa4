"""Recipes: full specifications of the runs whose results are recorded, beside the library."""
