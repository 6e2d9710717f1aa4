"""Networks that others trained, on new images."""
