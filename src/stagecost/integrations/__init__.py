"""Doors to the tools of others: the Hub, scikit-learn, Lightning. Each imports its library itself."""
