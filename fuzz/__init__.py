"""Hostile and broken files: each ends in the right result, or in one clear line."""
