"""What else one would do to get a smaller network, by packages that others wrote."""
