"""Views of live models from anywhere as residual networks: no weight is copied or renamed."""
